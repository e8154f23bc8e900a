"""The state of a training on the host: copied from model and optimizer, and loaded into them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


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
    """Copy a bare model, its optimizer and its average to the host, not waiting for the device."""
    averaged = {} if average is None else average.state_dict()
    weights = {name: _to_host(tensor) for name, tensor in model.state_dict().items()}
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    states = {
        f"{key}/{names[parameter]}": _to_host(tensor)
        for parameter, entries in optimizer.state.items()
        for key, tensor in entries.items()
    }
    kept = {name: _to_host(tensor) for name, tensor in averaged.items()}
    wait: Callable[[], None] = lambda: None  # noqa: E731
    if torch.cuda.is_available() and any(p.is_cuda for p in model.parameters()):
        event = torch.cuda.Event()
        event.record()
        wait = event.synchronize
    return Snapshot(step, weights, states, state, kept, wait)


def _to_host(tensor: Tensor) -> Tensor:
    """Return a copy that later steps do not change; from a GPU it is pinned and arrives later."""
    tensor = tensor.detach()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor, non_blocking=True)


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
