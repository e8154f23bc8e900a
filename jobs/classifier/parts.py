"""Images to predict: found by folder, glob or path, split into parts, read part by part.

A part is the unit of work and of retry: some image files, or rows of a row group of a Parquet file.
Ray carries only names and row numbers; the worker of a part reads its images itself.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.run.config import ConfigError
from jobs.storage.errors import explain
from jobs.storage.location import Location, StorageError
from vit.data.decode import DataError
from vit.data.parquet import cells, image_column
from vit.data.reader import some
from vit.data.walk import EXTENSIONS, is_hidden, shown, suffixes, walk

PART = 256
"""Images of a part: what each worker loses when the job is killed."""
FOOTERS = 16
"""Parquet footers that are read at a time: in S3 their latency dominates."""
GROUP_PARTS = 8
"""Parts of a row group, about: each part reads the group from its start."""
MOST = 4096
"""Most images of a part of a large row group."""
BUFFER = 8 << 20
"""Bytes of a Parquet file that are read at a time, instead of a whole column chunk."""


@dataclass(frozen=True)
class Part:
    """A unit of work: some image files, or rows of one Parquet file."""

    name: str
    """Name of its file of predictions, without the extension."""
    paths: tuple[str, ...]
    """The image files, or the Parquet file."""
    group: int | None = None
    """Number of the row group in the Parquet file; None for image files."""
    first: int = 0
    """The row group's first row, counted from the start of the file."""
    start: int = 0
    """The part's first row, counted from the start of the row group."""
    stop: int = 0
    """The row after the part's last one, counted from the start of the row group."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths) if self.group is None else self.stop - self.start


@dataclass(frozen=True)
class File:
    """A file of the input, as it was listed."""

    uri: str
    """Its absolute path, or its s3:// address."""
    state: tuple[int, int]
    """Size in bytes, and time of the last change in ns: a changed file is predicted again."""


def find(texts: Sequence[str]) -> list[File]:
    """List the images and Parquet files that folders, globs and paths name, in order, each once.

    A link to an image that is not there counts: its row will have an error.

    Raises:
        ConfigError: some texts name no image or Parquet file, or what they name cannot be listed;
            the message lists them.
    """
    found: dict[str, File] = {}
    faults = []
    for text in texts:
        place = Location.parse(text)
        wild = {*"*?"} & {*place.path} and not place.exists()  # names may have these, too
        listed = _glob(place) if wild else _below(place)
        use = {key: file for key, file in listed.files.items() if _is_input(file.uri)}
        others = [file.uri for key, file in listed.files.items() if key not in use]
        kinds = f" ({suffixes(others)})" if others else ""
        faults += listed.faults
        if not listed.files and not listed.faults and not place.exists():
            faults.append(f"{text}: no such file or folder")
        elif not use and not listed.faults:
            faults.append(
                f"{text}: {len(others)} files, none of which is an image or Parquet{kinds}"
            )
        elif others:
            print(f"{text}: {len(others):,} files that are not images are left out{kinds}")
        found |= {key: file for key, file in use.items() if key not in found}
    if faults:
        expected = f"expected images ({', '.join(EXTENSIONS)}) or .parquet files"
        raise ConfigError("\n  ".join([f"--data: {expected}", *some(faults)]))
    return list(found.values())


def _is_input(uri: str) -> bool:
    return _suffix(uri) in (*EXTENSIONS, ".parquet")


def _suffix(uri: str) -> str:
    path = Location.parse(uri).path if uri.startswith("s3://") else uri  # without options
    return PurePosixPath(path).suffix.lower()


@dataclass
class _Listed:
    """What a text of `--data` names."""

    files: dict[str, File]
    """By what names a file only once: its path without links to folders, or its address."""
    faults: list[str] = field(default_factory=list)
    """Lines on what cannot be listed."""


def _below(place: Location, may_hold: Callable[[str], bool] = lambda path: True) -> _Listed:
    """List the file at a place, or all files below it that are not hidden.

    Args:
        place: a file or folder.
        may_hold: whether a folder at a path may hold what is looked for, if it cannot be listed.
    """
    if place.local_path is None or not place.local_path.is_dir():
        listed = _Listed({})
        for entry in place.walk():
            if not any(map(is_hidden, entry.path.split("/"))):
                uri = str(place / entry.path if entry.path else place)
                key = uri if place.is_s3 else str(Path(uri).parent.resolve() / Path(uri).name)
                listed.files[key] = File(uri, (entry.size, entry.mtime_ns))
        return listed
    listing, real = walk({"": place.local_path})[0][""], place.local_path.resolve()
    for line in some(listing.links):
        print(line)
    broken = [path for path in listing.lost if _is_input(path) and Path(path).is_symlink()]
    listed = _Listed(
        {},
        [
            f"{shown(path)}: {why}"
            for path, why in listing.lost.items()
            if path not in broken and may_hold(path)
        ],
    )
    for path in sorted([*listing.files, *broken]):
        if shown(path) != path:
            listed.faults.append(f"{shown(path)}: a name that is not UTF-8; rename it")
        key = f"{real}{path.removeprefix(str(place.local_path))}"
        listed.files[key] = File(path, _state(Path(path)))
    return listed


