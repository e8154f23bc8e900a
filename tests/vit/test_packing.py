import pytest
import torch

from vit.packing import Planned, send, together

TENSORS = [
    torch.arange(7),
    torch.rand(3, 5).T,
    torch.tensor([True, False, True]),
    torch.rand(2, dtype=torch.float64),
    torch.tensor(3, dtype=torch.uint8),
    torch.empty(0, 4),
]


def test_tensors_lie_together_without_touching():
    found = together(TENSORS, pinned=False)
    for one, like in zip(found, TENSORS, strict=True):
        one.copy_(like)
    for one, like in zip(found, TENSORS, strict=True):
        assert one.dtype == like.dtype
        assert torch.equal(one, like)
    assert len({one.untyped_storage().data_ptr() for one in found}) == 1


def test_on_a_cpu_nothing_is_copied():
    assert all(one is x for one, x in zip(send(TENSORS, torch.device("cpu")), TENSORS, strict=True))
    assert Planned((torch.tensor(2),), lambda x, two: x * two).on(torch.tensor(3)) == 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_reach_a_gpu_in_one_copy_without_a_wait(stand_in):
    with stand_in.measured() as log:
        sent = send(TENSORS, torch.device("cuda"))
    assert not log.waits
    assert log.copies == {"pinned": 1}
    assert log.pins == 1
    for one, like in zip(sent, TENSORS, strict=True):
        assert one.dtype == like.dtype
        assert torch.equal(one.cpu(), like)
