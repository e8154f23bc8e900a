"""How a model is computed: precision, kind of attention and memory layout, chosen by a probe."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from vit.model import Attention

Precision = Literal["float32", "bfloat16"]

PROBED = 32
"""Samples that a probe takes: enough to compare speeds; a large model takes seconds for each."""


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a forward pass runs at `precision`; parameters stay float32.

    Weights are cast once a pass, so nothing is gained by keeping them, which CUDA graphs forbid.
    """
    enabled = precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)


def seconds(work: Callable[[], None]) -> float:
    """Return the shortest of three times that a GPU took for `work`, after two to warm up."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[2:])


@dataclass(frozen=True)
class Numerics:
    """Choices that change the speed of a model, and its results by rounding only."""

    precision: Precision
    fused_attention: bool
    """Whether attention uses torch's fused kernel; else it is computed as plain products."""
    channels_last: bool
    """Whether the stem's convolutions have the memory layout channels last; else channels first."""

    def __str__(self) -> str:
        attention = "fused" if self.fused_attention else "plain"
        channels = "last" if self.channels_last else "first"
        return f"{self.precision}, {attention} attention, channels {channels}"

    def prepare(self, model: nn.Module) -> None:
        """Apply the choices to a bare model."""
        for module in model.modules():
            if isinstance(module, Attention):
                module.fused = self.fused_attention
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=layout)


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware: emulation takes many times as long."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def choose_numerics(
    model: nn.Module, inputs: Tensor, precision: Literal["auto", "float32", "bfloat16"]
) -> tuple[Numerics, str]:
    """Choose how to compute, and say why: on a GPU by what it can do, on a CPU by a probe.

    A GPU with bfloat16 gains from it, from the fused kernel and from channels last. On a CPU the
    gain depends on the processor and the shape, so choices are timed; one other than the default
    (float32, fused, channels first) must win by 5 %. With a precision that is given, the choices
    that mostly suit it are made without a probe: the same on every start of every run.

    Args:
        model: the bare model; its gradients are cleared.
        inputs: (B, 3, S, S) float32 on the model's device, of which `PROBED` are used.
        precision: a precision, or auto to choose it, too.

    Returns:
        The choices, and the reason for them in a few words.
    """
    cuda = inputs.device.type == "cuda"
    if precision != "auto":
        fused = cuda or precision == "float32"
        return Numerics(precision, fused, channels_last=cuda), "set by --precision"
    if cuda:
        chosen: Precision = "bfloat16" if multiplies_bfloat16(inputs.device) else "float32"
        return Numerics(chosen, True, True), f"the GPU computes fast in {chosen}"
    precisions: list[Precision] = ["float32"]
    if multiplies_bfloat16(inputs.device):
        precisions.append("bfloat16")
    few = inputs[:PROBED]
    choices = [Numerics(name, fused, False) for name in precisions for fused in (True, False)]
    seconds = {choice: _probe(model, few, choice) for choice in choices}
    last = replace(min(seconds, key=seconds.__getitem__), channels_last=True)
    seconds[last] = _probe(model, few, last)
    default, best = choices[0], min(seconds, key=seconds.__getitem__)
    if seconds[best] > 0.95 * seconds[default]:
        return default, "no other choice was faster in a probe"
    return best, f"{seconds[default] / seconds[best]:.2f} times as fast as {default} in a probe"


def _probe(model: nn.Module, inputs: Tensor, numerics: Numerics) -> float:
    """Time the shorter of two forward and backward passes on a CPU, after one to warm up.

    Returns seconds of CPU time, so that other processes on the machine do not decide.
    """
    numerics.prepare(model)
    times = []
    for _ in range(3):
        start = time.process_time()
        with autocast(inputs.device, numerics.precision):
            logits = model.forward(inputs)
        logits.float().logsumexp(dim=1).sum().backward()
        times.append(time.process_time() - start)
        model.zero_grad(set_to_none=True)
    return min(times[1:])
