"""Ray from a job's side: start or join it, and see that the workers fit.

A driver's order:

    with Stop() as stop, cluster.connect():
        cluster.require(workers, cpus, gpus, stop)
        link = Link.open()
        stop.then(link.stop)
        result = background(trainer.fit).result()
"""

import contextlib
import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_logging
from ray._private.utils import read_ray_address
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from jobs.cluster import nodes
from jobs.cluster.capacity import Ask, amounts, refusal, room, waiting
from jobs.run.main import InputError
from jobs.run.signals import Stop
from jobs.run.submitted import submitted

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative path means the same on a worker as on the driver
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else what a worker prints appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # at Ray's 2 s, every report takes up to 2 s
    "RAY_AIR_NEW_OUTPUT": "0",  # of Tune, which prints even when told not to
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a sweep keeps its own record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
"""Set unless the user did. Train hands its own on to its controller and workers."""

_OBJECT_STORE_BYTES = 256 * 2**20
"""Of a local Ray: only rows and metrics go through it. Ray's default is 30 % of the memory."""

_REMIND_SECONDS = 60.0
"""Between two lines that say the same about a wait."""


class ClusterError(InputError):
    """Ray cannot be started or joined, or can never hold the workers. The message is for people."""


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


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


def starts_own() -> bool:
    """Whether `connect` will start a Ray of this job's own, on this machine alone."""
    return not ray.is_initialized() and _address() == "local"


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
    return f"started Ray on this machine: {amounts(has.get('CPU', 0), has.get('GPU', 0))}"


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
        paths = (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))
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


def require(
    workers: int,
    cpus: float,
    gpus: float,
    stop: Stop | None = None,
    say: Callable[[str], None] = _print,
    wait: float | None = None,
    least: int | None = None,
    trial: bool = False,
) -> None:
    """Return once `workers` times (`cpus`, `gpus`) are free; wait for what may still come.

    What other jobs hold is waited for without a deadline. Nodes that are not there yet: `wait`
    seconds, whether an autoscaler is to bring them or a person; if None without a deadline those
    that an autoscaler can add, and no others. A placement group of the workers' shape is the demand
    that makes an autoscaler add nodes, and the proof that they fit; it is given back at the end,
    for Ray Train makes its own.

    Args:
        workers: how many.
        cpus: of each.
        gpus: of each.
        stop: ends the wait.
        say: told what is missing.
        wait: seconds that nodes may be missing.
        least: so many workers will do once nodes were waited for; None: all are needed.
        trial: they are the processes of one trial of a sweep; for messages.

    Raises:
        ClusterError: not enough nodes, now or after the wait.
        SystemExit: `stop` was asked for meanwhile; has its exit code.
    """
    ask = Ask(workers, cpus, gpus, trial)
    if gpus > 1 and gpus != int(gpus):
        times = workers if trial else 1
        raise ClusterError(
            f"{ask.flag_of_gpus} is {gpus * times:g}; above 1 a process, Ray gives out whole GPUs"
            f" only: use {math.floor(gpus) * times} or {math.ceil(gpus) * times}"
        )
    found = nodes.there()
    if wait is None and room(ask, found).ever < (least or workers):
        raise ClusterError(refusal(ask, found))
    bundle = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
    group = placement_group([bundle] * workers)
    try:
        _wait(group, ask, stop or Stop(), say, wait, least or workers)
    finally:
        remove_placement_group(group)


def _wait(
    group: PlacementGroup,
    ask: Ask,
    stop: Stop,
    say: Callable[[str], None],
    wait: float | None,
    least: int,
) -> None:
    """Wait for the group; says what is missing when that changes, and now and then again."""
    said, again = "", 0.0
    missing = nodes.Missing(ask, wait)
    ready = group.wait(2)  # before the first word: what a job before us held comes back
    while not ready and not stop.requested.is_set():
        found = nodes.there()
        if missing.too_long(found):
            if room(ask, found).now < least:
                raise ClusterError(missing.late(found))
            say(f"going on with the workers that fit; {waiting(ask, found)}")
            return
        line = waiting(ask, found)
        if line != said or time.monotonic() >= again:
            said, again = line, time.monotonic() + _REMIND_SECONDS
            say(line)
        ready = group.wait(1)
    if stop.requested.is_set():
        raise SystemExit(stop.exit_code)


def holds(cpus: float, gpus: float) -> int:
    """How many processes of so many CPUs and GPUs the nodes hold when idle: those that are there,
    and those that an autoscaler may add, if it says how many."""
    found = room(Ask(sys.maxsize, cpus, gpus), nodes.there())
    return found.now if math.isinf(found.ever) else int(found.ever)


def choose_device(
    device: str, workers: int, cpus: float, gpus: float | None, say: Callable[[str], None] = _print
) -> tuple[bool, float]:
    """Whether the workers compute on GPUs, and how many each takes.

    `auto` is GPUs where nodes that are there, or that may be added, hold all workers with theirs;
    what an autoscaler out of sight may add does not count.
    """
    if device == "auto":
        ask, found = Ask(workers, cpus, 1.0 if gpus is None else gpus), nodes.there()
        seen = found if found.types is not None else replace(found, types=())
        device = "cuda" if ask.gpus and room(ask, seen).ever >= workers else "cpu"
        why = "every worker gets its GPU" if device == "cuda" else "not a GPU for every worker"
        say(f"device: {device}, {why}; --device chooses")
    if gpus is None:
        gpus = 1.0 if device == "cuda" else 0.0
    return device == "cuda", gpus
