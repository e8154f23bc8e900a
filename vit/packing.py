"""Many small tensors in one piece of memory: one allocation, one copy between host and device."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ALIGNED = 64
"""Bytes to a multiple of which each tensor begins: any dtype can lie there, and fast copies."""


def together(like: Sequence[Tensor], *, pinned: bool) -> list[Tensor]:
    """Return tensors on the CPU with these shapes and dtypes, not filled, in one allocation."""
    return _views(torch.empty(_size(like), dtype=torch.uint8, pin_memory=pinned), like)


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return tensors of the CPU on a device: for a GPU by one copy, which the host does not wait
    for."""
    if device.type == "cpu":
        return list(tensors)
    packed = torch.empty(_size(tensors), dtype=torch.uint8, pin_memory=True)
    for place, tensor in zip(_views(packed, tensors), tensors, strict=True):
        place.copy_(tensor)
    return _views(packed.to(device, non_blocking=True), tensors)


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(map(_padded, tensors))


def _padded(tensor: Tensor) -> int:
    return math.ceil(tensor.nbytes / _ALIGNED) * _ALIGNED


def _views(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    starts = itertools.accumulate(map(_padded, like), initial=0)
    return [
        packed[start : start + each.nbytes].view(each.dtype).view(each.shape)
        for start, each in zip(starts, like, strict=False)
    ]


@dataclass(frozen=True)
class Planned:
    """Work on a batch for which all draws are made, so that what it needs can be sent ahead."""

    tensors: tuple[Tensor, ...]
    """What it needs on the device of the batch; on the CPU."""
    run: Callable[..., Any]
    """Does the work, given the batch and the tensors on its device."""

    def on(self, batch: Tensor) -> Any:
        """Send the tensors and do the work."""
        return self.run(batch, *send(self.tensors, batch.device))
