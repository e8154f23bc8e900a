"""Publish a file by a single act, so that it is there whole or not at all.

On a local disk the act is a rename; in S3 it is the completion of an upload.
"""

import ctypes
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from pyarrow import NativeFile, fs

Buffer: TypeAlias = bytes | bytearray | memoryview

IN_FLIGHT = 64 << 20
"""Bytes of one upload that may wait in memory; pyarrow itself sets no limit."""
TEMPORARY = ".patchray-"
"""Prefix of names that nobody reads: files being written, or left by a process that was killed."""


def replace_file(path: Path, chunks: Iterable[Buffer], sync: bool) -> None:
    """Write a local file under a temporary name beside `path`, then rename it to `path`.

    Args:
        path: the file; its folder is made where it is absent.
        chunks: the contents. When they raise, `path` is as it was and nothing is left behind.
        sync: whether the file has reached the disk when this returns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(TEMPORARY + secrets.token_hex(8))
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
