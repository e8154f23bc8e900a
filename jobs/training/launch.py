"""Run a training on workers of Ray Train, which no other module imports.

Ray gets only metrics. Checkpoints go from a worker to storage; progress and stop requests go over
a small actor (`Link`), because Ray paces reports and has no way from the driver to the workers.
"""

import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from jobs.cluster.link import Link
from jobs.cluster.workers import (
    DATA_SECONDS,
    FAILED_ALIKE,
    LaunchError,
    LostNodes,
    Resources,
    keep_memory,
)
from jobs.run.device import settle
from jobs.run.folder import Events, write_metrics
from jobs.run.machine import hardware
from jobs.run.progress import TrainingProgress
from jobs.run.signals import Stop, background
from jobs.storage.location import Location
from jobs.training.ranks import Ranks
from jobs.training.state import TrainingResult
from jobs.training.task import Hooks, TrainingConfig

Body = Callable[[Any, torch.device, Hooks], TrainingResult]
"""What runs on every rank: a function of (config, device, hooks)."""

SHOW_SECONDS = 0.3
"""Time between two reads of the workers' messages."""
PATIENCE_SECONDS = 60.0
"""Time without a message from the workers before the driver says that it still waits."""
SHARED_SECONDS = 60.0
"""How long a network file system may take to show one node what another one wrote."""
MARK = ".start"
"""File in the run's folder with a token of this start; every node must see the same one."""


class RayHooks:
    """The loop's hooks on a Ray Train worker."""

    def __init__(self, link: Link, out: Location) -> None:
        """Report over `link`; `out` is the run's folder."""
        self._link = link
        self._stop = link.watch()
        self._out = out
        self._events = Events(out / "events")

    def report(self, row: dict[str, Any]) -> None:
        """Report the metrics of an epoch to Ray Train."""
        ray.train.report(row)

    def progress(self, facts: dict[str, Any]) -> None:
        """Show the position in the run on the driver's terminal."""
        self._link.push(facts)

    def say(self, line: str) -> None:
        """Print a line on the driver's terminal."""
        self._link.push({"say": line})

    def record(self, history: list[dict[str, Any]]) -> None:
        """Publish metrics.csv and the TensorBoard events."""
        write_metrics(self._out, history)
        self._events.write(history)

    def stop_requested(self) -> bool:
        """Return whether the driver requested a stop, or is gone."""
        return self._stop.is_set()

    def preempted(self) -> bool:
        """Return whether Ray knows that a node of this run is about to be removed."""
        return ray.train.get_preemption_info() is not None


