"""The resources of training workers, the end of a job whose nodes are lost, and memory settings."""

import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass

from jobs.cluster import nodes
from jobs.cluster.capacity import Demand, waiting_message
from jobs.run.main import JobError

DATA_SECONDS = 24 * 3600
"""How long ranks wait for one whose node loads its data again; a dead rank is noticed at once."""

FAILED_ALIKE = 3
"""How often in a row the workers of a training, before their first step, or the trials of a sweep
may fail with the same message: restarts help against faults of machines, not of the job."""

CHECK_SECONDS = 5.0
"""Time between two checks of the cluster's nodes."""


SHARING = 4
"""Number of workers that may share a GPU where nobody says how many, if the model is small."""

SMALL_MODEL = 100_000_000
"""Number of parameters up to which a model counts as small: vit_b of SAM has 94 million."""


@dataclass(frozen=True)
class Resources:
    """The number of worker processes, and what each of them gets."""

    workers: int
    cpus: float
    gpus: float
    cuda: bool

    @property
    def backend(self) -> str:
        """The backend of torch.distributed: gloo on the host, NCCL between GPUs.

        NCCL refuses ranks that share a GPU, so those use gloo for everything.
        """
        return "cpu:gloo,cuda:nccl" if self.cuda and self.gpus >= 1 else "gloo"


class LaunchError(JobError):
    """The workers failed and are not restarted; the message says why."""


def keep_memory() -> None:
    """Let glibc keep the memory that a step frees for the next step.

    Fresh pages for every large tensor of every step cost 15 to 30 % of a step on virtual machines.
    The peak stays the same. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: up to 1 GiB from the heap
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: the top of the heap stays


class LostNodes:
    """Ends a job whose nodes do not return: Ray Train and Ray Tune would wait forever."""

    def __init__(self, resources: Resources, wait: float | None, trial: bool = False) -> None:
        """Guard the workers of a training, or of one `trial` of a sweep.

        Args:
            resources: of the workers.
            wait: seconds that nodes may be missing; see `jobs.cluster.connect.require`.
            trial: whether the workers are those of one trial.
        """
        demand = Demand(resources.workers, resources.cpus, resources.gpus, trial)
        self._missing = nodes.MissingNodes(demand, wait)
        self._next, self._reported = 0.0, False

    def check(self, say: Callable[[str], None]) -> None:
        """Check the nodes if the last check is old enough; report with `say` that some are missing.

        Raises:
            LaunchError: they are missing for too long.
        """
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + CHECK_SECONDS
        found = nodes.current_nodes()
        if self._missing.too_long(found):
            raise LaunchError(
                f"a node is lost: {self._missing.message(found)}; the same command resumes from"
                " the last checkpoints"
            )
        if self._missing.seconds and not self._reported:
            say(f"a node is lost; {waiting_message(self._missing.demand, found)}")
        self._reported = bool(self._missing.seconds)
