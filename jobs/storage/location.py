"""One kind of path for local folders and object storage.

A `Location` is a local path or `s3://bucket/prefix`. What is written to one is published by a
single act (the rename of a file, the completion of an upload): it is there whole or not at all.

S3 goes through pyarrow, which reads the usual settings itself: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, and AWS_REGION (on AWS proper, pyarrow finds
the bucket's region itself). They must be set in every process, Ray's workers included. The URI may
carry pyarrow's options: `s3://bucket/prefix?endpoint_override=host:9000&scheme=http`. Any other
question mark belongs to the key.
"""

import errno
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

from pyarrow import fs

from jobs.storage.errors import StorageError as StorageError
from jobs.storage.errors import explain, explained, is_transient
from jobs.storage.publish import TEMPORARY, Buffer, replace_file, upload
from jobs.storage.uri import check_text, has_options, split_s3

CHUNK = 8 << 20
"""Bytes read or written at a time."""
COPIES = 8
"""Files of a tree that are copied at a time: on S3 a small file is all latency."""
READ_WAITS = (0.2, 1.0, 3.0)
"""Seconds before each further attempt at a read from S3 that was cut off."""


@dataclass(frozen=True)
class Entry:
    """A file or folder, as listed."""

    path: str
    """Path relative to the listed folder, with slashes; empty for a file that was itself walked."""
    size: int
    """Size in bytes; 0 for a folder."""
    mtime_ns: int
    """Last change in ns since 1970, to the second in S3; 0 for a folder in S3."""
    is_folder: bool = False

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Location:
    """A file or folder on a local disk or in S3. Small, immutable, and safe to send to a worker."""

    path: str
    """The path for pyarrow's file systems: absolute and local, or `bucket/prefix`."""
    is_s3: bool = False
    query: str = ""
    """pyarrow's options for S3, as the URI carries them after its `?`."""

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> "Location":
        """Read `runs/demo`, `/abs/path`, `~/path`, `file:///abs/path` or `s3://bucket/prefix`.

        A relative path is made absolute here, so it means the same in every process. What follows
        `s3://` is taken literally (no percent-encoding), up to a `?` with pyarrow's options.

        Raises:
            StorageError: `text` is empty, of another scheme, without a bucket, has credentials, an
                option that does not exist, an empty name between slashes, or is no text in UTF-8.
        """
        text = os.fspath(text)
        check_text(text)
        scheme, _, rest = text.partition("://")
        if scheme == "s3" and rest:
            bucket, key, query = split_s3(text)
            return cls(bucket, is_s3=True, query=query) / key.removesuffix("/")
        if scheme == "file" and rest.startswith("/"):
            return cls.parse(str(Path(unquote(rest))))
        if not text or re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:/", text):
            raise StorageError(
                f"'{text}' is neither a path nor an s3:// URI: give a path, or s3://bucket/prefix"
            )
        home = text == "~" or text.startswith("~/")  # ~tmp.mp4 is a name
        return cls(str((Path(text).expanduser() if home else Path(text)).absolute()))

    def __truediv__(self, name: str) -> "Location":
        """The location `name`, one part or several with slashes, below this folder."""
        parts = [part for part in name.split("/") if part]
        if self.is_s3 and "//" in f"/{name}" and name:
            raise StorageError(
                f"'{name}' below {self} has an empty name between slashes; pyarrow reads no such"
                " key of S3: copy the object to a key without //"
            )
        if {".", ".."} & set(parts):
            raise StorageError(
                f"'{name}' cannot be joined to {self}: it contains '.' or '..'; give a plain name"
            )
        return Location("/".join([self.path.rstrip("/"), *parts]) or "/", self.is_s3, self.query)

    def __str__(self) -> str:
        """The URI, or the plain path of a local one; `parse` reads it back."""
        if not self.is_s3:
            return self.path
        if self.query:
            return f"s3://{self.path}?{self.query}"
        return f"s3://{self.path}" + ("?" if has_options(self.path.rstrip("?")) else "")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> "Location":
        """The folder that contains this file or folder."""
        return Location(self.path.rpartition("/")[0] or "/", self.is_s3, self.query)

    @property
    def local_path(self) -> Path | None:
        """The path of a local file or folder; None in S3."""
        return None if self.is_s3 else Path(self.path)

    @property
    def filesystem(self) -> fs.FileSystem:
        """pyarrow's file system in which `path` is valid."""
        if not self.is_s3:
            return fs.LocalFileSystem()
        settings = tuple(sorted(i for i in os.environ.items() if i[0].startswith("AWS_")))
        with explained("reach", self):
            return _s3(self.path.partition("/")[0], self.query, settings, os.getpid())

    def ray_storage(self) -> tuple[str, fs.FileSystem | None]:
        """`storage_path` and `storage_filesystem` for Ray's RunConfig.

        Ray pickles the file system with its endpoint, but without the credentials and the region
        that it took from the environment: its processes need the AWS variables too.
        """
        return self.path, self.filesystem if self.is_s3 else None

    def open(self) -> BinaryIO:
        """Open a file for reading, with seek; reads from S3 are ranged requests."""
        with explained("read", self):
            return cast(BinaryIO, self.filesystem.open_input_file(self.path))

    def read_bytes(self) -> bytes:
        """The contents of the file. Raises StorageError, with errno ENOENT when it is absent."""
        return b"".join(self._chunks())

    def read_text(self) -> str:
        """The text of the whole file, in UTF-8."""
        return self.read_bytes().decode()

    def read_json(self) -> Any:
        """The value in a JSON file. Raises StorageError when the file is not JSON."""
        try:
            return json.loads(self.read_bytes())
        except ValueError as error:
            raise StorageError(f"{self} is not JSON: {error}") from error

    def write_bytes(self, data: Buffer) -> None:
        """Publish a file whole, in place of an earlier one; makes the folders above it.

        Raises:
            StorageError: an earlier file is then as it was, and nothing is left behind.
        """
        view = memoryview(data).cast("B")
        self._write(view[start : start + CHUNK] for start in range(0, len(view), CHUNK))

    def write_text(self, text: str) -> None:
        """Publish a text file in UTF-8, as `write_bytes` does."""
        self.write_bytes(text.encode())

    def write_json(self, value: object) -> None:
        """Publish a value as a JSON file, as `write_bytes` does."""
        self.write_text(json.dumps(value, indent=2) + "\n")

    def upload(self, source: Path) -> None:
        """Copy a local file here, or a folder's files below here, each published whole."""
        copy_all(Location.parse(source), self)

    def download(self, target: Path) -> None:
        """Copy this file to a local path, or this folder's files below it, each published whole."""
        copy_all(self, Location.parse(target))

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        return bool(self._info().type != fs.FileType.NotFound)

    def list(self) -> tuple[Entry, ...]:
        """Files and folders directly in this folder, sorted by name; none when it is absent."""
        return self._entries(recursive=False)

    def walk(self) -> tuple[Entry, ...]:
        """All files below this folder, sorted by path: of a file itself, of an absent one none.

        Links are followed, but each folder is listed once: a link to a folder above it has no end.
        """
        info = self._info()
        if info.type == fs.FileType.File:
            return (Entry("", info.size, info.mtime_ns),)
        if self.is_s3:
            return tuple(entry for entry in self._entries(recursive=True) if not entry.is_folder)
        return tuple(sorted(self._local_files(), key=lambda entry: entry.path))

    def _local_files(self) -> Iterator[Entry]:
        """Yield the files below a local folder, in no order; real folders come before links."""
        seen, folders, links = set[tuple[int, int]](), [""], list[str]()
        while folders or links:
            below = folders.pop() if folders else links.pop(0)
            place = self / below if below else self
            try:
                state = Path(place.path).stat()
            except OSError:  # absent, or removed meanwhile
                continue
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            for entry in place.list():
                path = f"{below}/{entry.path}" if below else entry.path
                if not entry.is_folder:
                    yield replace(entry, path=path)
                elif Path(place.path, entry.path).is_symlink():
                    links.append(path)
                else:
                    folders.append(path)

    def move(self, target: "Location") -> None:
        """Rename a file within the same storage; a file at `target` is replaced.

        Atomic on a local disk; in S3 a copy on the server, then a deletion.
        """
        with explained("move", self):
            if not target.is_s3:
                Path(target.path).parent.mkdir(parents=True, exist_ok=True)
            self.filesystem.move(self.path, target.path)

    def delete(self) -> None:
        """Delete a file, or a folder with everything below it; nothing happens if it is absent."""
        with explained("delete", self), suppress(FileNotFoundError):
            if self._info().type == fs.FileType.Directory:
                self.filesystem.delete_dir(self.path)
            else:
                self.filesystem.delete_file(self.path)

    def _info(self) -> fs.FileInfo:
        with explained("inspect", self):
            return self.filesystem.get_file_info(self.path)

    def _entries(self, recursive: bool) -> tuple[Entry, ...]:
        selector = fs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        with explained("list", self):
            found = self.filesystem.get_file_info(selector)
        try:
            paths = [info.path for info in found]
        except UnicodeDecodeError as error:
            raise StorageError(
                f"a name below {self} is not UTF-8: {error.object!r}; rename it"
            ) from error
        if self.is_s3:
            self._check_names(paths)
        entries = [
            Entry(
                path.removeprefix(self.path).lstrip("/"),
                info.size or 0,
                info.mtime_ns or 0,
                info.type == fs.FileType.Directory,
            )
            for path, info in zip(paths, found, strict=True)
        ]
        visible = (entry for entry in entries if not entry.name.startswith(TEMPORARY))
        return tuple(sorted(visible, key=lambda entry: entry.path))

    def _check_names(self, paths: Iterable[str]) -> None:
        for path in paths:
            name = path.removeprefix(f"{self.path}/")
            if name in ("", self.path) or "//" in f"/{name}/":
                raise StorageError(
                    f"a key below {self} has an empty name between slashes: {path!r}; pyarrow reads"
                    " no such key of S3: delete the object, or copy it to a key without //"
                )

    def _chunks(self) -> Iterator[bytes]:
        """The contents piece by piece; a read from S3 that is cut off resumes where it stopped."""
        position, failures = 0, 0
        with explained("read", self):
            while True:
                try:
                    with self.filesystem.open_input_file(self.path) as file:
                        file.seek(position)
                        while chunk := file.read(CHUNK):
                            position, failures = position + len(chunk), 0
                            yield chunk
                    return
                except OSError as error:
                    failures += 1
                    if failures > len(READ_WAITS) or not (self.is_s3 and is_transient(error)):
                        raise
                    time.sleep(READ_WAITS[failures - 1])

    def _write(self, chunks: Iterable[Buffer], sync: bool = True) -> None:
        with explained("write", self):
            if self.is_s3:
                upload(self.filesystem, self.path, chunks)
            else:
                replace_file(Path(self.path), chunks, sync)


