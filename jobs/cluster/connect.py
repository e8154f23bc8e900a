"""Start or join Ray, and wait until the workers of a job fit on its nodes.

A driver calls these in this order:

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
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_logging
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.utils import read_ray_address
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from jobs.cluster import nodes, own, running
from jobs.cluster.capacity import (
    Demand,
    Nodes,
    amounts,
    fit,
    refusal_message,
    share_of_gpu,
    waiting_message,
)
from jobs.run.main import InputError, working
from jobs.run.signals import Stop
from jobs.run.submitted import submitted

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative path means the same on a worker as on the driver
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else what a worker prints appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # with Ray's 2 s, every report takes up to 2 s
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's new output cannot be silenced
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a sweep keeps its own record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
"""Environment variables that are set unless the user set them. Train passes its own to workers."""

_OBJECT_STORE_BYTES = 256 * 2**20
"""Size of the object store of a Ray that a job starts: only rows and metrics go through it.

Ray's default is 30 % of the memory."""

_REMIND_SECONDS = 60.0
"""Time after which a message about a wait is repeated."""


class ClusterError(InputError):
    """Ray cannot be started or joined, or the workers do not fit; the message says why."""


_print = partial(print, flush=True)


@contextlib.contextmanager
def connect(say: Callable[[str], None] = _print) -> Iterator[None]:
    """Join a running Ray cluster, or start a Ray for this job; disconnect when the block ends.

    The first of these that exists is used: the cluster that this process is connected to, which
    stays connected after the block; the one at `RAY_ADDRESS`, which `ray job submit` sets; the one
    of `ray start` on this machine. Otherwise, or if `RAY_ADDRESS` is `local`, a Ray is started that
    ends with the block. The Ray of another driver is never joined.

    Args:
        say: called with a line about which Ray it is.

    Raises:
        ClusterError: Ray did not start, or the cluster does not answer or refuses the connection.
        JobError: the block raised StorageError; other errors of the block are raised as they are.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "RAY_DEDUP_LOGS" not in os.environ:  # read when ray is imported, so too late to set
        ray_logging.RAY_DEDUP_LOGS = False  # type: ignore[attr-defined]
    address = _address()
    with own.on_loopback() if address == "local" else contextlib.nullcontext():
        try:
            say(_start() if address == "local" else _join(address))
            with own.session() if address == "local" else contextlib.nullcontext(), working():
                yield
        finally:
            if address == "local":
                own.kill_at_shutdown()
            ray.shutdown()


def starts_own() -> bool:
    """Whether `connect` will start a Ray for this job on this machine."""
    return not ray.is_initialized() and _address() == "local"


def _address() -> str | None:
    """Return the address for `ray.init`: "local" starts a Ray, None joins this machine's cluster.

    Ray's file with the address of the latest cluster outlives a cluster that was killed, which
    `ray.init` would try to join for a long time; so it is checked here that something answers.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        return address
    latest = read_ray_address()
    return None if latest and running.answers(latest, seconds=2) else "local"


def _start() -> str:
    """Start a Ray that ends with this process; return a line that says so."""
    chosen = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if not chosen and not (Path.home() / ".ray" / "auth_token").exists():
        # Otherwise ray.init writes that file, and `ray start` on this machine then demands tokens.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        # The dashboard stays on (150 MB): without it Ray Train logs a warning every second.
        with own.shielded():
            _init(address="local", object_store_memory=_OBJECT_STORE_BYTES)
    except Exception as error:
        raise ClusterError(
            f"Ray did not start on this machine: {error}\n"
            "It needs a temporary folder with a short path and free space (set RAY_TMPDIR; the"
            " default is TMPDIR or /tmp), and shared memory (/dev/shm; in Docker --shm-size=1g)."
        ) from error
    has = ray.cluster_resources()
    line = f"started Ray on this machine: {amounts(has.get('CPU', 0), has.get('GPU', 0))}"
    if others := list(running.started_elsewhere()):
        line += (
            f"\nNot joined: {', '.join(others)}, started by `ray start --temp-dir` on this machine;"
            f" RAY_ADDRESS={others[0]} joins it"
        )
    return line


