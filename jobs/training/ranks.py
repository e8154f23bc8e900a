"""This process among those that train together: what one rank knows, all must agree on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class AgreedError(RuntimeError):
    """A fault that every rank knows of, so that all can end together; the message is for people."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    world: int

    @staticmethod
    def here() -> "Ranks":
        """Read from the process group; alone if there is none."""
        if not dist.is_initialized():
            return Ranks(0, 1)
        return Ranks(dist.get_rank(), dist.get_world_size())

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def add(self, sums: Tensor) -> list[float]:
        """Sum over ranks, reduced once."""
        if self.world > 1:
            sums = sums.clone()
            dist.all_reduce(sums)
        return sums.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        if self.world == 1:
            return [value]
        box = [None] * self.world
        dist.all_gather_object(box, value)
        return box

    def first(self, compute: Callable[[], T]) -> T:
        """What rank 0 computes, on every rank; a fault there is an AgreedError on every rank."""
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
        """What this rank computes; a fault on any rank is an AgreedError on every rank.

        A rank that raised alone would leave the others waiting for it.
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
        """The largest value of any rank."""
        if self.world == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return float(box)
