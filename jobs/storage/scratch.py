"""Folders on a node's disk for the length of a piece of work, and an end to those left behind."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "patchray-work-"
_LOCK = ".lock"
_YOUNG = 60.0  # seconds: a folder whose owner may not have locked it yet


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder, deleted at the end; first those that killed processes left here are.

    A process that is killed cannot clean up, and a copy of a video is large: its lock goes with it,
    and whoever comes next sees that.
    """
    sweep()
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def sweep() -> None:
    """Delete folders whose owners are gone."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another one's, or just deleted, or locked
            if time.time() - path.stat().st_mtime < _YOUNG:
                continue
            lock = os.open(path / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(lock)