def _state(path: Path) -> tuple[int, int]:
    """Return size and time of a file; zeros if it is not there, which its row will say."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


def _glob(place: Location) -> _Listed:
    """List the files whose path matches; the folder before the first wildcard is listed."""
    fixed = re.split(r"[*?]", place.path, maxsplit=1)[0].rpartition("/")[0]

    def may_hold(path: str) -> bool:
        """Compare as many parts as the path has; `**` matches any number."""
        parts = place.path.split("/")[: path.count("/") + 1]
        return any("**" in part for part in parts) or _matches("/".join(parts), path)

    listed = _below(replace(place, path=fixed or "/"), may_hold)
    matching = {
        key: file
        for key, file in listed.files.items()
        if _matches(place.path, Location.parse(file.uri).path)
    }
    return _Listed(matching, listed.faults)


def _matches(pattern: str, path: str) -> bool:
    """Return whether a whole path matches: `*` and `?` within a name, `**` across folders."""
    wild = {r"\*\*/": "(?:.*/)?", r"\*\*": ".*", r"\*": "[^/]*", r"\?": "[^/]"}
    expression = re.sub(
        r"\\\*\\\*/|\\\*\\\*|\\\*|\\\?", lambda match: wild[match[0]], re.escape(pattern)
    )
    return re.fullmatch(expression, path) is not None


def plan(files: Sequence[File], fingerprint: str) -> list[Part]:
    """Split the input into parts of PART images; parts of large row groups have up to MOST.

    A part is named by its number and by a key of its contents.

    Args:
        files: the input, from `find`.
        fingerprint: a hash of everything else that the predictions depend on.

    Raises:
        ConfigError: some Parquet files cannot be used; the message lists them.
    """
    images = [file for file in files if _suffix(file.uri) != ".parquet"]
    tables = [file for file in files if _suffix(file.uri) == ".parquet"]
    states = {file.uri: file.state for file in files}
    chunks = (images[start : start + PART] for start in range(0, len(images), PART))
    parts = [Part("", tuple(file.uri for file in chunk)) for chunk in chunks]
    faults = []
    with ThreadPoolExecutor(FOOTERS) as pool:
        for result in pool.map(_split, [file.uri for file in tables]):
            if isinstance(result, str):
                faults.append(result)
            else:
                parts += result
    if faults:
        raise ConfigError("\n  ".join(["--data: Parquet files that cannot be used:", *faults]))
    return [
        replace(part, name=f"part-{number:05d}-{_key(fingerprint, part, states)}")
        for number, part in enumerate(parts)
    ]


def _key(fingerprint: str, part: Part, states: dict[str, tuple[int, int]]) -> str:
    """Return the key of a part, which changes with all that its predictions depend on."""
    contents = [fingerprint, asdict(part), [states[path] for path in part.paths]]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:12]


def _split(uri: str) -> list[Part] | str:
    """Return the parts of a Parquet file, or a message why it cannot be used."""
    try:
        with Location.parse(uri).open() as stream, pq.ParquetFile(stream) as file:
            image_column(file.schema_arrow)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    except (DataError, pa.ArrowException, OSError) as error:
        return f"{uri}: {error}"
    firsts = itertools.accumulate(sizes, initial=0)
    return [
        Part("", (uri,), group, first, start, min(start + step, size))
        for group, (size, first) in enumerate(zip(sizes, firsts, strict=False))
        for step in (min(MOST, max(PART, -(-size // GROUP_PARTS))),)
        for start in range(0, size, step)
    ]


Read = Callable[[], bytes]
"""Returns an image's bytes. Raises DataError if only this image cannot be read, StorageError if
storage fails."""


def images_of(part: Part) -> Iterator[tuple[str, int | None, Read]]:
    """Yield each image of a part: its file, its row there (None: no table), how to read it."""
    if part.group is None:
        for path in part.paths:
            yield path, None, partial(_file, Location.parse(path))
        return
    uri, row = part.paths[0], part.start
    try:
        for value in _cells(Location.parse(uri), part):
            yield uri, part.first + row, partial(_cell, value)
            row += 1
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        if "AWS Error" in str(error):  # storage fails, not the file: stop, to resume later
            raise explain("read", uri, error) from error
        for lost in range(row, part.stop):
            yield uri, part.first + lost, partial(_lost, str(error))


def _cells(place: Location, part: Part) -> Iterator[bytes | DataError]:
    """Yield the cells of a Parquet part; earlier rows of its row group are read and skipped."""
    done = 0
    with place.open() as stream, pq.ParquetFile(stream, buffer_size=BUFFER) as file:
        column = image_column(file.schema_arrow)
        for batch in file.iter_batches(PART, row_groups=[part.group], columns=[column]):
            start, stop = max(0, part.start - done), max(0, part.stop - done)
            yield from cells(batch.column(0)[start:stop])
            done += len(batch)
            if done >= part.stop:
                return


def _file(place: Location) -> bytes:
    """Return an image file's bytes; raises DataError if only this file cannot be read."""
    try:
        return place.read_bytes()
    except StorageError as error:
        if place.local_path is None and place.exists():
            raise  # storage fails, not this image: stop, to resume later
        raise DataError(str(error)) from error


def _cell(value: bytes | DataError) -> bytes:
    """Return a cell of a table; raises the DataError that stands there instead."""
    if isinstance(value, DataError):
        raise value
    return value


def _lost(reason: str) -> bytes:
    """Raise DataError for an image that a damaged part of a file holds."""
    raise DataError(f"its part of the Parquet file cannot be read: {reason}")