@lru_cache
def _s3(bucket: str, query: str, _settings: object, _pid: int) -> fs.FileSystem:
    """Connect to S3; one connection per process (a fork must not share sockets) and AWS settings.

    From a URI, because only so does pyarrow read AWS_ENDPOINT_URL and find the bucket's region.
    Delayed open makes a small file one request instead of three.
    """
    query = "&".join(filter(None, ("allow_delayed_open=true", query)))
    return fs.FileSystem.from_uri(f"s3://{bucket}?{query}")[0]


def check_writable(folder: Location) -> None:
    """Check, before workers start, that `folder` can be written to: write and delete a file there.

    Raises:
        StorageError: it cannot be written to; the message says why and names the remedy.
    """
    probe = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
    probe.write_bytes(b"may this be written?")
    probe.delete()


def copy_all(
    source: Location,
    target: Location,
    advance: Callable[[int], None] = lambda size: None,
    sync: bool = True,
) -> None:
    """Copy a file or a tree, each file published whole.

    Args:
        source: a file, or a folder whose files are copied.
        target: the file, or the folder for the files.
        advance: called with the number of bytes that have just arrived, from several threads.
        sync: whether local copies have reached the disk when this returns.

    Raises:
        StorageError: `source` is absent or cannot be read, or `target` cannot be written.
    """

    def copy(path: str) -> None:
        (target / path)._write(_counted((source / path)._chunks(), advance), sync)

    files = source.walk()
    if not files and not source.exists():
        raise explain("read", source, FileNotFoundError(errno.ENOENT, ""))
    with ThreadPoolExecutor(COPIES, thread_name_prefix="copy") as pool:
        for _ in pool.map(copy, [file.path for file in files]):
            pass


def _counted(chunks: Iterable[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        advance(len(chunk))
