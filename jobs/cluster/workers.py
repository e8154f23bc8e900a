"""What jobs that train on Ray workers share: their resources, lost nodes, memory of a process."""

import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass

from jobs.cluster import nodes
from jobs.cluster.capacity import Ask, waiting
from jobs.run.main import JobError

DATA_SECONDS = 24 * 3600
"""How long ranks wait for one whose node brings its data anew; a dead one shows at once."""


LOOK_SECONDS = 5.0
"""Between two looks at the nodes of the cluster."""


@dataclass(frozen=True)
class Resources:
    """What each of `workers` processes gets."""

    workers: int
    cpus: float
    gpus: float
    cuda: bool

    @property
    def backend(self) -> str:
        """NCCL between GPUs, unless ranks share one, which it refuses; gloo for all on the host."""
        return "cpu:gloo,cuda:nccl" if self.cuda and self.gpus >= 1 else "gloo"


class LaunchError(JobError):
    """The workers failed for good; the message is what a person needs of it."""


def keep_memory() -> None:
    """Let glibc keep what a step frees for the next one, instead of giving it back to the kernel.

    Fresh pages for every large tensor of every step cost 15 to 30 % of a step on virtual machines.
    Not for forever: the peak stays what it was. Other C libraries do as they like.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: up to 1 GiB from the heap
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: the top of the heap stays


class LostNodes:
    """Ends a job whose nodes do not come back: Ray Train and Tune alone would wait without end."""

    def __init__(self, resources: Resources, wait: float | None, trial: bool = False) -> None:
        """Of all workers, or one `trial` of a sweep, on nodes that may be missing for `wait`
        seconds."""
        ask = Ask(resources.workers, resources.cpus, resources.gpus, trial)
        self._missing = nodes.Missing(ask, wait)
        self._next, self._said = 0.0, False

    def look(self, say: Callable[[str], None]) -> None:
        """Look now and then; raises LaunchError when it is too late."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK_SECONDS
        found = nodes.there()
        if self._missing.too_long(found):
            late = self._missing.late(found)
            raise LaunchError(
                f"a node is lost: {late}; the same command, on nodes that fit, goes on from the"
                " last checkpoints"
            )
        if self._missing.seconds and not self._said:
            say(f"a node is lost; {waiting(self._missing.ask, found)}")
        self._said = bool(self._missing.seconds)
