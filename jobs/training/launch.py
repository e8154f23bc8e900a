"""From a driver to N training workers and back: the one place that calls Ray Train.

Ray gets metrics only. Checkpoints go from a worker to storage; progress and stop requests go over
a small actor, because a report is paced by Ray's controller and knows no way back.
"""

import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from jobs.cluster.link import Link
from jobs.cluster.workers import DATA_SECONDS, LaunchError, LostNodes, Resources, keep_memory
from jobs.run.folder import Events, hardware, write_metrics
from jobs.run.progress import TrainingProgress
from jobs.run.signals import Stop, background
from jobs.storage.location import Location
from jobs.training.ranks import Ranks
from jobs.training.task import Hooks

Body = Callable[[Any, torch.device, Hooks], dict[str, Any]]
"""What runs on every rank: (payload, device, hooks) to the facts of a summary."""

SHOW_SECONDS = 0.3
"""Between two looks at what workers pushed."""
PATIENCE_SECONDS = 60.0
"""Without a word from the workers, before saying so."""
FAILED_ALIKE = 3
"""Times in a row that workers may raise the same before their first step: a restart mends machines,
not faults of the job."""
SHARED_SECONDS = 60.0
"""How long a network file system may take to show one node what another one wrote."""
MARK = ".start"
"""File in the run's folder that says which start this is, to nodes that should see the same one."""


class RayHooks:
    """The loop's hooks on a Ray Train worker."""

    def __init__(self, link: Link, out: Location) -> None:
        """`link` is the actor between driver and workers; `out` the run's folder."""
        self._link = link
        self._stop = link.watch()
        self._out = out
        self._events = Events(out / "events")

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
        write_metrics(self._out, history)
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
        line = f"lost rank {ranks} ({reason}); Ray starts the ranks anew, while restarts are left"
        died = any(isinstance(one, RayActorError) for one in worker_exceptions.values())
        self._link.push({"say": line, "fault": None if died else reason})


def _gpu_is_missing() -> str | None:
    if torch.cuda.is_available():
        return None
    return (
        f"node {ray.util.get_node_ip_address()} gave a worker a GPU but torch {torch.__version__}"
        " sees none: its driver does not fit; mend the image, or use --device cpu"
    )


def _is_elsewhere(out: Location, start: str) -> str | None:
    """Whether the run's folder is another one on this node than where the job was started."""
    mark, until = out / MARK, time.monotonic() + SHARED_SECONDS
    while not (out.is_s3 or (mark.exists() and mark.read_text() == start)):
        if time.monotonic() >= until:
            break
        time.sleep(1)
    else:
        return None
    return (
        f"--out {out} is another folder on node {ray.util.get_node_ip_address()} than where the job"
        " was started; a folder that all nodes share is needed, or s3://"
    )


def _entry(config: dict[str, Any]) -> dict[str, Any]:
    """Run on every worker by Ray Train."""
    keep_memory()
    resources: Resources = config["resources"]
    torch.set_num_threads(max(1, int(resources.cpus)))
    elsewhere = Ranks.here().gather(_is_elsewhere(config["out"], config["start"]))
    if faults := [fault for fault in elsewhere if fault]:
        return {"ended": "failed", "error": faults[0], "save_error": None}
    device = torch.device("cpu")
    if resources.cuda:
        blind = [node for node in Ranks.here().gather(_gpu_is_missing()) if node]
        if blind:
            return {"ended": "failed", "error": blind[0], "save_error": None}
        device = ray.train.torch.get_device()
    hooks = RayHooks(config["link"], config["out"])
    facts = config["body"](config["payload"], device, hooks)
    nodes = Ranks.here().gather(ray.get_runtime_context().get_node_id())
    return {**facts, "hardware": hardware(), "nodes": len(set(nodes))}


def launch(
    body: Body,
    payload: Any,
    resources: Resources,
    max_restarts: int,
    out: Location,
    progress: TrainingProgress,
    stop: Stop,
    wait: float | None = None,
) -> dict[str, Any]:
    """Run `body` on every worker, restart what is lost, show progress; returns rank 0's facts.

    Raises LaunchError when workers failed more often than `max_restarts`, or nodes for them have
    been missing for longer than `wait` seconds (`cluster.require` says what None means).
    """
    link = Link.open()
    stop.then(link.stop)
    path, filesystem = (out / ".ray").ray_storage()
    callbacks: Any = [_Narrator(link)]  # they still name Train V1's callbacks
    entry: Any = _entry  # Train's types know nothing of return values
    start = secrets.token_hex(4)  # a name of old would bring back Ray's old state
    (out / MARK).write_bytes(start.encode())
    trainer = TorchTrainer(
        entry,
        train_loop_config={
            "body": body,
            "payload": payload,
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
            failure_config=FailureConfig(max_failures=max_restarts),
            callbacks=callbacks,
        ),
    )
    (out / ".ray").delete()  # of earlier starts; no resume reads it
    running = background(trainer.fit)
    started, heard, begun = time.monotonic(), False, False
    lost, faults = LostNodes(resources, wait), _Faults()
    with progress:
        while not running.done():
            messages = link.drain()
            heard = heard or bool(messages)
            begun = begun or any("say" not in message for message in messages)
            if not begun and stop.requested.is_set():
                return {"ended": "stopped", "save_error": None}  # there is nothing to save yet
            if not heard and time.monotonic() - started > PATIENCE_SECONDS:
                progress.say("Ray has not started the workers yet; still waiting")
                started = time.monotonic()
            progress.show(messages)
            faults.look(messages)
            if not stop.requested.is_set():
                lost.check(progress.say)
            time.sleep(SHOW_SECONDS)
        progress.show(link.drain())
    try:
        result: Any = running.result()
    except ray.train.TrainingFailedError as error:
        raise LaunchError(_cause(error)) from error
    return result.return_value


class _Faults:
    """Ends a job whose workers raise the same again and again before they have taken a step."""

    def __init__(self) -> None:
        self._last, self._count = "", 0

    def look(self, messages: Iterable[dict[str, Any]]) -> None:
        """Look at what workers and `_Narrator` pushed; raises LaunchError when it is enough."""
        for message in messages:
            if "say" not in message:
                self._last, self._count = "", 0
            elif fault := message.get("fault"):
                self._count = self._count + 1 if fault == self._last else 1
                self._last = fault
        if self._count >= FAILED_ALIKE:
            raise LaunchError(f"the workers failed alike {self._count} times: {self._last}")


def _cause(error: BaseException) -> str:
    """What the first worker to fail raised: its last line, then its traceback."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, first = next(iter(failures.items()))
    lines = str(first).strip().splitlines() or [repr(first)]
    return f"rank {rank} failed for good: {lines[-1]}\n\n" + "\n".join(lines)
