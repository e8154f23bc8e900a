"""Local files to uint8 arrays, a validation split, and the samples of every global batch.

A data set is decoded once a node: its pixels are written to the cache as .npy files, which every
process of the node maps into memory, so that all of them share the same pages. Training and
validation set are two lists of rows of one array. Which samples make a global batch is a function
of (seed, epoch, step), and a rank takes its part of it.

Legend: N images of a decoded array, n of them in a set, S the side of a square image in pixels.
Images are RGB, channels first, origin top left. Rows count from 0, in messages too.
"""

import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vit import rng
from vit.config import DatasetConfig
from vit.formats import DataError, Encoded, Ints, Pixels, Reader, fail, find, reading, split

_FORMAT = 1
"""Version of the cache's files and of the pixels in them: raise it when either changes."""
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Images:
    """A set of labelled images: rows of arrays that another set may share."""

    images: Pixels
    """(N, 3, S, S) uint8, mapped from the cache. Copy on write: no process can spoil another's."""
    labels: Ints
    """(N,) int64, indices into `Dataset.classes`."""
    rows: Ints
    """(n,) int64, ascending: which rows of `images` and `labels` belong to this set."""

    def __len__(self) -> int:
        """How many images the set has (n, not N)."""
        return len(self.rows)


@dataclass(frozen=True)
class Dataset:
    """The sets of a data set; every choice is made on `val`, `test` is read once, at the end."""

    train: Images
    val: Images
    test: Images | None
    classes: tuple[str, ...]
    """Names of the classes, by label."""


@dataclass(frozen=True)
class Summary:
    """What is known of a data set before its pixels are decoded: classes and sizes of the sets."""

    classes: tuple[str, ...]
    train: int
    val: int
    test: int | None


def check(config: DatasetConfig, paths: Sequence[Path]) -> Summary:
    """Find every fault that shows without decoding a pixel: paths, layout, columns, labels.

    Raises:
        DataError: as `load`, but for images that do not decode.
    """
    classes, labels = _survey(find(config, paths))
    train, val = _train_val(config, labels["train"], classes, "val" in labels)
    sizes = {name: len(values) for name, values in labels.items()}
    return Summary(classes, len(train), sizes.get("val", len(val)), sizes.get("test"))


