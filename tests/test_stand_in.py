"""A fault of every kind that the stand-in for a CUDA device is there to find, planted."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("stand_in"),
]
ONES = torch.ones(4, 4)


def there(tensor):
    return tensor.pin_memory().to("cuda", non_blocking=True)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: ONES.cuda() + ONES, "on the same device"),
        (lambda: torch.stack([ONES.cuda(), ONES]), "on the same device"),
        (lambda: F.layer_norm(ONES.cuda(), (4,), ONES[0].cuda().bfloat16()), "one precision"),
        (lambda: F.conv2d(ONES.cuda()[None, None], ONES.bfloat16().cuda()[None, None]), "precisi"),
        (lambda: torch.mkldnn_adaptive_avg_pool2d(ONES.cuda()[None], 1), "no kernel"),
        (lambda: torch.randperm(4, device="cuda", generator=torch.Generator()), "generator"),
        (lambda: ONES.cuda().numpy(), "convert"),
        (lambda: ONES.cuda().pin_memory(), "pin"),
    ],
)
def test_what_cuda_refuses(fault, message):
    with pytest.raises(Exception, match=message):
        fault()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x[torch.tensor([1, 2])],
        lambda x: x.nonzero(),
        lambda x: ONES.to("cuda"),
        lambda x: torch.zeros(4).copy_(x[0]),
    ],
)
def test_what_the_host_waits_for(stand_in, wait):
    x = ONES.cuda()
    with stand_in.measured() as log:
        wait(x)
    assert log.waits.total() >= 1
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchronizing"):
        wait(x)


def test_what_the_host_does_not_wait_for(stand_in):
    x, small, large = ONES.cuda(), torch.ones(8), torch.ones(1 << 15)
    with stand_in.measured() as log:
        there(ONES)
        small.to("cuda", non_blocking=True)
        large.to("cuda", non_blocking=True)
        (x @ x).relu_()[1:].t()
        x.to("cpu", non_blocking=True)
    assert not log.waits
    assert log.copies == {"pinned": 1, "pageable": 1, "staged": 1, "down": 1}
    assert log.pins == 1
    assert log.kernels == {"mm": 1, "relu_": 1}


def test_a_copy_to_the_host_is_rubbish_until_it_is_waited_for():
    early = torch.cuda.Event()
    early.record()
    host = torch.empty(4, 4, pin_memory=True).copy_(ONES.cuda(), non_blocking=True)
    late = torch.cuda.Event()
    late.record()
    early.synchronize()
    assert host.isnan().all()
    late.synchronize()
    assert torch.equal(host, ONES)


def test_a_tensor_of_another_stream_needs_an_event_and_its_memory_a_word():
    x, other = ONES.cuda(), torch.cuda.Stream()
    with torch.cuda.stream(other), pytest.raises(RuntimeError, match="not waited for"):
        x + 1
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        with pytest.raises(RuntimeError, match="record_stream"):
            x + 1
        x.record_stream(other)
        y = x + 1
        made = other.record_event()
    with pytest.raises(RuntimeError, match="not waited for"):
        y + 1
    torch.cuda.current_stream().wait_event(made)
    y.record_stream(torch.cuda.current_stream())
    assert torch.equal((y + 1).cpu(), ONES + 2)


def test_launches_of_lists_are_those_of_their_kernels(stand_in):
    many, large = [torch.ones(3).cuda() for _ in range(111)], [torch.ones(1 << 16).cuda()] * 330
    with stand_in.measured() as log:
        torch._foreach_add_(many, 1)  # 110 tensors of one list a launch
        torch._foreach_mul_(many, many)  # 64 of two
        torch._foreach_neg_(large)  # 320 chunks
    assert log.kernels == {"_foreach_add_": 2, "_foreach_mul_": 2, "_foreach_neg_": 3}


def test_tf32_rounds_and_is_counted(stand_in):
    x, weight = (torch.rand(1, 3, 8, 8) for _ in range(2))
    errors = {}
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = allowed
        with stand_in.measured() as log:
            found = F.conv2d(x.cuda(), weight.cuda()).cpu()
        errors[allowed] = float((found - F.conv2d(x, weight)).abs().max())
        assert bool(log.tf32) == allowed
    torch.backends.cudnn.allow_tf32 = True
    assert errors[True] > 1e-4 > 1e-5 > errors[False]


def test_gradients_are_those_of_torchs_engine():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 5))
    images = torch.rand(2, 3, 8, 8)
    net(images).logsumexp(dim=1).sum().backward()
    expected = [p.grad for p in net.parameters()]
    net.zero_grad()
    net.cuda()
    net(images.cuda()).logsumexp(dim=1).sum().backward()
    for p, grad in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad.cpu(), grad, rtol=2e-3, atol=2e-3)  # TF32


def test_memory_is_counted_and_ends(stand_in):
    before = stand_in.live
    x = torch.zeros(1000).cuda()
    assert stand_in.live - before == 4000
    y = x[2:]
    del x
    assert stand_in.live - before == 4000
    del y
    assert stand_in.live == before
    torch.cuda.set_per_process_memory_fraction(0.5)
    stand_in.total = 2 * (before + 3000)
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(1000).cuda()


def test_a_cuda_graph_is_one_launch_takes_one_shape_and_cannot_wait(stand_in):
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)).cuda()
    x = ONES.cuda()
    net(x).sum().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    torch.cuda.make_graphed_callables(net, (x,))
    with stand_in.measured() as log:
        net(x).sum().backward()
    assert log.kernels["graph"] == 2
    assert log.launches <= 5
    for p, grad in zip(net.parameters(), expected, strict=True):
        assert torch.equal(p.grad.cpu(), grad.cpu())
    with pytest.raises(RuntimeError, match="captured for"):
        net(x[:2])
    waiting = nn.Sequential(nn.Linear(4, 4), Waits()).cuda()
    torch.cuda.make_graphed_callables(waiting, (x,))
    with pytest.raises(RuntimeError, match="capturing"):
        waiting(x)


class Waits(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x
