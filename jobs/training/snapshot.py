"""The state of a training on the host: copied from model and optimizer, and loaded into them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from vit.packing import together


@dataclass(frozen=True)
class Snapshot:
    """The state of a training, copied to the host: training continues while it is written."""

    step: int
    """Optimizer steps taken so far."""
    weights: dict[str, Tensor]
    """The model's state dict."""
    optimizer: dict[str, Tensor]
    """The optimizer's state: tensors by the names `<key>/<parameter>`."""
    state: dict[str, Any]
    """The part that is not tensors: the fields of `jobs.training.state.State`."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """The state dict of the averaged weights; empty if no average is kept."""
    wait: Callable[[], None] = lambda: None
    """Waits until the copies from the device have arrived."""


def snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    step: int,
    state: dict[str, Any],
) -> Snapshot:
    """Copy a bare model, its optimizer and its average to the host, not waiting for the device.

    All goes to one piece of memory, pinned for a GPU: each piece that is pinned takes time.
    """
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    parts: list[dict[str, Tensor]] = [
        model.state_dict(),
        {
            f"{key}/{names[parameter]}": tensor
            for parameter, entries in optimizer.state.items()
            for key, tensor in entries.items()
        },
        {} if average is None else average.state_dict(),
    ]
    sources = [tensor.detach() for part in parts for tensor in part.values()]
    on_gpu = any(tensor.is_cuda for tensor in sources)
    copies = together(sources, pinned=on_gpu)
    for copy, source in zip(copies, sources, strict=True):
        copy.copy_(source, non_blocking=True)
    left = iter(copies)
    weights, states, kept = (
        dict(zip(part, islice(left, len(part)), strict=True)) for part in parts
    )
    wait: Callable[[], None] = lambda: None  # noqa: E731
    if on_gpu:
        event = torch.cuda.Event()
        event.record()
        wait = event.synchronize
    return Snapshot(step, weights, states, state, kept, wait)


def restore(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    saved: Snapshot,
) -> None:
    """Load a snapshot into a bare model, its optimizer and its average, on their device."""
    model.load_state_dict(saved.weights)
    if average is not None:
        average.load_state_dict(saved.average)
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_name: dict[str, dict[str, Tensor]] = {}
    for path, tensor in saved.optimizer.items():
        key, _, name = path.partition("/")
        by_name.setdefault(name, {})[key] = tensor
    packed = optimizer.state_dict()
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    packed["state"] = {
        index: by_name[names[parameter]]
        for index, parameter in enumerate(order)
        if names[parameter] in by_name
    }
    optimizer.load_state_dict(packed)


def lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's state the memory layout of its weights, which may have changed.

    Fused kernels read both by address; on a CPU they would silently pair the wrong numbers.
    """
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if value.shape == parameter.shape:
                entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