def _join(address: str | None) -> str:
    """Join the cluster at `address`, None for this machine's; return a line that says so."""
    if address and "://" in address:
        raise ClusterError(
            f"RAY_ADDRESS is {address}; expected host:port, on a node of the cluster. From another"
            " machine, submit the job:"
            " ray job submit --address http://HEAD:8265 --working-dir . -- python -m ..."
        )
    name = address or read_ray_address()
    if address not in (None, "auto") and not running.answers(str(address), seconds=10):
        raise ClusterError(
            f"nothing answers at RAY_ADDRESS {name}: start that cluster, or unset RAY_ADDRESS so"
            " that the job starts a Ray of its own"
        )
    try:
        _init(address=address)
    except Exception as error:
        raise ClusterError(
            f"could not join the Ray cluster at {name}: {error}\n"
            "If it is running, it may use another authentication: set RAY_AUTH_MODE=token (with"
            " RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH) or RAY_AUTH_MODE=disabled, as for `ray start`."
            " With RAY_ADDRESS=local the job starts a Ray of its own."
        ) from error
    name = ray.get_runtime_context().gcs_address
    if is_token_auth_enabled() and running.takes_no_token(name):
        raise ClusterError(
            f"the Ray cluster at {name} was started without tokens, but this job uses one"
            " (RAY_AUTH_MODE=token, or a token in ~/.ray/auth_token), so that no worker of that"
            " cluster could answer it: set RAY_AUTH_MODE=disabled for this job, or start the"
            " cluster with RAY_AUTH_MODE=token and the same token"
        )
    return f"joined the Ray cluster at {name}"


