"""Calls of a network for many objects, in parts that fit into the memory of its device."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")
AT_ONCE = 64
"""Objects of a call at first, before memory has run out."""


class Parted(Protocol):
    """A network that many objects go through together."""

    objects_at_once: int
    """Largest number of objects of a call; it falls when memory runs out, and stays there."""


def in_parts(network: Parted, count: int, call: Callable[[slice], T]) -> list[T]:
    """Call a network for parts of `count` objects, and return the results in order.

    When the device runs out of memory, the part is tried again with half as many objects, down to
    one; later calls then have no more than that.

    Raises:
        torch.OutOfMemoryError: there is no room for a single object.
    """
    found: list[T] = []
    start = 0
    while start < count:
        size = min(network.objects_at_once, count - start)
        try:
            found.append(call(slice(start, start + size)))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            # The next try is outside of this block: the exception keeps the failed call's tensors.
            network.objects_at_once = size // 2
        else:
            start += size
    return found