class _FailureReporter(UserCallback):
    """Reports on the driver's terminal that workers failed, and that Ray Train restarts them."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def after_exception(
        self,
        run_context: Any,
        worker_exceptions: dict[int, Exception],
    ) -> None:
        """Send the reason to the driver; Ray Train calls this in its controller."""
        ranks = ", ".join(map(str, sorted(worker_exceptions)))
        first = str(next(iter(worker_exceptions.values()))).strip().splitlines()
        reason = first[-1] if first else "no reason given"
        line = f"lost rank {ranks} ({reason}); Ray restarts all ranks, up to --max-restarts times"
        died = any(isinstance(one, RayActorError) for one in worker_exceptions.values())
        self._link.push({"say": line, "fault": None if died else reason})


def _missing_gpu() -> str | None:
    """Return a message if torch sees no GPU on this node."""
    if torch.cuda.is_available():
        return None
    return (
        f"node {ray.util.get_node_ip_address()} gave a worker a GPU but torch {torch.__version__}"
        " sees none: its driver does not match; use another driver or image, or --device cpu"
    )


def _other_folder(out: Location, start: str) -> str | None:
    """Return a message if `out` is not the folder on this node in which the job was started."""
    mark, until = out / MARK, time.monotonic() + SHARED_SECONDS
    while not (out.is_s3 or (mark.exists() and mark.read_text() == start)):
        if time.monotonic() >= until:
            break
        time.sleep(1)
    else:
        return None
    return (
        f"--out {out} on node {ray.util.get_node_ip_address()} is not the folder of the node where"
        " the job was started; use a folder that all nodes share, or s3://"
    )


def _entry(settings: dict[str, Any]) -> TrainingResult:
    """Run on every worker by Ray Train, with its `train_loop_config`."""
    keep_memory()
    ranks, resources = Ranks.here(), settings["resources"]
    torch.set_num_threads(max(1, int(resources.cpus)))
    faults = ranks.gather(_other_folder(settings["out"], settings["start"]))
    if resources.cuda:
        faults += ranks.gather(_missing_gpu())
    if faults := [fault for fault in faults if fault]:
        return TrainingResult(ended="failed", error=faults[0])
    device = ray.train.torch.get_device() if resources.cuda else torch.device("cpu")
    settle(device, resources.gpus)
    hooks = RayHooks(settings["link"], settings["out"])
    result = settings["body"](settings["config"], device, hooks)
    nodes = Ranks.here().gather(ray.get_runtime_context().get_node_id())
    return replace(result, hardware=hardware(), nodes=len(set(nodes)))


def launch(
    body: Body,
    config: TrainingConfig,
    resources: Resources,
    out: Location,
    progress: TrainingProgress,
    stop: Stop,
) -> TrainingResult:
    """Run `body` on every worker, restart lost workers, show progress; returns rank 0's result.

    Raises:
        LaunchError: workers failed more often than `config.max_restarts`, or in the same way again
            and again, or their nodes were missing for too long (`config.wait_for_nodes`).
    """
    link = Link.open()
    stop.then(link.stop)
    trainer = _trainer(body, config, resources, out, link)
    (out / ".ray").delete()  # the state of earlier starts, which no resume reads
    running = background(trainer.fit)
    lost = LostNodes(resources, config.wait_for_nodes)
    with progress:
        if not _follow(running, link, progress, stop, lost):
            return TrainingResult(ended="stopped")
    try:
        finished: Any = running.result()
    except ray.train.TrainingFailedError as error:
        raise LaunchError(_cause(error)) from error
    result: TrainingResult = finished.return_value
    return result


def _trainer(
    body: Body, config: TrainingConfig, resources: Resources, out: Location, link: Link
) -> TorchTrainer:
    """Return Ray Train's trainer of this start, and leave the start's token in `out`."""
    path, filesystem = (out / ".ray").ray_storage()
    callbacks: Any = [_FailureReporter(link)]  # Ray's types still name Train V1's callbacks
    entry: Any = _entry  # Ray's types have no return values
    start = secrets.token_hex(4)  # Ray would load its old state under a name that it knows
    (out / MARK).write_bytes(start.encode())
    return TorchTrainer(
        entry,
        train_loop_config={
            "body": body,
            "config": config,
            "resources": resources,
            "out": out,
            "link": link,
            "start": start,
        },
        torch_config=TorchConfig(backend=resources.backend, timeout_s=DATA_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker={"CPU": resources.cpus, "GPU": resources.gpus},
        ),
        run_config=RunConfig(
            name=f"start-{start}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.max_restarts),
            callbacks=callbacks,
        ),
    )


def _follow(
    running: Future[Any], link: Link, progress: TrainingProgress, stop: Stop, lost: LostNodes
) -> bool:
    """Show what workers send until they end; returns False for a stop before their first step."""
    started, heard, begun = time.monotonic(), False, False
    faults = _RepeatedFailures()
    while not running.done():
        messages = link.drain()
        heard = heard or bool(messages)
        begun = begun or any("say" not in message for message in messages)
        if not begun and stop.requested.is_set():
            return False  # there is nothing to save yet
        if not heard and time.monotonic() - started > PATIENCE_SECONDS:
            progress.say("Ray has not started the workers yet; still waiting")
            started = time.monotonic()
        progress.show(messages)
        faults.count(messages)
        if not stop.requested.is_set():
            lost.check(progress.say)
        time.sleep(SHOW_SECONDS)
    progress.show(link.drain())
    return True


class _RepeatedFailures:
    """Ends a job whose workers fail in the same way again and again before their first step."""

    def __init__(self) -> None:
        self._last, self._count = "", 0

    def count(self, messages: Iterable[dict[str, Any]]) -> None:
        """Count failures in messages of workers and `_FailureReporter`.

        Raises:
            LaunchError: the same failure came FAILED_ALIKE times in a row.
        """
        for message in messages:
            if "say" not in message:
                self._last, self._count = "", 0
            elif fault := message.get("fault"):
                self._count = self._count + 1 if fault == self._last else 1
                self._last = fault
        if self._count >= FAILED_ALIKE:
            raise LaunchError(
                f"the workers failed {self._count} times in the same way: {self._last}"
            )


def _cause(error: BaseException) -> str:
    """Return the last line that the first failed worker raised, then its traceback."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, first = next(iter(failures.items()))
    lines = str(first).strip().splitlines() or [repr(first)]
    return f"rank {rank} failed and is not restarted: {lines[-1]}\n\n" + "\n".join(lines)
