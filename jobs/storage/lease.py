"""One job at a time in a run folder: a lock on a local disk, a lease in object storage.

The system frees the lock of a process that ends, whatever ended it. A lease is a file in `.lease/`
that its holder writes again from time to time. It ends when nobody has written it for
LEASE_SECONDS, or at once if its process is seen to be gone, which a start on the same machine can
see.

A start that finds no lease writes one, as a candidate, and then lists the folder again: only if it
is alone it becomes the holder, else it withdraws. Of two candidates at least the later one sees the
other, since what was written to object storage is listed from then on. So no condition on a write
is needed, which not every store knows, and no clocks are compared except for leases that are
LONG_AGO old.
"""

import errno
import json
import os
import random
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from jobs.storage.errors import StorageError, explained
from jobs.storage.location import Location
from jobs.storage.publish import machine, sweep

LEASE_SECONDS = 60.0
"""Time after which a lease ends that is not written again."""
RENEW_SECONDS = 10.0
"""Time between two writes of a lease by its holder."""
LOOK_SECONDS = 2.0
"""Time between two looks at a lease of which it is not known whether its holder lives."""
LONG_AGO = 3600.0
"""Age in seconds at which a lease has ended, whatever the difference between two machines' clocks:
S3 itself answers nobody whose clock differs by more than a quarter of an hour."""
_LOCK, _LEASES = ".lock", ".lease"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems answer that have no locks; a lease is used there."""

About = dict[str, Any]
"""Who holds a folder: job, host, process and its start, machine, since when."""


class HeldError(StorageError):
    """Another job is at work in the folder; the message says which, since when, and what to do."""


@contextmanager
def exclusive(folder: Location, job: str) -> Iterator[None]:
    """Keep other jobs out of a run folder for the length of the block.

    First delete the files there that earlier starts were writing when they were killed.

    When a lease is lost, because storage could not be reached or the machine was suspended for
    longer than LEASE_SECONDS and another job has begun there, this process gets SIGTERM.

    Args:
        folder: the run folder, which is made where it is absent.
        job: name of the job, for the message that others get.

    Raises:
        HeldError: another job has the folder.
        StorageError: the folder cannot be written to.
    """
    about = _about(job)
    with ExitStack() as held:
        if folder.local_path is None or not _lock(folder, about, held):
            held.enter_context(_lease(folder, about))
        if folder.local_path is not None:
            sweep(folder.local_path)
        yield


def _lock(folder: Location, about: About, held: ExitStack) -> bool:
    """Lock a local folder until `held` ends; returns False if its file system has no locks."""
    path = Path(folder.path) / _LOCK
    with explained("write", folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.enter_context(FileLock(path, timeout=0, fallback_to_soft=False))
        except Timeout:
            raise HeldError(_message(folder, _read(Location.parse(path)))) from None
        except NotImplementedError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
        with suppress(OSError):  # it is for messages only; the disk may be full
            path.write_text(json.dumps(about))  # in place: the lock belongs to this very file
    return True


@contextmanager
def _lease(folder: Location, about: About) -> Iterator[None]:
    lease = _Lease(folder, about)
    lease.acquire()
    over = threading.Event()
    renewing = threading.Thread(target=lease.renew, args=(over,), name="lease", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join(LEASE_SECONDS)
        with suppress(StorageError):  # it ends by itself
            lease.mine.delete()


class _Lease:
    """The lease of one start in one folder."""

    def __init__(self, folder: Location, about: About) -> None:
        self._folder, self._about = folder, about
        self.mine = folder / _LEASES / secrets.token_hex(8)
        self._seen: dict[str, tuple[int, float]] = {}  # time stamp of a lease, and when we saw it

    def acquire(self) -> None:
        """Become the holder; waits for as long as it is not known whether another one lives.

        Raises:
            HeldError: another job is the holder.
        """
        waiting = False
        while True:
            other = self._other()
            if other is None:
                self.mine.write_json({**self._about, "held": False})
                other = self._other()
                if other is None:
                    self.mine.write_json({**self._about, "held": True})
                    return
                self.mine.delete()
                time.sleep(random.uniform(0.1, LOOK_SECONDS))  # two candidates must not keep step
                continue
            if not waiting:
                waiting = True
                print(
                    f"{self._folder} was in use by {_holder(other)}; waiting for at most"
                    f" {LEASE_SECONDS:g} s to see whether that job has ended",
                    flush=True,
                )
            time.sleep(LOOK_SECONDS)

    def _other(self) -> About | None:
        """Return one that has a lease which may be alive, or None; deletes leases that have ended.

        Raises:
            HeldError: a holder is alive: its process is, or its lease was just written again.
        """
        found = None
        for entry in (self._folder / _LEASES).list():
            place = self._folder / _LEASES / entry.name
            if place == self.mine:
                continue
            about = _read(place)
            written, first = self._seen.setdefault(entry.name, (entry.mtime_ns, time.monotonic()))
            here = about.get("machine") == self._about["machine"]
            ended = (here and not _is_alive(about)) or _is_old(entry.mtime_ns, first)
            if ended and written == entry.mtime_ns:
                place.delete()
            elif about.get("held") and (here or written != entry.mtime_ns):
                raise HeldError(_message(self._folder, about))
            else:
                found = about
        return found

    def renew(self, over: threading.Event) -> None:
        """Write the lease again from time to time until `over`; runs on a thread of its own."""
        last = time.time()
        while not over.wait(RENEW_SECONDS):
            try:
                late = time.time() - last > LEASE_SECONDS / 2  # well before others take it
                if late and (other := self._other()) is not None:
                    raise HeldError(_message(self._folder, other))
                self.mine.write_json({**self._about, "held": True})
                last = time.time()
            except HeldError as error:
                sys.stderr.write(f"storage was not reached for too long; now {error}\n")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except StorageError:
                continue  # the next try may succeed before the lease ends


def _is_old(mtime_ns: int, first_seen: float) -> bool:
    """Whether a lease that stayed the same since `first_seen` has ended."""
    unchanged = time.monotonic() - first_seen
    return unchanged > LEASE_SECONDS or time.time() - mtime_ns / 1e9 > LONG_AGO


def _about(job: str) -> About:
    return {
        "job": job,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": psutil.Process().create_time(),
        "machine": machine(),
        "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
    }


def _is_alive(about: About) -> bool:
    """Whether the process of a holder on this machine runs; its number may belong to another."""
    try:
        process = psutil.Process(about["process"])
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(abs(process.create_time() - about["started"]) < 1)
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _read(place: Location) -> About:
    """Read who holds a folder; empty if it is not (or not yet) to be read."""
    try:
        about = place.read_json()
    except StorageError:
        return {}
    return about if isinstance(about, dict) else {}


def _holder(about: About) -> str:
    if not about:
        return "another job"
    return (
        f"{about.get('job')} (process {about.get('process')} on {about.get('host')}, since"
        f" {about.get('since')})"
    )


def _message(folder: Location, about: About) -> str:
    return (
        f"--out {folder} is in use by {_holder(about)}; wait for it, stop it, or give another --out"
    )
