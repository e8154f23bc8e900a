"""Ray from a job's side: start or join it, see that the workers fit, signals, the way to workers.

A driver's order:

    with cluster.Stop() as stop, cluster.connect():
        cluster.require(workers, cpus, gpus, stop)
        link = cluster.Link.open()
        stop.then(link.stop)
        result = cluster.background(trainer.fit).result()
"""

import contextlib
import logging
import math
import os
import queue
import secrets
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import psutil
import ray
import yaml
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._private import ray_logging
from ray._private.utils import read_ray_address
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

T = TypeVar("T")

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative path means the same on a worker as on the driver
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else what a worker prints appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # at Ray's 2 s, every report takes up to 2 s
}
"""Set unless the user did. Train hands its own on to its controller and workers."""

_OBJECT_STORE_BYTES = 256 * 2**20
"""Of a local Ray: only rows and metrics go through it. Ray's default is 30 % of the memory."""

_KEPT_MESSAGES = 10_000
"""The newest of those that the driver did not fetch yet: if it hangs, memory must not fill up."""

_WATCH_SECONDS = 0.2
"""Between a worker's looks for the request to stop, of the 3 s that `ray job stop` gives."""

_REMIND_SECONDS = 60.0
"""Between two lines that say the same about a wait."""


class ClusterError(Exception):
    """Ray cannot be started or joined, or can never hold the workers. The message is for people."""


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def submitted() -> bool:
    """Whether `ray job submit` started this process: its folder is then a temporary copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def refuse_relative(path: str) -> None:
    """Raise ClusterError for an --out that would be lost with a submitted job's folder."""
    if submitted() and "://" not in path and not Path(path).is_absolute():
        raise ClusterError(
            f"--out {path} is relative: under `ray job submit` it would lie in a temporary folder "
            "of one node; use s3://BUCKET/RUN, or the full path of a folder that all nodes share"
        )


@contextlib.contextmanager
def connect(say: Callable[[str], None] = _print) -> Iterator[None]:
    """Join the cluster there is, else start a Ray of this job's own; either ends with the block.

    In this order: what this process is connected to already, which then stays so; `RAY_ADDRESS`,
    which `ray job submit` sets, and of which `local` starts our own; the cluster of `ray start` on
    this machine. Another driver's private Ray is never joined: only `ray start` leaves its address.

    Raises:
        ClusterError: Ray did not start, or the cluster does not answer or does not let us in.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "RAY_DEDUP_LOGS" not in os.environ:  # read when ray is imported, so too late to set
        ray_logging.RAY_DEDUP_LOGS = False  # type: ignore[attr-defined]
    address = _address()
    try:
        say(_start() if address == "local" else _join(address))
        yield
    finally:
        ray.shutdown()


def _address() -> str | None:
    """What to give `ray.init`: "local" starts a Ray, None joins this machine's latest cluster.

    The file that names the latest outlives a killed cluster; `ray.init` would try it for long and
    fail.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        return address
    latest = read_ray_address()
    return None if latest and _answers(latest, seconds=2) else "local"


def _answers(address: str, seconds: float) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds):
            return True
    except (OSError, ValueError):
        return False


def _start() -> str:
    """Start a Ray that ends with this process; returns a line that says so."""
    chosen = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if not chosen and not (Path.home() / ".ray" / "auth_token").exists():
        # Else ray.init writes that file, and from then on `ray start` here demands tokens.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        # The dashboard stays on (150 MB): without it Ray Train logs a warning every second.
        _init(address="local", object_store_memory=_OBJECT_STORE_BYTES)
    except Exception as error:
        raise ClusterError(
            f"Ray did not start on this machine: {error}\n"
            "It needs a temporary folder with a short path and free space (RAY_TMPDIR names one; "
            "else TMPDIR or /tmp), and shared memory (/dev/shm; in Docker --shm-size=1g)."
        ) from error
    has = ray.cluster_resources()
    return f"started Ray on this machine: {_amounts(has.get('CPU', 0), has.get('GPU', 0))}"


