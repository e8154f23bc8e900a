"""This process among those that train together, and what they exchange to agree."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class AgreedError(RuntimeError):
    """A fault that is raised on every rank, so that all end together; the message is for people."""


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, and the number of processes that train together."""

    rank: int
    world: int

    @staticmethod
    def here() -> "Ranks":
        """Read both from the process group; without one, this is the only process."""
        if not dist.is_initialized():
            return Ranks(0, 1)
        return Ranks(dist.get_rank(), dist.get_world_size())

    def agree(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def add(self, sums: Tensor) -> list[float]:
        """Sum a tensor (k,) over ranks; returns k numbers."""
        if self.world > 1:
            sums = sums.clone()
            dist.all_reduce(sums)
        return sums.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank, on every rank."""
        if self.world == 1:
            return [value]
        box = [None] * self.world
        dist.all_gather_object(box, value)
        return box

    def first(self, compute: Callable[[], T]) -> T:
        """Let rank 0 compute a value for every rank; an error is an AgreedError on every rank."""
        value, fault = None, None
        if self.rank == 0:
            try:
                value = compute()
            except (ValueError, OSError) as error:
                fault = error
        value, fault = self.agree((value, fault))
        if fault is not None:
            raise AgreedError(str(fault)) from fault
        return value

    def each(self, compute: Callable[[], T]) -> T:
        """Return what this rank computes; an error on any rank is an AgreedError on every rank.

        If only one rank raised, the others would wait for it.
        """
        value, fault = None, None
        try:
            value = compute()
        except (ValueError, OSError) as error:
            fault = error
        faults = [error for error in self.gather(fault) if error is not None]
        if faults:
            raise AgreedError(str(faults[0])) from faults[0]
        return value  # type: ignore[return-value]

    def most(self, value: float) -> float:
        """Return the largest value of any rank."""
        if self.world == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return float(box)
