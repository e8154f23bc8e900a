"""From a driver to N training workers and back: the one place that calls Ray Train.

Ray gets metrics only. Checkpoints go from a worker to storage; progress and stop requests go over
a small actor, because a report is paced by Ray's controller and knows no way back.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from jobs import runs
from jobs.cluster import Link, Stop, background
from jobs.progress import TrainingProgress
from jobs.storage import Location
from jobs.worker import Hooks, Ranks

Body = Callable[[Any, torch.device, Hooks], dict[str, Any]]
"""What runs on every rank: (payload, device, hooks) to the facts of a summary."""

SHOW_SECONDS = 0.2
"""Between two looks at what workers pushed."""


@dataclass(frozen=True)
class Resources:
    """What each of `workers` processes gets."""

    workers: int
    cpus: float
    gpus: float
    cuda: bool


class LaunchError(RuntimeError):
    """The workers failed for good; the message is what a person needs of it."""


class RayHooks:
    """The loop's hooks on a Ray Train worker."""

    def __init__(self, link: Link, out: Location) -> None:
        """`link` is the actor between driver and workers; `out` the run's folder."""
        self._link = link
        self._stop = link.watch()
        self._out = out
        self._events = runs.Events(out / "events")

    def report(self, row: dict[str, Any]) -> None:
        """Give Ray Train the metrics of an epoch."""
        ray.train.report(row)

    def progress(self, facts: dict[str, Any]) -> None:
        """Show facts on the driver's terminal."""
        self._link.push(facts)

    def say(self, line: str) -> None:
        """Print a line on the driver's terminal."""
        self._link.push({"say": line})

    def record(self, history: list[dict[str, Any]]) -> None:
        """Publish metrics.csv and the TensorBoard events."""
        runs.write_metrics(self._out, history)
        self._events.write(history)

    def stop_requested(self) -> bool:
        """Whether the driver was told to stop."""
        return self._stop.is_set()

    def preempted(self) -> bool:
        """Whether Ray knows that a node of this run is about to be taken away."""
        return ray.train.get_preemption_info() is not None


class _Narrator(UserCallback):
    """Says on the driver's terminal what Ray Train does about lost workers."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def after_exception(
        self,
        run_context: Any,
        worker_exceptions: dict[int, Exception],
    ) -> None:
        """Called in Ray Train's controller when ranks failed."""
        ranks = ", ".join(map(str, sorted(worker_exceptions)))
        first = str(next(iter(worker_exceptions.values()))).strip().splitlines()
        reason = first[-1] if first else "no reason given"
        line = f"lost rank {ranks} ({reason}); going on from the last checkpoint"
        self._link.push({"say": line})


def _entry(config: dict[str, Any]) -> dict[str, Any]:
    """Run on every worker by Ray Train."""
    resources: Resources = config["resources"]
    torch.set_num_threads(max(1, int(resources.cpus)))
    device = torch.device("cpu")
    if resources.cuda:
        if not torch.cuda.is_available():
            raise LaunchError(
                "a worker was given a GPU but torch sees none: the node's driver does not fit"
                f" torch {torch.__version__}; mend the image, or use --device cpu"
            )
        device = ray.train.torch.get_device()
    hooks = RayHooks(config["link"], config["out"])
    facts = config["body"](config["payload"], device, hooks)
    nodes = Ranks.here().gather(ray.get_runtime_context().get_node_id())
    return {**facts, "hardware": runs.hardware(), "nodes": len(set(nodes))}


def launch(
    body: Body,
    payload: Any,
    resources: Resources,
    max_restarts: int,
    out: Location,
    progress: TrainingProgress,
    stop: Stop,
) -> dict[str, Any]:
    """Run `body` on every worker, restart what is lost, show progress; returns rank 0's facts.

    Raises LaunchError when workers failed more often than `max_restarts`.
    """
    link = Link.open()
    stop.then(link.stop)
    path, filesystem = (out / ".ray").ray_storage()
    callbacks: Any = [_Narrator(link)]  # they still name Train V1's callbacks
    entry: Any = _entry  # Train's types know nothing of return values
    trainer = TorchTrainer(
        entry,
        train_loop_config={
            "body": body,
            "payload": payload,
            "resources": resources,
            "out": out,
            "link": link,
        },
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if resources.cuda else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker={"CPU": resources.cpus, "GPU": resources.gpus},
        ),
        run_config=RunConfig(
            name=f"start-{secrets.token_hex(4)}",  # a name of old would bring back Ray's old state
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=max_restarts),
            callbacks=callbacks,
        ),
    )
    running = background(trainer.fit)
    with progress:
        while not running.done():
            progress.show(link.drain())
            time.sleep(SHOW_SECONDS)
        progress.show(link.drain())
    try:
        result: Any = running.result()
    except ray.train.TrainingFailedError as error:
        raise LaunchError(_cause(error)) from error
    return result.return_value


def _cause(error: BaseException) -> str:
    """The last line of the first worker's traceback, or of the error itself."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, first = next(iter(failures.items()))
    lines = str(first).strip().splitlines() or [repr(first)]
    return f"rank {rank} failed for good: {lines[-1]}"
