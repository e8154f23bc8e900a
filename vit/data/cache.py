"""A data set on the disk of a node, made once: decoded, or packed where that would be too large.

`NAME-FINGERPRINT` holds the pixels of each set as .npy, which every process of the node maps;
`NAME-FINGERPRINT-packed` holds a `vit.data.decode.Pack` of the encoded images, or of their paths,
which `vit.data.feed` decodes ahead of the training. Both have the labels and dataset.json, and the
tracks of data from videos.

Images that do not decode are found here in both cases, before any training: a packed data set is
decoded once, on all processors of the node, which takes less than an epoch. So the sizes of sets,
the split and the order are those of the good images: they depend on the data only, not on the
number of workers or on a restart. No bad image is trained on or counted in an evaluation, and too
many of them end the job before it starts. Putting another image in the place of a bad one during
the training would be cheaper, but would keep none of this except the order.
"""

import hashlib
import itertools
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from filelock import FileLock

from vit.data.decode import DataError, Encoded, Pack, Pixels, decode, to_bytes
from vit.data.pool import faults
from vit.data.reader import Ints, Reader, Survey, UnreadableError, fail, reading

_FORMAT = 4
"""Version of the cache's files and of the pixels in them: raise it when either changes."""
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Place:
    """Where a data set is kept, and whether decoded or packed."""

    cache: Path
    """Folder of all data sets."""
    name: str
    """Name of this data set, with its fingerprint."""
    size: int
    """S, the side of its images in pixels."""
    most: float
    """Bytes that the pixels may take."""

    def fits(self, images: int) -> bool:
        """Whether this many images may be kept decoded."""
        return images * 3 * self.size * self.size <= self.most

    def folder(self, decoded: bool) -> Path:
        """Folder of the data set, decoded or else packed."""
        return self.cache / (self.name if decoded else f"{self.name}-packed")

    def made(self) -> Path | None:
        """Folder to use, if it has been made."""
        for decoded in (True, False):
            if self.folder(decoded).is_dir():
                images = about(self.folder(decoded))["images"]
                wanted = self.folder(self.fits(images))
                return wanted if wanted.is_dir() else None
        return None


def keep(name: str, reader: Reader, size: int, cache: Path, gigabytes: float) -> Path:
    """Decode or pack a data set unless that has been done; returns its folder.

    Processes that call this at once for the same files do it once: the others wait. The remains of
    a killed process are never used. Files are identified by path, size and time.

    Args:
        name: name of the data set.
        reader: source of its images.
        size: S, the side of the images in pixels.
        cache: folder for decoded and packed data sets; made where it is absent.
        gigabytes: GiB that the decoded images of all sets may take.

    Raises:
        DataError: a file or a label cannot be used, or the cache is not writable.
    """
    place = Place(
        cache, f"{name}-{_fingerprint(name, size, reader.files())}", size, gigabytes * 2**30
    )
    if folder := place.made():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{place.name}.lock"):  # the kernel releases it if we are killed
            return place.made() or _publish(reader, place)
    except OSError as error:
        raise DataError(
            f"cannot keep the data set in the cache {cache}: {error}; "
            "free some space there, or choose another folder for it"
        ) from error