def _init(**options: Any) -> None:
    """Call `ray.init` without its log, with workers that can import this package anywhere."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    if not submitted():  # a submitted job's workers have its working_dir
        paths = (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        options["runtime_env"] = {"env_vars": variables}
    previous = signal.getsignal(signal.SIGTERM)
    try:
        # The log of Train and its workers would bury the progress; Ray's own log files have it.
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
    at_least: int | None = None,
    trial: bool = False,
) -> None:
    """Wait until the CPUs and GPUs of all workers are free at the same time.

    Resources that other jobs hold are waited for without a deadline. A placement group of the
    workers' shape makes an autoscaler add nodes, and shows that the workers fit; it is removed at
    the end, as Ray Train makes its own.

    Args:
        workers: number of workers.
        cpus: CPUs of each.
        gpus: GPUs of each.
        stop: ends the wait.
        say: called with a line about what is missing.
        wait: seconds that nodes may be missing. None: nodes that an autoscaler can add are waited
            for without a deadline, and no others.
        at_least: number of workers that is enough after the wait; None for all.
        trial: whether they are the processes of one trial of a sweep; messages then name its flags.

    Raises:
        ClusterError: there are not enough nodes, now or after the wait.
        SystemExit: a stop was requested meanwhile; with the exit code of `stop`.
    """
    demand = Demand(workers, cpus, gpus, trial)
    if gpus > 1 and gpus != int(gpus):
        times = workers if trial else 1
        raise ClusterError(
            f"{demand.gpus_flag} is {gpus * times:g}; above 1 for each process, Ray gives out whole"
            f" GPUs: use {math.floor(gpus) * times} or {math.ceil(gpus) * times}"
        )
    found = nodes.current_nodes()
    if wait is None and fit(demand, found).ever < (at_least or workers):
        raise ClusterError(refusal_message(demand, found))
    bundle = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
    group = placement_group([bundle] * workers)
    try:
        _wait(group, demand, stop or Stop(), say, wait, at_least or workers)
    finally:
        remove_placement_group(group)


def _wait(
    group: PlacementGroup,
    demand: Demand,
    stop: Stop,
    say: Callable[[str], None],
    wait: float | None,
    at_least: int,
) -> None:
    """Wait for the group; say what is missing when that changes, and again every minute."""
    last, repeat_at = "", 0.0
    missing = nodes.MissingNodes(demand, wait)
    ready = group.wait(2)  # before the first message: an earlier job's resources become free
    while not ready and not stop.requested.is_set():
        found = nodes.current_nodes()
        if missing.too_long(found):
            if fit(demand, found).now < at_least:
                raise ClusterError(missing.message(found))
            say(f"continuing with the workers that fit; {waiting_message(demand, found)}")
            return
        line = waiting_message(demand, found)
        if line != last or time.monotonic() >= repeat_at:
            last, repeat_at = line, time.monotonic() + _REMIND_SECONDS
            say(line)
        ready = group.wait(1)
    if stop.requested.is_set():
        raise SystemExit(stop.exit_code)


def max_processes(cpus: float, gpus: float) -> int:
    """Return how many processes with so many CPUs and GPUs the cluster can hold when idle.

    Nodes that an autoscaler may add count if their number can be read.
    """
    found = fit(Demand(sys.maxsize, cpus, gpus), nodes.current_nodes())
    return found.now if math.isinf(found.ever) else int(found.ever)


def choose_device(
    device: str,
    workers: int,
    cpus: float,
    gpus: float | None,
    say: Callable[[str], None] = _print,
    *,
    sharing: int = 1,
    trial: bool = False,
) -> tuple[bool, float]:
    """Decide whether the workers compute on GPUs, and how many of them share one.

    Args:
        device: `cuda`, `cpu`, or `auto`: GPUs if every worker can get one or a share of one, on
            present nodes or on those that an autoscaler may add; an autoscaler that cannot be read
            counts as none.
        workers: number of workers.
        cpus: CPUs of each.
        gpus: GPUs of each; None: none on cpu; on cuda one, or a share if that is how all fit.
        say: called with a line about the choice.
        sharing: number of workers that may share a GPU where its number is not given: more than 1
            for a small model, which leaves most of a GPU idle.
        trial: whether they are the processes of one trial of a sweep.

    Returns:
        Whether they compute on GPUs, and the GPUs of each worker.
    """
    if device == "cpu":
        return False, 0.0 if gpus is None else gpus
    found, demand = nodes.current_nodes(), Demand(workers, cpus, gpus or 0.0, trial)
    share = share_of_gpu(demand, found, sharing) if gpus is None else _whole(demand, found)
    flag, times = demand.gpus_flag, workers if trial else 1
    if share and gpus is None and share < 1:
        say(
            f"device: cuda; workers share GPUs, {10_000 // round(share * 10_000)} on each: {flag}"
            f" {share * times:g}; set --device or {flag} to change this"
        )
    elif device == "auto" and share:
        say("device: cuda, as every worker gets a GPU; set --device to change this")
    elif device == "auto":
        say(
            f"device: cpu, as {_too_few(demand, found, sharing, gpus)}; set --device to change this"
        )
        return False, 0.0 if gpus is None else gpus
    return True, share or (1.0 if gpus is None else gpus)


def _whole(demand: Demand, found: Nodes) -> float | None:
    """Return the GPUs that a person asked for, if all workers fit with so many."""
    known = found if found.types is not None else replace(found, types=())
    return demand.gpus if demand.gpus and fit(demand, known).ever >= demand.workers else None


def _too_few(demand: Demand, found: Nodes, sharing: int, gpus: float | None) -> str:
    """Say why workers do not compute on GPUs, and what would let them."""
    if gpus == 0:
        return f"{demand.gpus_flag} is 0"
    types = found.types or ()
    if not any([*(node.gpus for node in found.present), *(kind.gpus for kind in types)]):
        return "there are no GPUs"
    if demand.gpus:
        return "there are too few GPUs"
    shared = f", even {sharing} on each" if sharing > 1 else ""
    flag, workers = demand.gpus_flag, demand.workers
    cure = f"{demand.workers_flag} 1" if workers > 1 else f"fewer {flag.replace('gpus', 'cpus')}"
    share = 10_000 // workers / 10_000 * (workers if demand.trial else 1)
    more = f", or {flag} {share:g} to share one" if workers > 1 else ""
    return f"{workers} workers do not fit on the GPUs{shared} (use {cure}{more})"