def _join(address: str | None) -> str:
    """Join the cluster at `address`, None: the latest of this machine; returns a line."""
    if address and "://" in address:
        raise ClusterError(
            f"RAY_ADDRESS is {address}; a job joins from a node of the cluster, by host:port. From "
            "elsewhere: ray job submit --address http://HEAD:8265 --working-dir . -- python -m ..."
        )
    name = address or read_ray_address()
    if address not in (None, "auto") and not _answers(str(address), seconds=10):
        raise ClusterError(
            f"nothing answers at RAY_ADDRESS {name}: start that cluster, or unset RAY_ADDRESS and "
            "the job starts a Ray of its own"
        )
    try:
        _init(address=address)
    except Exception as error:
        raise ClusterError(
            f"could not join the Ray cluster at {name}: {error}\n"
            "If it is up, its authentication may differ from ours: set RAY_AUTH_MODE=token (with "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH) or RAY_AUTH_MODE=disabled, as it was for "
            "`ray start`. RAY_ADDRESS=local starts a Ray of the job's own."
        ) from error
    return f"joined the Ray cluster at {name}"


def _init(**options: Any) -> None:
    """`ray.init`, quiet, with workers that can import this package wherever they run."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    if not submitted():  # a submitted job's workers have its working_dir
        paths = (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH"))
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        options["runtime_env"] = {"env_vars": variables}
    previous = signal.getsignal(signal.SIGTERM)
    try:
        # What Train and its workers log would bury the progress; it stays in Ray's own logs.
        ray.init(logging_level=logging.WARNING, log_to_driver=False, **options)
    except SystemExit as exit_:  # Ray's handler of SIGTERM exits with 15
        raise SystemExit(128 + signal.SIGTERM) from exit_
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, previous)  # Ray's handler would stay


@dataclass(frozen=True)
class Ask:
    """Workers, and what each of them takes from one node."""

    workers: int
    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Node:
    """What a node that is there has, busy or not."""

    cpus: float
    gpus: float = 0.0
    type: str = ""
    """Its name among the autoscaler's node types; empty if that did not start it."""
    head: bool = False


@dataclass(frozen=True)
class NodeType:
    """A kind of node that the autoscaler may add."""

    name: str
    cpus: float
    gpus: float
    limit: int
    """Most nodes of this type."""


@dataclass(frozen=True)
class Nodes:
    """The nodes of a cluster, and what it may grow by."""

    there: tuple[Node, ...]
    types: tuple[NodeType, ...] | None = ()
    """Empty: nothing scales this cluster. None: something out of sight may (KubeRay)."""
    limit: int = 0
    """Most nodes beside the head."""


@dataclass(frozen=True)
class Room:
    """How many workers fit on the nodes that are there when idle, and how many after growth."""

    now: int
    ever: float


