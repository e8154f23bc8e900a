"""What fine-tuning takes of a GPU's memory, by the sizes of all tensors on the stand-in."""

import pytest
import torch
from segment_anything import sam_model_registry
from torch import nn

from jobs.run.config import ConfigError
from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.memory import plan_memory
from masking.segmenter.official import Official
from masking.training.compose import ComposeConfig
from masking.training.pairs import PairsConfig
from masking.training.steps import Trainee
from tests.masking.segmenter.networks import small_sam

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
A10G = 24 * 10**9
"""Bytes of the GPU of `cluster.yaml`."""


def vit_b(stand_in):
    """SAM's ViT-B on the device, with sizes but without numbers."""
    stand_in.sizes_only = True
    with torch.device("meta"):
        sam = sam_model_registry["vit_b"]()
    sam.pixel_mean, sam.pixel_std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    network = Official(sam)
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                there = torch.empty(parameter.shape, device="cuda")
                wanted = parameter.requires_grad
                module._parameters[name] = nn.Parameter(there, requires_grad=wanted)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, device="cuda")
    return Trainee(network)


def config(**changes):
    return FinetuneConfig(
        out="unused", data=("unused",), init_weights="vit_b",
        compose=ComposeConfig(size=1024), pairs=PairsConfig(longest=1024), **changes,
    )  # fmt: skip


def test_the_default_batch_of_vit_b_fits_an_a10g(stand_in):
    model, stand_in.total = vit_b(stand_in), A10G
    line = plan_memory(model, config(), 8, "bfloat16")
    assert model.network.recompute, line
    assert "blocks recomputed" in line


def test_a_larger_gpu_computes_nothing_twice(stand_in):
    model, stand_in.total = vit_b(stand_in), 141 * 10**9
    plan_memory(model, config(), 8, "bfloat16")
    assert not model.network.recompute


def test_a_batch_that_cannot_fit_is_refused_with_one_that_does(stand_in):
    model, stand_in.total = vit_b(stand_in), A10G
    with pytest.raises(ConfigError, match=r"a batch of 64 needs .* of 24.0 GB.*use --batch-size"):
        plan_memory(model, config(batch_size=64), 64, "bfloat16")


def test_recomputed_blocks_give_the_same_gradients():
    grads = {}
    for recompute in (False, True):
        torch.manual_seed(0)
        network = Official(small_sam())
        network.recompute = recompute
        images = torch.rand(2, 3, network.side, network.side) * 255
        network.encode(images)[0].square().mean().backward()
        grads[recompute] = [p.grad for p in network.encoder.parameters()]
    for one, other in zip(grads[True], grads[False], strict=True):
        assert torch.equal(one, other)
