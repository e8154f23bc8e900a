"""The cache of a node for downloads and mirrors of S3, filled once however many processes ask."""

import errno
import hashlib
import os
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import cast
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from jobs.storage.errors import StorageError, explain, explained
from jobs.storage.location import CHUNK, Entry, Location, copy_all
from jobs.storage.prune import KEPT_DAYS_LOW, is_low, prune_cache
from jobs.storage.publish import TEMPORARY, sync_path

RETRY_WAITS = (0.5, 2.0, 5.0)
"""Seconds to wait before each further attempt at an interrupted download."""
HTTP_TIMEOUT = 30.0
"""Seconds of silence after which a download counts as interrupted."""


def cache_folder() -> Path:
    """Folder of this node's cache: PATCHRAY_CACHE, else ~/.cache/patchray."""
    return Path(os.environ.get("PATCHRAY_CACHE") or "~/.cache/patchray").expanduser().absolute()


def once(path: Path, make: Callable[[Path], None]) -> Path:
    """Make `path`, a file or a folder, unless it exists: once, however many processes ask.

    Args:
        path: on a local disk; when it exists it is complete.
        make: makes the file or folder at the path that it is given, a free name beside `path`.

    Returns:
        `path`.

    Raises:
        StorageError: the folder above `path` cannot be written to.
        Exception: whatever `make` raises. Nothing is left behind then, and the next process that
            waits makes its own attempt.
    """
    if path.exists():
        return path
    with explained("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f"{TEMPORARY}{path.name}.lock")).acquire()
    with lock:
        if not path.exists():
            make_room(path.parent)
            _make(path, make)
    return path


def make_room(folder: Path) -> None:
    """Delete what nobody used lately from the cache, if the disk of `folder` is nearly full."""
    if is_low(folder) and (pruned := prune_cache(cache_folder(), KEPT_DAYS_LOW)):
        print(
            f"the disk of {folder} is nearly full: deleted {len(pruned):,} things from the cache"
            f" that were not used for {KEPT_DAYS_LOW:g} days, {sum(pruned.values()) / 1e9:.1f} GB",
            flush=True,
        )


def _make(path: Path, make: Callable[[Path], None]) -> None:
    part = path.with_name(f"{TEMPORARY}{path.name}.part")
    _remove(part)  # left by a process that was killed
    try:
        make(part)
        for file in [part, *part.rglob("*")]:
            sync_path(file)
        part.replace(path)
    except BaseException:
        _remove(part)
        raise
    sync_path(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def localize(location: Location) -> Path:
    """A local path with the contents of `location`: itself, or a mirror of S3 in the node's cache.

    A mirror holds one state of the files: a changed name, size or time of any of them gives a new
    one. Old mirrors stay until `jobs.prune` deletes them, or the disk is nearly full.

    Raises:
        StorageError: `location` is absent, or changed while it was copied.
    """
    if (path := location.local_path) is not None:
        return path
    files = _files(location)
    state = hashlib.sha256(repr((str(location), files)).encode()).hexdigest()[:16]
    place = cache_folder() / "mirrors" / state / location.name
    return once(place, lambda part: _mirror(location, files, part))


def localize_in(folder: Path, location: Location) -> Path:
    """A local path with the contents of `location`: itself, or a mirror of S3 in `folder`.

    The caller deletes `folder`: this is for files that are read once, of which a node's disk could
    not hold all.

    Raises:
        StorageError: `location` is absent, or changed while it was copied.
    """
    if (path := location.local_path) is not None:
        return path
    _mirror(location, _files(location), folder / location.name)
    return folder / location.name


def _files(location: Location) -> tuple[Entry, ...]:
    files = location.walk()
    if not files:
        raise explain("read", location, FileNotFoundError(errno.ENOENT, ""))
    return files


def _mirror(location: Location, files: tuple[Entry, ...], target: Path) -> None:
    with _progress(str(location), sum(file.size for file in files)) as advance:
        copy_all(location, Location.parse(target), advance, sync=False)
    if location.walk() != files:
        raise StorageError(
            f"{location} changed while it was copied; run again when nobody writes to it"
        )


def fetch(url: str, *, sha256: str, cache: Path | None = None) -> Path:
    """Download a file once a node and check it; an interrupted download resumes where it stopped.

    Args:
        url: of scheme http, https, file or s3, or a local path.
        sha256: SHA-256 of the file, in hex. It is the key of the cache: another URL of the same
            file is a hit.
        cache: folder to keep the file in; by default `cache_folder()`.

    Raises:
        StorageError: the file cannot be downloaded, or does not have the checksum.
    """
    name = PurePosixPath(unquote(urlsplit(url).path)).name or "file"
    path = (cache or cache_folder()) / "files" / sha256.lower()[:16] / name
    unfinished = path.with_name(f"{TEMPORARY}{name}.download")

    def download(part: Path) -> None:
        if url.startswith(("http://", "https://")):
            _download(url, unfinished)
        else:
            copy_all(Location.parse(url), Location.parse(unfinished), sync=False)
        _check(unfinished, sha256, url)
        unfinished.replace(part)

    return once(path, download)


def _check(file: Path, sha256: str, url: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256.lower():
        file.unlink()
        raise StorageError(
            f"{url} is not the file that was expected: its SHA-256 is {found}, not"
            f" {sha256.lower()}. The download is deleted; run again. If this happens again,"
            " correct the checksum"
        )


class _InterruptedError(Exception):
    """A transfer that was interrupted; another attempt may succeed."""


def _download(url: str, target: Path) -> None:
    """Download over HTTP in a few attempts, each of which resumes where `target` ends."""
    for wait in (*RETRY_WAITS, None):
        try:
            _transfer(url, target)
            return
        except _InterruptedError as error:
            if wait is None:
                raise StorageError(
                    f"cannot download {url}: {error}; run again to resume the download"
                ) from error
            time.sleep(wait)


def _transfer(url: str, target: Path) -> None:
    start = target.stat().st_size if target.exists() else 0
    with _requested(url, start) as response, explained("write", target):
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # everything had arrived before; the checksum decides
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            start = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with target.open("ab" if start else "wb") as file, _progress(url, total, start) as advance:
            for chunk in _received(response):
                file.write(chunk)
                advance(len(chunk))
    if total is not None and target.stat().st_size < total:
        raise _InterruptedError(f"{target.stat().st_size} of {total} bytes arrived")


def _requested(url: str, start: int) -> HTTPResponse:
    """The response to a GET of the bytes from `start` onwards; 416 counts as a response, too."""
    headers = {"User-Agent": "patchray"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        request = urllib.request.Request(url, headers=headers)
        return cast(HTTPResponse, urllib.request.urlopen(request, timeout=HTTP_TIMEOUT))
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return cast(HTTPResponse, error)
        if error.code in {408, 429} or error.code >= 500:
            raise _InterruptedError(f"the server says {error.code} {error.reason}") from error
        raise StorageError(
            f"cannot download {url}: the server says {error.code} {error.reason}; check the URL"
        ) from error
    except (OSError, HTTPException) as error:
        raise _InterruptedError(str(getattr(error, "reason", error))) from error


def _received(response: HTTPResponse) -> Iterator[bytes]:
    try:
        # read1 returns what has arrived, so that no byte is lost when the connection ends.
        while chunk := response.read1(CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _InterruptedError(str(error)) from error


@contextmanager
def _progress(what: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Print the progress of a transfer on stderr.

    Yields a function to call with the number of bytes that have just arrived.
    A terminal has one line that is rewritten, a log a line every ten seconds; a transfer that ends
    before the first of them prints nothing.
    """
    terminal = sys.stderr.isatty()
    interval = 0.2 if terminal else 10.0
    due = time.monotonic() + interval
    lock = threading.Lock()
    end, shown = "\r" if terminal else "\n", False

    def advance(size: int) -> None:
        nonlocal done, due, shown
        with lock:
            done += size
            if time.monotonic() < due:
                return
            due, shown = time.monotonic() + interval, True
            of = "" if total is None else f" of {total / 1e6:.0f} MB ({done / max(total, 1):.0%})"
            sys.stderr.write(f"fetching {what}: {done / 1e6:.0f}{of or ' MB'}{end}")
            sys.stderr.flush()

    try:
        yield advance
    finally:
        if terminal and shown:
            sys.stderr.write("\n")
