"""The Ray that a job starts for itself: whom it listens to, which signals it gets, how it ends."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from filelock import FileLock
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants

from jobs.storage.cache import make_room
from jobs.storage.prune import KEPT_DAYS, KEPT_DAYS_LOW, is_low, prune_unowned

_MARK = ".patchray"
"""File in a session's folder of Ray, which the job that started that Ray holds a lock on."""


@contextmanager
def on_loopback() -> Iterator[None]:
    """Have a Ray that the block starts, and gloo, listen on 127.0.0.1 only.

    This is Ray's own switch for macOS, where it is the default. Ray's processes read the variable;
    this one has read it already.
    """
    variables = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    if sys.platform == "linux":
        variables["GLOO_SOCKET_IFNAME"] = "lo"
    before = {name: os.environ.get(name) for name in variables}
    cluster, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    os.environ.update(variables)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = cluster
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def shielded() -> Iterator[None]:
    """Have the processes that the block starts, and theirs, never get SIGTERM and SIGHUP.

    `timeout`, Slurm, systemd and a terminal that is closed send these to all processes of a job.
    Ray's own, and with them the workers, would end before a training has saved. A process inherits
    which signals are blocked. A signal to this process takes effect after the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def session() -> Iterator[None]:
    """Mark the folder of this Ray's temporary files as in use for the block, and delete old ones.

    Ray itself never deletes them. Only those of Rays that jobs have started are marked.
    """
    node: Any = ray._private.worker._global_node
    folder = Path(node.get_session_dir_path())
    prune_sessions(KEPT_DAYS_LOW if is_low(folder) else KEPT_DAYS)
    make_room(folder)
    with FileLock(folder / _MARK):
        yield


def prune_sessions(days: float, delete: bool = True) -> dict[Path, int]:
    """Delete Ray's folders of jobs that have ended, if they are so old; returns their sizes.

    Args:
        days: age from which they are deleted.
        delete: whether to delete, or only to list.
    """
    marks = Path(get_default_ray_temp_dir()).glob(f"session_*/{_MARK}")
    return prune_unowned([mark.parent for mark in marks], _MARK, days * 86_400, delete)


def kill_at_shutdown() -> None:
    """Have `ray.shutdown` send SIGKILL at once, to the workers and agents too.

    It would wait a second for each shielded process, and without its raylet an agent lives on for a
    minute, in which it tries to report that.
    """
    node: Any = ray._private.worker._global_node
    if node is None:
        return
    kill = node.kill_all_processes

    def kill_all(**_: bool) -> None:
        started = [info.process.pid for infos in node.all_processes.values() for info in infos]
        below = []
        for pid in started:
            with suppress(psutil.NoSuchProcess):
                below += psutil.Process(pid).children(recursive=True)
        kill(check_alive=False, allow_graceful=False)
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()  # psutil looks whether the number is still that process's

    node.kill_all_processes = kill_all