def about(folder: Path) -> dict[str, Any]:
    """Read dataset.json: classes, splits, images (good and bad), bad, notes, tracks, crops.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
        return facts
    except (OSError, ValueError) as error:
        raise damaged(folder, error) from error


def damaged(folder: Path, error: Exception) -> DataError:
    """Say that a folder of the cache is damaged, and what to do."""
    return DataError(f"the cache {folder} is damaged ({error}); remove this folder and run again")


def labels_of(survey: Survey) -> dict[str, Ints]:
    """Join the labels of each set, (n,) int64 in the order of its images, and check them."""
    last = len(survey.classes) - 1
    outside = [
        f"{where}, row {row}: label {labels[row]}"
        for part in survey.parts.values()
        for where, labels in part
        for row in np.flatnonzero((labels < 0) | (labels > last))
    ]
    fail(outside, f"labels outside the {last + 1} classes, 0 to {last}")
    joined = {
        name: np.concatenate([labels for _, labels in part]) for name, part in survey.parts.items()
    }
    empty = [
        f"{name}: {survey.parts[name][0][0]}" for name, labels in joined.items() if not len(labels)
    ]
    fail(empty, "sets without a single image")
    return joined


def _fingerprint(name: str, size: int, files: Iterable[Path]) -> str:
    digest = hashlib.sha256(f"{_FORMAT}\n{name}\n{size}\n".encode())
    for path in files:
        with reading(path):
            state = path.stat()
        digest.update(os.fsencode(path) + f"\n{state.st_size}\n{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _publish(reader: Reader, place: Place) -> Path:
    """Make a data set beside its folder, then rename it. The caller holds the lock.

    It is made however many images are bad, so that a later run that allows them need not wait.
    """
    survey = reader.survey()
    labels = labels_of(survey)
    images = sum(map(len, labels.values()))
    folder = place.folder(place.fits(images))
    write = _write_pixels if place.fits(images) else _write_pack
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    partial.mkdir()
    try:
        found = write(partial, reader, survey, place.size)
        for name, values in labels.items():
            bad = list(found[name])
            np.save(partial / f"{name}.labels.npy", np.delete(values, bad))
            if survey.tracks is not None:
                tracks = np.delete(survey.tracks.numbers[name], bad)
                np.save(partial / f"{name}.tracks.npy", tracks)
        one_each = [(rows[row], 1) for rows in found.values() for row in sorted(rows)]
        facts = {
            "classes": survey.classes,
            "splits": list(labels),
            "images": images,
            "bad": [*survey.bad, *one_each],
            "notes": survey.notes,
            "tracks": None if survey.tracks is None else survey.tracks.names,
            "crops": survey.crops,
        }
        (partial / "dataset.json").write_text(json.dumps(facts))
        for path in [*partial.iterdir(), partial]:
            _sync(path)  # else a power cut may leave a folder with black images
        partial.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


BadRows = dict[str, dict[int, str]]
"""By set, the rows whose image is bad, with a line on each."""


def _write_pixels(folder: Path, reader: Reader, survey: Survey, size: int) -> BadRows:
    """Decode each set into one .npy file; returns the rows that do not decode.

    The file is written as a stream, not through a map, so that a full disk raises an error, not
    SIGBUS.
    """
    found: BadRows = {name: {} for name in survey.parts}
    for name, bad in found.items():
        count = sum(len(labels) for _, labels in survey.parts[name])
        with (folder / f"{name}.images.npy").open("wb") as file:
            _write_header(file, (count, 3, size, size))
            results = _in_order(_decoder(size), reader.images(name), reader.threads)
            for row, result in enumerate(results):
                if isinstance(result, str):
                    bad[row] = result
                else:
                    file.write(result.data)
            file.seek(0)
            _write_header(file, (count - len(bad), 3, size, size))
    return found


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    """Write a .npy header; its length is the same for any number of images."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _decoder(size: int) -> Callable[[tuple[str, Encoded | DataError]], Pixels | str]:
    """Return a function that decodes an image, or returns a line on where and what its fault is."""

    def attempt(item: tuple[str, Encoded | DataError]) -> Pixels | str:
        where, image = item
        try:
            return f"{where}: {image}" if isinstance(image, DataError) else decode(image, size)
        except DataError as error:
            return f"{where}: {error}"
        except OSError as error:
            raise UnreadableError(f"{where} cannot be read: {error}") from error

    return attempt


def _in_order(function: Callable[[_T], _R], items: Iterator[_T], threads: int) -> Iterator[_R]:
    """Map in order, with few items under way; ThreadPoolExecutor.map would read all at once."""
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(itertools.islice(items, 32 * threads)):
            yield from pool.map(function, chunk)


def _write_pack(folder: Path, reader: Reader, survey: Survey, size: int) -> BadRows:
    """Pack the images of all sets, one after the other, then try to decode them all."""
    found: BadRows = {name: {} for name in survey.parts}
    rows = {name: array("q") for name in survey.parts}  # those that are packed
    lengths, kind = array("q"), "images"
    with (folder / "entries").open("wb") as file:
        for name, row, (where, image) in _numbered(reader, survey.parts):
            if isinstance(image, DataError):
                found[name][row] = f"{where}: {image}"
                continue
            kind = "paths" if isinstance(image, Path) else "images"
            rows[name].append(row)
            lengths.append(file.write(to_bytes(image)))
    (folder / "entries").rename(folder / kind)
    sizes = np.array(lengths, np.int64)
    index = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)
    np.save(folder / "index.npy", index)
    pack = Pack(folder, size)
    bad = dict(faults(pack, len(os.sched_getaffinity(0))))
    first = 0
    for name, kept in rows.items():
        for packed in (row for row in bad if first <= row < first + len(kept)):
            row = kept[packed - first]
            where = pack.place(packed) if pack.paths else _where(survey.parts[name], row)
            found[name][row] = f"{where}: {bad[packed]}"
        first += len(kept)
    (folder / "index.npy").unlink()  # the pack still maps it
    np.save(folder / "index.npy", np.delete(index, list(bad), axis=0))
    return found


def _numbered(
    reader: Reader, names: Iterable[str]
) -> Iterator[tuple[str, int, tuple[str, Encoded | DataError]]]:
    """Yield the images of all sets, each with its set and row."""
    for name in names:
        for row, item in enumerate(reader.images(name)):
            yield name, row, item


def _where(parts: Iterable[tuple[str, Ints]], row: int) -> str:
    """Name the file in which a set's `row` lies, and the row in that file."""
    for where, labels in parts:
        if row < len(labels):
            return f"{where}, row {row}"
        row -= len(labels)
    raise IndexError(row)
