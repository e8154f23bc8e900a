"""Temporary folders on a node's disk for a piece of work; those of killed processes are deleted."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from jobs.storage.prune import prune_unowned

_PREFIX = "patchray-work-"
_LOCK = ".lock"
_YOUNG = 60.0
"""Age in seconds below which a folder is kept: its owner may not have locked it yet."""


@contextmanager
def folder() -> Iterator[Path]:
    """Make a new folder and delete it at the end; first delete those that killed processes left.

    A process that is killed cannot clean up, and a copy of a video is large. Its lock is released
    when it dies, which shows the next process that the folder is nobody's.
    """
    sweep()
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    with FileLock(path / _LOCK):
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def sweep() -> None:
    """Delete folders whose owners have died."""
    prune_unowned(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"), _LOCK, _YOUNG)