def slots(ask: Ask, cpus: float, gpus: float) -> int:
    """How many workers fit on an idle node of so many CPUs and GPUs.

    In Ray's units of 1/10000: three times 0.66 fit in 2, three times 0.6667 do not. A share of a
    GPU is of one GPU: three times 0.6 do not fit on two.
    """
    cpu, gpu = round(ask.cpus * 10_000), round(ask.gpus * 10_000)
    by_cpu = round(cpus * 10_000) // cpu if cpu else ask.workers
    if not gpu:
        by_gpu = ask.workers
    elif gpu < 10_000:
        by_gpu = int(gpus) * (10_000 // gpu)
    else:
        by_gpu = round(gpus * 10_000) // gpu
    return min(by_cpu, by_gpu)


def room(ask: Ask, nodes: Nodes) -> Room:
    """How many workers like those of `ask` the nodes hold; alike, so that greedy filling is best.

    Added nodes count within the limit of their type and of the cluster, the roomiest types first.
    """
    now = sum(slots(ask, node.cpus, node.gpus) for node in nodes.there)
    if nodes.types is None:
        return Room(now, math.inf)
    count = Counter(node.type for node in nodes.there if not node.head)
    left, ever = nodes.limit - count.total(), now
    for kind in sorted(nodes.types, key=lambda kind: -slots(ask, kind.cpus, kind.gpus)):
        more = max(0, min(left, kind.limit - count[kind.name]))
        ever += more * slots(ask, kind.cpus, kind.gpus)
        left -= more
    return Room(now, ever)


def require(
    workers: int,
    cpus: float,
    gpus: float,
    stop: "Stop | None" = None,
    say: Callable[[str], None] = _print,
) -> None:
    """Return once `workers` times (`cpus`, `gpus`) are free; wait for what may still come.

    The wait has no deadline: other jobs' nodes, or an autoscaler's, take as long as they take. A
    placement group of the workers' shape is the demand that makes an autoscaler add nodes, and the
    proof that they fit; it is given back at the end, for Ray Train makes its own.

    Raises:
        ClusterError: neither the nodes there nor those that may be added can ever hold them.
        SystemExit: `stop` was asked for meanwhile; has its exit code.
    """
    ask = Ask(workers, cpus, gpus)
    if gpus > 1 and gpus != int(gpus):
        raise ClusterError(
            f"--gpus-per-worker is {gpus:g}; above 1, Ray gives out whole GPUs only: use "
            f"{math.floor(gpus)} or {math.ceil(gpus)}"
        )
    nodes = _nodes()
    if room(ask, nodes).ever < workers:
        raise ClusterError(refusal(ask, nodes))
    bundle = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
    group = placement_group([bundle] * workers)
    try:
        _wait(group, ask, stop or Stop(), say)
    finally:
        remove_placement_group(group)


def _wait(group: PlacementGroup, ask: Ask, stop: "Stop", say: Callable[[str], None]) -> None:
    """Wait for the group; says what is missing when that changes, and now and then again."""
    said, again = "", 0.0
    ready = group.wait(2)  # before the first word: what a job before us held comes back
    while not ready and not stop.requested.is_set():
        line = waiting(ask, _nodes())  # not refused any more: nodes come and go
        if line != said or time.monotonic() >= again:
            said, again = line, time.monotonic() + _REMIND_SECONDS
            say(line)
        ready = group.wait(1)
    if stop.requested.is_set():
        raise SystemExit(stop.exit_code)


def has_gpus() -> bool:
    """Whether the cluster has a GPU, or may grow one."""
    nodes = _nodes()
    return any(node.gpus for node in nodes.there) or any(
        kind.gpus and kind.limit for kind in nodes.types or ()
    )


def _nodes() -> Nodes:
    """The cluster as it is: nodes from its control store, node types from its autoscaler."""
    gcs_address = ray.get_runtime_context().gcs_address
    status = get_cluster_status(gcs_address)
    there, head_id = [], ""
    for node in (*status.active_nodes, *status.idle_nodes):
        has, kind = node.total_resources(), node.ray_node_type_name
        head = HEAD_NODE_RESOURCE_NAME in has
        head_id = node.node_id or "" if head else head_id
        # Ray calls a node that no autoscaler started node_<its id>.
        kind = "" if kind == f"node_{node.node_id}" else kind
        there.append(Node(has.get("CPU", 0.0), has.get("GPU", 0.0), kind, head))
    if head_id in ("", ray.get_runtime_context().get_node_id()):
        config = autoscaler_config(gcs_address)
    else:
        pin = NodeAffinitySchedulingStrategy(head_id, soft=False)
        task: Any = ray.remote(autoscaler_config)
        config = ray.get(task.options(num_cpus=0, scheduling_strategy=pin).remote(gcs_address))
    return Nodes(tuple(there), *node_types(config))


def autoscaler_config(gcs_address: str) -> dict[str, Any] | None:
    """On the head node: the yaml that the cluster's autoscaler runs by.

    {} if nothing scales this cluster, None if what does is out of sight: KubeRay's autoscaler has
    a container of its own.

    Open-source Ray 2.60 tells its node types to nobody: `get_cluster_config` of its global state
    stays empty, and the autoscaler's status counts nodes only. But its process, `monitor.py`,
    names the yaml on its command line and reads it anew at each step, as this does.
    """
    for process in psutil.process_iter(["cmdline"]):
        flags = dict(part.partition("=")[::2] for part in process.info["cmdline"] or ())
        monitor = any(flag.endswith("/monitor.py") for flag in flags)
        if monitor and flags.get("--gcs-address") == gcs_address:
            path = flags.get("--autoscaling-config")
            return yaml.safe_load(Path(path).expanduser().read_text()) if path else {}
    return None


def node_types(config: dict[str, Any] | None) -> tuple[tuple[NodeType, ...] | None, int]:
    """Node types of a cluster yaml, and most nodes beside the head, with Ray's defaults."""
    if config is None:
        return None, 0
    limit, types = config.get("max_workers", 2), []
    for name, kind in config.get("available_node_types", {}).items():
        has, default = kind.get("resources", {}), 0 if name == config["head_node_type"] else limit
        cpus, gpus = float(has.get("CPU", 0)), float(has.get("GPU", 0))
        types.append(NodeType(name, cpus, gpus, kind.get("max_workers", default)))
    return tuple(types), limit


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _amounts(cpus: float, gpus: float) -> str:
    return _count(cpus, "CPU") + (f" and {_count(gpus, 'GPU')}" if gpus else "")


def _wish(ask: Ask) -> str:
    if ask.workers == 1:
        return f"1 worker asks for {_amounts(ask.cpus, ask.gpus)}"
    return f"{ask.workers} workers ask for {_amounts(ask.cpus, ask.gpus)} each"


def _supply(ask: Ask, nodes: Nodes) -> str:
    """The nodes that are there, by type and size, and what may be added."""

    def size(node: Node | NodeType) -> str:
        no_gpu = " and no GPU" if ask.gpus and not node.gpus else ""
        return _amounts(node.cpus, node.gpus) + no_gpu

    if nodes.types == () and len(nodes.there) == 1:
        return f"this machine has {size(nodes.there[0])}"
    kinds = Counter(
        f"{node.type or ('head' if node.head else 'node')} ({size(node)})" for node in nodes.there
    )
    text = "the cluster has " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    grow = [f"{kind.limit} {kind.name} ({size(kind)})" for kind in nodes.types or () if kind.limit]
    if grow:
        text += f" and may grow to {', '.join(grow)}, {nodes.limit} in all beside the head"
    return text


def waiting(ask: Ask, nodes: Nodes) -> str:
    """The line for people while the workers do not fit yet."""
    now = room(ask, nodes).now
    if now >= ask.workers:
        return f"waiting: {_wish(ask)}; {_supply(ask, nodes)}, but other jobs hold some of it"
    return f"waiting for nodes, {now} of {ask.workers} fit: {_wish(ask)}; {_supply(ask, nodes)}"


def refusal(ask: Ask, nodes: Nodes) -> str:
    """Why the workers can never fit, and which flags would make them fit."""
    flags = []
    if ever := int(room(ask, nodes).ever):
        flags.append(f"--workers {ever}")
    if cpus := _smaller_cpus(ask, nodes):
        flags.append(f"--cpus-per-worker {cpus:g}")
    if ask.gpus and ask.cpus and room(replace(ask, gpus=0.0), nodes).ever >= ask.workers:
        flags.append("--gpus-per-worker 0")
    cure = (
        f"use {', or '.join(flags)}" if flags else "lower what a worker takes, or add larger nodes"
    )
    return f"{_wish(ask)}; {_supply(ask, nodes)}: {cure}"


def _smaller_cpus(ask: Ask, nodes: Nodes) -> float | None:
    """The most CPUs a worker, in hundredths, with which all fit: an equal share of some node."""
    sizes = {node.cpus for node in nodes.there} | {kind.cpus for kind in nodes.types or ()}
    shares = {math.floor(size / k * 100) / 100 for size in sizes for k in range(1, ask.workers + 1)}
    for cpus in sorted(shares, reverse=True):
        if 0 < cpus < ask.cpus and room(replace(ask, cpus=cpus), nodes).ever >= ask.workers:
            return cpus
    return None


class Stop:
    """Turns SIGTERM and SIGINT into a request, while entered, which must be on the main thread.

    `requested` is set, then what `then` was given is called, on a thread of their own: a handler
    may interrupt Ray, or the holder of a lock, anywhere. A second SIGINT raises KeyboardInterrupt
    at once. `ray job stop` leaves 3 s after its SIGTERM.
    """

    def __init__(self) -> None:
        """Not asked for yet."""
        self.requested = threading.Event()
        self._signal: int | None = None
        self._inbox: queue.SimpleQueue[bool] = queue.SimpleQueue()  # its put is safe in a handler
        self._lock = threading.Lock()
        self._calls: list[Callable[[], object]] = []

    @property
    def exit_code(self) -> int:
        """What the process should end with: 130 after SIGINT, 143 after SIGTERM, else 0."""
        return 128 + self._signal if self._signal else 0

    def then(self, call: Callable[[], object]) -> None:
        """Call when asked to stop; at once if that has been."""
        with self._lock:
            if not self.requested.is_set():
                self._calls.append(call)
                return
        call()

    def __enter__(self) -> "Stop":
        """Install the handlers."""
        threading.Thread(target=self._pass_on, name="stop", daemon=True).start()
        signals = (signal.SIGTERM, signal.SIGINT)
        self._previous = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put back the handlers that were there."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._inbox.put(False)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal = number
            self._inbox.put(True)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def _pass_on(self) -> None:
        if self._inbox.get():
            with self._lock:
                self.requested.set()
            for call in self._calls:
                call()


def background(call: Callable[[], T]) -> Future[T]:
    """Run `call` on another thread, so that the main one is free for signals and for progress.

    `TorchTrainer.fit` wants this: on the main thread it replaces our handler of SIGINT by one that
    aborts the workers before they can save. The thread does not keep the process from ending.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="background", daemon=True).start()
    return future


class _Mailbox:
    """The actor behind a Link.

    It runs one call at a time, each worker's in its order. An asynchronous actor, in which workers
    could await the stop, runs calls in any order: a progress line would jump back.
    """

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._stopped = False

    def push(self, message: dict[str, Any]) -> None:
        self._messages.append(message)
        del self._messages[:-_KEPT_MESSAGES]

    def drain(self) -> list[dict[str, Any]]:
        messages, self._messages = self._messages, []
        return messages

    def stop(self) -> None:
        self._stopped = True

    def stopped(self) -> bool:
        return self._stopped


@dataclass(frozen=True)
class Link:
    """The way between a driver and its workers: progress up, the request to stop down.

    It can be sent to workers, e.g. in Ray Train's `train_loop_config`. Nothing in it raises, and
    `push` does not wait: no training fails for a line of progress.
    """

    actor: Any

    @classmethod
    def open(cls) -> "Link":
        """Make one; it lives on the driver's node, takes no CPU, and dies with the driver."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(_Mailbox)
        options = {"num_cpus": 0, "max_restarts": -1, "max_pending_calls": _KEPT_MESSAGES}
        return cls(actor.options(scheduling_strategy=here, **options).remote())

    def push(self, message: dict[str, Any]) -> None:
        """From a worker: send a small message; lost if the driver cannot be reached."""
        with contextlib.suppress(RayError):
            self.actor.push.remote(message)

    def drain(self) -> list[dict[str, Any]]:
        """On the driver: what was pushed since the last call, each worker's in its order."""
        try:
            messages: list[dict[str, Any]] = ray.get(self.actor.drain.remote(), timeout=5)
        except RayError:
            return []
        return messages

    def stop(self) -> None:
        """On the driver: ask the workers to save and end."""
        with contextlib.suppress(RayError):
            self.actor.stop.remote()

    def watch(self) -> threading.Event:
        """On a worker: set when the driver asks to stop, or is gone.

        When it is gone, Ray ends its workers within seconds, which may do for a save.
        """
        requested = threading.Event()

        def wait() -> None:
            stopped = self.actor.stopped.options(max_task_retries=-1)  # if it is restarted
            with contextlib.suppress(RayError):
                while not ray.get(stopped.remote()):
                    time.sleep(_WATCH_SECONDS)
            requested.set()

        threading.Thread(target=wait, name="watch", daemon=True).start()
        return requested