def load(config: DatasetConfig, paths: Sequence[Path], image_size: int, cache: Path) -> Dataset:
    """Decode a data set into `cache` unless it is there, and map it into memory.

    Processes that call this at once for the same files decode once: the others wait. What a killed
    one leaves is never taken for done. The cache knows the files by path, size and time.

    Args:
        config: which data set, and how validation is held out.
        paths: local files or folders. digits: none. CIFAR: the archive, its folder (or the one
            around either), or Parquet files (or their folders). imagefolder: one folder.
        image_size: S. Other images are resized, bilinear with antialiasing, the shorter side to S,
            and their centre is cut out.
        cache: folder for decoded data sets; made if it is not there.

    Raises:
        DataError: a path, file, column, label or image is at fault, or the cache not writable.
    """
    reader = find(config, paths)
    folder = cache / f"{config.name}-{_fingerprint(config.name, image_size, reader.files())}"
    if not folder.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with folder.with_suffix(".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel if we are killed
                if not folder.is_dir():
                    _publish(reader, image_size, folder)
        except OSError as error:
            raise DataError(
                f"cannot keep the decoded data set in the cache {cache}: {error}; "
                "make room there or choose another folder"
            ) from error
    return _open(folder, config)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """How many whole global batches `n` samples make; the rest of an epoch's order is left out.

    Raises:
        DataError: `n` samples do not make one batch.
    """
    if not 0 < batch_size <= n:
        raise DataError(
            f"the global batch is {batch_size}, the training set has {n} images; "
            "the batch must be at least 1 and at most as large as the set"
        )
    return n // batch_size


def batch(n: int, batch_size: int, seed: int, epoch: int, step: int) -> Tensor:
    """The samples of global batch `step` of `epoch`, whatever the number of workers.

    Returns:
        (batch_size,) int64 positions in 0..n-1 on the CPU: a slice of the epoch's permutation.
    """
    steps = steps_per_epoch(n, batch_size)
    if not 0 <= step < steps:
        raise IndexError(f"step {step} of an epoch of {steps} steps")
    return _order(n, seed, epoch)[step * batch_size : (step + 1) * batch_size].clone()


@functools.lru_cache(maxsize=1)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    return rng.permutation(n, seed, "order", epoch)


def shard(indices: Tensor, rank: int, world: int) -> Tensor:
    """Rank `rank`'s part of `indices` (n,): contiguous, sizes differ by at most one, no padding.

    The parts of ranks 0..world-1 put together are `indices`, for every `world`; a part is empty
    where there are more ranks than indices. Evaluation shards torch.arange(n).
    """
    return indices.tensor_split(world)[rank]


def decode(image: Encoded, size: int) -> Pixels:
    """Decode one image to (3, size, size) uint8 RGB.

    EXIF orientation is applied, transparency dropped, an animation's first frame taken. Geometry is
    that of torchvision's Resize(size) and CenterCrop(size) on a PIL image; pixels agree to 1 of
    255 (of a square, exactly).

    Raises:
        DataError: the image does not decode; the message says why, not which image.
    """
    try:
        if isinstance(image, np.ndarray):
            return _channels_first(Image.fromarray(image), size)
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as picture:
            ImageOps.exif_transpose(picture, in_place=True)
            return _channels_first(picture, size)
    except UnidentifiedImageError:
        raise DataError("not an image of a format that Pillow knows") from None
    except Exception as error:  # Pillow's formats raise all kinds
        raise DataError(f"does not decode: {error or type(error).__name__}") from error


def _channels_first(picture: Image.Image, size: int) -> Pixels:
    picture = _square(_rgb(picture), size)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _rgb(picture: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB. Pillow would clip deeper grey to white."""
    if picture.mode in ("I", "F"):
        raise DataError(f"pixels of 32 bits (mode {picture.mode}); 8 or 16 were expected")
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert("RGB")


def _square(picture: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` and keep the centre: only that is ever computed."""
    width, height = picture.size
    if width == height == size:
        return picture
    short = min(width, height)
    scaled_width, scaled_height = int(size * width / short), int(size * height / short)
    left, top = round((scaled_width - size) / 2), round((scaled_height - size) / 2)
    box = (
        left * width / scaled_width,
        top * height / scaled_height,
        (left + size) * width / scaled_width,
        (top + size) * height / scaled_height,
    )
    return picture.resize((size, size), Image.Resampling.BILINEAR, box)


# --- The cache -----------------------------------------------------------------------------------


def _fingerprint(name: str, image_size: int, files: Iterable[Path]) -> str:
    digest = hashlib.sha256(f"{_FORMAT}\n{name}\n{image_size}\n".encode())
    for path in files:
        with reading(path):
            state = path.stat()
        digest.update(os.fsencode(path) + f"\n{state.st_size}\n{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _publish(reader: Reader, image_size: int, folder: Path) -> None:
    """Decode everything beside `folder`, then rename. The caller holds the folder's lock."""
    classes, labels = _survey(reader)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process
    partial.mkdir()
    try:
        faults = []
        for name, values in labels.items():
            np.save(partial / f"{name}.labels.npy", values)
            path = partial / f"{name}.images.npy"
            faults += _write_images(path, reader, name, (len(values), 3, image_size, image_size))
        fail(faults, "images cannot be used")
        about = {"classes": classes, "splits": list(labels)}
        (partial / "dataset.json").write_text(json.dumps(about))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_images(path: Path, reader: Reader, name: str, shape: tuple[int, ...]) -> list[str]:
    """Decode a set into one .npy file; returns the images that failed, one line each.

    Written as a stream, not through a map: a full disk is then an error, not a SIGBUS.
    """

    def attempt(item: tuple[str, Encoded | None]) -> tuple[str, Pixels | str]:
        where, image = item
        try:
            return where, "no image" if image is None else decode(image, shape[-1])
        except DataError as error:
            return where, str(error)

    faults = []
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for where, result in _in_order(attempt, reader.images(name), reader.threads):
            if isinstance(result, str):
                faults.append(f"{where}: {result}")
            else:
                file.write(result.data)
    return faults


def _in_order(function: Callable[[_T], _R], items: Iterator[_T], threads: int) -> Iterator[_R]:
    """Map in order, few items under way (ThreadPoolExecutor.map alone takes all at once)."""
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(itertools.islice(items, 32 * threads)):
            yield from pool.map(function, chunk)


def _open(folder: Path, config: DatasetConfig) -> Dataset:
    try:
        about = json.loads((folder / "dataset.json").read_text())
        arrays = {
            name: (
                np.load(folder / f"{name}.images.npy", mmap_mode="c"),
                np.load(folder / f"{name}.labels.npy"),
            )
            for name in about["splits"]
        }
    except (OSError, ValueError) as error:
        raise DataError(f"the cache {folder} is damaged ({error}); remove that folder") from error
    classes = tuple(about["classes"])
    sets = {name: Images(*pair, np.arange(len(pair[1]))) for name, pair in arrays.items()}
    train, val = _train_val(config, arrays["train"][1], classes, "val" in sets)
    return Dataset(
        train=Images(*arrays["train"], train),
        val=sets.get("val", Images(*arrays["train"], val)),
        test=sets.get("test"),
        classes=classes,
    )


# --- What is known before decoding ---------------------------------------------------------------


def _survey(reader: Reader) -> tuple[tuple[str, ...], dict[str, Ints]]:
    """Classes, and labels of each set in the order of its images; both checked."""
    classes, parts = reader.survey()
    faults = [
        f"{where}, row {row}: label {labels[row]}"
        for part in parts.values()
        for where, labels in part
        for row in np.flatnonzero((labels < 0) | (labels >= len(classes)))
    ]
    fail(faults, f"labels outside the {len(classes)} classes, 0 to {len(classes) - 1}")
    joined = {name: np.concatenate([labels for _, labels in part]) for name, part in parts.items()}
    empty = [f"{name}: {parts[name][0][0]}" for name, labels in joined.items() if not len(labels)]
    fail(empty, "sets without a single image")
    return classes, joined


def _train_val(
    config: DatasetConfig, labels: Ints, classes: Sequence[str], val_given: bool
) -> tuple[Ints, Ints]:
    """Rows of the training array to train on, and to validate on (none if `val_given`)."""
    if val_given:
        return np.arange(len(labels)), np.arange(0)
    train, val = split(labels, config.val_fraction, config.split_seed)
    if not len(val):
        raise DataError(
            f"dataset.val_fraction {config.val_fraction} of {len(labels)} training images is no "
            "image; raise it or bring a validation set"
        )
    lost = set(np.unique(labels)) - set(np.unique(labels[train]))
    fail(
        [classes[label] for label in sorted(lost)],
        f"classes have no image left to train on at dataset.val_fraction {config.val_fraction}",
    )
    return train, val
