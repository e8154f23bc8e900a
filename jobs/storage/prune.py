"""Delete what is old from a node's disk: entries of the cache, and folders that nobody owns."""

import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from jobs.storage.publish import TEMPORARY

KEPT_DAYS = 7.0
"""Age in days at which things are deleted, if nobody says otherwise."""
KEPT_DAYS_LOW = 2.0
"""The same on a disk that is nearly full. Not less: most file systems note a use once a day."""
LOW = 0.1
"""Share of a disk that is free below which it counts as nearly full."""
_GROUPS = ("mirrors", "files", "masked")
"""Folders of the cache whose entries are the things below them; others are entries themselves."""


def is_low(folder: Path) -> bool:
    """Return whether the disk of a folder is nearly full."""
    usage = shutil.disk_usage(folder)
    return usage.free < LOW * usage.total


def prune_cache(cache: Path, days: float, delete: bool = True) -> dict[Path, int]:
    """Delete the entries of a cache that nobody used for so many days; returns their sizes.

    A job that needs one again makes it again. Files that are open stay readable.

    Args:
        cache: the folder of the cache; it may be absent.
        days: time since the last use: reading counts, if the disk notes it (Linux's default).
        delete: whether to delete, or only to list.
    """
    pruned = {}
    for path in list(_entries(cache)):
        with suppress(OSError):  # deleted meanwhile, or another user's
            size, used = _size_and_use(path)
            if time.time() - used < days * 86_400:
                continue
            if delete:
                gone = path.with_name(TEMPORARY + secrets.token_hex(8))
                path.rename(gone)  # at once: nobody may find a part of it
                _delete(gone)
            pruned[path] = size
    return pruned


def _entries(cache: Path) -> Iterator[Path]:
    folders = [cache, *(cache / name for name in _GROUPS)]
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path not in folders and not path.name.endswith(".lock"):
                yield path


def prune_unowned(
    folders: Iterable[Path], lock: str, seconds: float, delete: bool = True
) -> dict[Path, int]:
    """Delete folders of processes that have ended, if they are old; returns their sizes.

    Args:
        folders: a process that uses one holds the lock of a file in it.
        lock: name of that file.
        seconds: age of a folder from which it is deleted.
        delete: whether to delete, or only to list.
    """
    pruned = {}
    for path in folders:
        with suppress(OSError):  # it belongs to another user, was just deleted, or is locked
            if time.time() - path.stat().st_mtime < seconds:
                continue
            with FileLock(path / lock, blocking=False):
                size = _size_and_use(path)[0]
                if delete:
                    shutil.rmtree(path)
                pruned[path] = size
    return pruned


def _size_and_use(path: Path) -> tuple[int, float]:
    """Return the bytes of a file or of all files in a folder, and when one was used or written."""
    size, used = 0, 0.0
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        about = os.lstat(file)
        size += about.st_size
        used = max(used, about.st_mtime, 0.0 if file.is_dir() else about.st_atime)
    return size, used


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
