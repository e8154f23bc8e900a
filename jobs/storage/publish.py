"""Publish a file by a single act, so that it is there whole or not at all.

On a local disk the act is a rename; in S3 it is the completion of an upload. A process that is
killed leaves the file that it was writing, under a name that says which process that was: so the
next start can tell it from the file of a process that still writes.
"""

import ctypes
import hashlib
import os
import platform
import re
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeAlias

import psutil
from pyarrow import NativeFile, fs

Buffer: TypeAlias = bytes | bytearray | memoryview

IN_FLIGHT = 64 << 20
"""Bytes of one upload that may wait in memory; pyarrow itself sets no limit."""
TEMPORARY = ".patchray-"
"""Prefix of names that nobody reads: files being written, or left by a process that was killed."""


LONG_AGO = 3600.0
"""Age in seconds from which a temporary file counts as left behind whatever process wrote it: one
that still writes changes it far more often."""
_TEMPORARY_NAME = re.compile(
    re.escape(TEMPORARY) + r"((?P<machine>[0-9a-f]{8})-(?P<process>\d+)-)?[0-9a-f]{16}"
)
"""Names of temporary files; those of earlier versions do not say which process wrote them."""


@cache
def machine() -> str:
    """Return a name of what numbers this process: this boot of the machine, and its container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # not Linux
        return f"{platform.node()} {psutil.boot_time():.0f}"


def temporary_name() -> str:
    """Return a new name for a file that this process is about to write."""
    return f"{TEMPORARY}{_machine_hash()}-{os.getpid()}-{secrets.token_hex(8)}"


def _machine_hash() -> str:
    return hashlib.sha256(machine().encode()).hexdigest()[:8]


def sweep(folder: Path, deep: bool = True) -> None:
    """Delete the temporary files in a local folder that no process can be writing any more.

    They are those of processes of this machine that have ended, and those of other machines, or of
    earlier versions, that nobody has written to for `LONG_AGO`. With `deep` also those in the
    folders below.
    """
    here = _machine_hash()
    for place, below, names in os.walk(folder):
        if not deep:
            below.clear()
        for name in names:
            found = _TEMPORARY_NAME.fullmatch(name)
            if found is not None:
                with suppress(OSError):  # it was renamed just now, or belongs to another user
                    file = Path(place, name)
                    written = file.stat().st_mtime
                    if found["machine"] == here:
                        ended = not _may_write(int(found["process"]), written)
                    else:
                        ended = time.time() - written > LONG_AGO
                    if ended:
                        file.unlink()


def _may_write(process: int, written: float) -> bool:
    """Return whether a process of this machine runs that may have written a file at that time."""
    try:
        found = psutil.Process(process)
        is_later = found.create_time() > written + 1  # the number belongs to another process now
        return found.status() != psutil.STATUS_ZOMBIE and not is_later
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def replace_file(path: Path, chunks: Iterable[Buffer], sync: bool) -> None:
    """Write a local file under a temporary name beside `path`, then rename it to `path`.

    Args:
        path: the file; its folder is made where it is absent.
        chunks: the contents. When they raise, `path` is as it was and nothing is left behind.
        sync: whether the file has reached the disk when this returns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name())
    try:
        with temporary.open("xb") as file:
            file.writelines(chunks)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Make a file or a folder reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def upload(filesystem: fs.FileSystem, path: str, chunks: Iterable[Buffer]) -> None:
    """Upload an object to S3; when `chunks` raise, the bucket is as it was.

    Args:
        filesystem: pyarrow's for the bucket.
        path: `bucket/key`.
        chunks: the contents.
    """
    stream = filesystem.open_output_stream(path, compression=None)
    try:
        waiting = 0
        for chunk in chunks:
            stream.write(chunk)
            waiting += len(chunk)
            if waiting >= IN_FLIGHT:
                stream.flush()
                waiting = 0
    except BaseException:
        _abandon(stream)
        raise
    stream.close()


def _abandon(stream: NativeFile) -> None:
    """Keep an upload from ever being completed.

    pyarrow 26 cannot abort an upload (https://github.com/apache/arrow/issues/40502): closing the
    stream publishes what was written so far, and so does collecting it as garbage. One reference
    more than Python counts keeps the stream in memory until the process ends, and with it at most
    the buffer of one part. S3 shows an upload that was not completed to nobody.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))
