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
import pickle
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vit import rng
from vit.config import DatasetConfig

_FORMAT = 1
"""Version of the cache's files and of the pixels in them: raise it when either changes."""
_SPLITS = ("train", "val", "test")
_LISTED = 5
"""Faults that a message lists before it only counts them."""
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""torchvision's IMG_EXTENSIONS."""
_CIFAR_EXPECTED = (
    "cifar-{0}-python.tar.gz (from https://www.cs.toronto.edu/~kriz/cifar.html), its unpacked "
    "folder, or Parquet files train*.parquet and test*.parquet (val*.parquet if there is one), "
    "with columns image and label"
)
_EXPECTED = {
    "digits": "no path: scikit-learn brings them along",
    "cifar10": _CIFAR_EXPECTED.format(10),
    "cifar100": _CIFAR_EXPECTED.format(100),
    "imagefolder": "one folder with train/ (and val/, test/ if there are any), each with a folder "
    "of images for every class; or one folder of class folders",
}

_T = TypeVar("_T")
_R = TypeVar("_R")
_Ints = NDArray[np.int64]
_Pixels = NDArray[np.uint8]
Encoded = bytes | Path | _Pixels
"""An image before decoding: a file's bytes, its path, or (H, W) or (H, W, 3) uint8 pixels."""


class DataError(ValueError):
    """Data that cannot be used; the message says what, where, and what was expected."""


@dataclass(frozen=True)
class Images:
    """A set of labelled images: rows of arrays that another set may share."""

    images: _Pixels
    """(N, 3, S, S) uint8, mapped from the cache. Copy on write: no process can spoil another's."""
    labels: _Ints
    """(N,) int64, indices into `Dataset.classes`."""
    rows: _Ints
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
    classes, labels = _survey(_find(config, paths))
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
    reader = _find(config, paths)
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


def split(labels: _Ints, fraction: float, *key: int | str) -> tuple[_Ints, _Ints]:
    """Draw `fraction` of the samples, the same share of every class, as a function of `key`.

    The whole draw has round(fraction * N) samples; a class's share is rounded by largest remainder
    (as in scikit-learn's StratifiedShuffleSplit), ties going to the lower label.

    Args:
        labels: (N,) int64, at least 0.
        fraction: between 0 and 1.

    Returns:
        Rows left and rows drawn, (N - d,) and (d,) int64, each ascending.
    """
    counts, total = np.bincount(labels), round(fraction * len(labels))
    take, rest = np.divmod(counts * total, len(labels))
    take[np.argsort(-rest, kind="stable")[: total - take.sum()]] += 1
    shuffled = rng.permutation(len(labels), "split", *key).numpy()
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    within = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    drawn = within < np.repeat(take, counts)
    return np.sort(by_class[~drawn]), np.sort(by_class[drawn])


def decode(image: Encoded, size: int) -> _Pixels:
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


def _channels_first(picture: Image.Image, size: int) -> _Pixels:
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
        with _reading(path):
            state = path.stat()
        digest.update(os.fsencode(path) + f"\n{state.st_size}\n{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _publish(reader: "_Reader", image_size: int, folder: Path) -> None:
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
        _fail(faults, "images cannot be used")
        about = {"classes": classes, "splits": list(labels)}
        (partial / "dataset.json").write_text(json.dumps(about))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_images(path: Path, reader: "_Reader", name: str, shape: tuple[int, ...]) -> list[str]:
    """Decode a set into one .npy file; returns the images that failed, one line each.

    Written as a stream, not through a map: a full disk is then an error, not a SIGBUS.
    """

    def attempt(item: tuple[str, Encoded | None]) -> tuple[str, _Pixels | str]:
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


def _fail(faults: Sequence[str], what: str) -> None:
    """Raise one DataError for all `faults`, the first few listed, if there are any."""
    if faults:
        rest = [f"... and {len(faults) - _LISTED} more"] if len(faults) > _LISTED else []
        raise DataError("\n  ".join([f"{what} ({len(faults)}):", *faults[:_LISTED], *rest]))


def _survey(reader: "_Reader") -> tuple[tuple[str, ...], dict[str, _Ints]]:
    """Classes, and labels of each set in the order of its images; both checked."""
    classes, parts = reader.survey()
    faults = [
        f"{where}, row {row}: label {labels[row]}"
        for part in parts.values()
        for where, labels in part
        for row in np.flatnonzero((labels < 0) | (labels >= len(classes)))
    ]
    _fail(faults, f"labels outside the {len(classes)} classes, 0 to {len(classes) - 1}")
    joined = {name: np.concatenate([labels for _, labels in part]) for name, part in parts.items()}
    empty = [f"{name}: {parts[name][0][0]}" for name, labels in joined.items() if not len(labels)]
    _fail(empty, "sets without a single image")
    return classes, joined


def _train_val(
    config: DatasetConfig, labels: _Ints, classes: Sequence[str], val_given: bool
) -> tuple[_Ints, _Ints]:
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
    _fail(
        [classes[label] for label in sorted(lost)],
        f"classes have no image left to train on at dataset.val_fraction {config.val_fraction}",
    )
    return train, val


# --- Readers of the formats ----------------------------------------------------------------------


_Survey = tuple[tuple[str, ...], dict[str, list[tuple[str, _Ints]]]]
"""Classes; by set, the labels of each file (its name for messages) in the order of its images."""


class _Reader(Protocol):
    """A data set on disk. Sets are named as in `_SPLITS`; "train" is always there."""

    @property
    def threads(self) -> int:
        """Threads that decode: 1 where images are so small that Python's lock makes more slower."""

    def files(self) -> Iterable[Path]:
        """What is read, in order: the cache's key."""

    def survey(self) -> _Survey:
        """Read labels, and check all but their range and the pixels."""

    def images(self, name: str) -> Iterator[tuple[str, Encoded | None]]:
        """The images of a set, with where each lies, in the order of the labels."""


def _find(config: DatasetConfig, paths: Sequence[Path]) -> _Reader:
    """Recognise what lies at `paths`."""
    name = config.name
    if bool(paths) == (name == "digits"):
        given = ", ".join(map(str, paths)) or "no path"
        raise DataError(f"dataset {name}: got {given}; expected {_EXPECTED[name]}")
    _fail(
        [str(path) for path in paths if not path.exists()],
        f"paths do not exist; dataset {name} expects {_EXPECTED[name]}; missing",
    )
    paths = [path.resolve() for path in paths]
    if name == "digits":
        return _Digits()
    return _find_folder(paths) if name == "imagefolder" else _find_cifar(name, paths)


@functools.cache
def _digits() -> tuple[_Pixels, _Ints, dict[str, _Ints]]:
    """Pixels (1797, 8, 8), labels (1797,), rows of each set: a fixed fifth is the test set."""
    from sklearn.datasets import load_digits  # takes a second to import

    data = load_digits()
    labels = data.target.astype(np.int64)
    train, test = split(labels, 0.2, "digits")
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    return pixels, labels, {"train": train, "test": test}


class _Digits:
    """scikit-learn's handwritten digits, 8x8 in 17 levels of grey. They have no official test set.

    (UCI's "Optical recognition of handwritten digits", the 1,797 of its test part.)
    """

    threads = 1

    def files(self) -> list[Path]:
        return []

    def survey(self) -> _Survey:
        _, labels, rows = _digits()
        parts = {name: [("digits", labels[part])] for name, part in rows.items()}
        return tuple("0123456789"), parts

    def images(self, name: str) -> Iterator[tuple[str, Encoded]]:
        pixels, _, rows = _digits()
        return ((f"digit {row}", pixels[row]) for row in rows[name])


@dataclass(frozen=True)
class _Cifar:
    """Names in one of the CIFAR archives (Krizhevsky 2009), as torchvision's datasets/cifar.py."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    class_key: str
    label_key: str
    classes: str
    """Names of the classes by label, apart by white space, for data that do not bring them."""


_CIFAR = {
    "cifar10": _Cifar(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
        test=("test_batch",),
        meta="batches.meta",
        class_key="label_names",
        label_key="labels",
        classes="airplane automobile bird cat deer dog frog horse ship truck",
    ),
    "cifar100": _Cifar(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        train=("train",),
        test=("test",),
        meta="meta",
        class_key="fine_label_names",
        label_key="fine_labels",
        classes="""apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy
        bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud
        cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl
        hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
        motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
        pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
        shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper
        table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
        willow_tree wolf woman worm""",
    ),
}


def _find_cifar(name: str, paths: Sequence[Path]) -> _Reader:
    """Batches in a folder or an archive, else Parquet."""
    layout = _CIFAR[name]
    if len(paths) == 1:
        path = paths[0]
        for folder in (path, path / layout.folder):
            if any((folder / batch).is_file() for batch in (*layout.train, *layout.test)):
                return _Batches(folder, layout)
        for archive in (path, path / layout.archive):
            if archive.is_file() and archive.suffix != ".parquet":
                return _Batches(archive, layout)
    return _find_parquet(name, paths)


def _find_parquet(name: str, paths: Sequence[Path]) -> "_Parquet":
    """Sort Parquet files, named or in folders, into sets by how their names begin."""
    nested = (sorted(path.glob("*.parquet")) if path.is_dir() else [path] for path in paths)
    files = dict.fromkeys(itertools.chain.from_iterable(nested))
    sets = {
        split_name: [path for path in files if path.match(f"{split_name}*.parquet")]
        for split_name in _SPLITS
    }
    used = set(itertools.chain.from_iterable(sets.values()))
    stray = [str(path) for path in paths if path.is_file() and path not in used]
    _fail(stray, f"files that dataset {name} cannot place; it expects {_EXPECTED[name]}")
    if not sets["train"]:
        where = ", ".join(map(str, paths))
        raise DataError(f"no training images in {where}; dataset {name} expects {_EXPECTED[name]}")
    given = {key: value for key, value in sets.items() if value}
    return _Parquet(given, tuple(_CIFAR[name].classes.split()))


def _find_folder(paths: Sequence[Path]) -> "_Folder":
    """List an image folder; its classes are the sorted names of the folders of train."""
    root = paths[0]
    if len(paths) > 1 or not root.is_dir():
        given = ", ".join(map(str, paths))
        raise DataError(f"dataset imagefolder: got {given}; expected {_EXPECTED['imagefolder']}")
    roots = {name: root / name for name in _SPLITS if (root / name).is_dir()} or {"train": root}
    classes = _subfolders(roots.get("train", root)) if "train" in roots else []
    if not classes:
        raise DataError(
            f"{roots.get('train', root / 'train')}: no class folders; "
            f"dataset imagefolder expects {_EXPECTED['imagefolder']}"
        )
    listing = {
        name: {label: _image_files(folder / label) for label in _subfolders(folder)}
        for name, folder in roots.items()
    }
    faults = [
        f"{roots[name] / label}: "
        + ("no image in it" if label in classes else "not a class of train")
        for name, by_class in listing.items()
        for label, files in by_class.items()
        if not files or label not in classes
    ]
    _fail(faults, "class folders that cannot be used")
    return _Folder(tuple(classes), roots, listing)


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _image_files(folder: Path) -> list[str]:
    """Images in `folder` and below, in torchvision's order."""
    return [
        str(Path(root, name))
        for root, _, names in sorted(os.walk(folder, followlinks=True))
        for name in sorted(names)
        if name.lower().endswith(_EXTENSIONS)
    ]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what reading a file raises into a DataError with its name."""
    try:
        yield
    except (pa.ArrowException, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


class _Unpickler(pickle.Unpickler):
    """Builds arrays, numbers, text, lists and dicts, and calls nothing else that a file names."""

    # numpy has moved these about; only their names are looked at.
    allowed: ClassVar[dict[str, Any]] = {
        "_reconstruct": np.empty(0).__reduce__()[0],
        "_frombuffer": np.empty(0).__reduce_ex__(5)[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Look up a name: of numpy's arrays, or how older protocols of Python 3 write bytes."""
        if module.split(".")[0] == "numpy" and name in self.allowed:
            return self.allowed[name]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR file needs")


def _unpickle(file: IO[bytes], where: str) -> dict[str, Any]:
    try:
        content = _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # damaged pickles raise all kinds
        raise DataError(f"{where} is not a pickle of CIFAR: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{where} holds {type(content).__name__}; CIFAR's files hold a dict")
    return content


def _batch_labels(content: dict[str, Any], key: str, where: str) -> _Ints:
    """Check one batch; returns its labels."""
    pixels, labels = content.get("data"), content.get(key)
    if not isinstance(pixels, np.ndarray) or (pixels.dtype, *pixels.shape[1:]) != (np.uint8, 3072):
        raise DataError(f"{where}: data must be an array (N, 3072) of uint8")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        keys = ", ".join(map(str, content))
        raise DataError(f"{where}: {key} must be a list of ints; the file has {keys}")
    if len(labels) != len(pixels):
        raise DataError(f"{where}: {len(labels)} {key} for {len(pixels)} rows of data")
    return np.array(labels, dtype=np.int64)


@dataclass(frozen=True)
class _Batches:
    """CIFAR's pickles, in a folder or in the archive, which is read as it is, front to back."""

    path: Path
    layout: _Cifar
    threads = 1

    def files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        names = (*self.layout.train, *self.layout.test, self.layout.meta)
        return [self.path / name for name in names if (self.path / name).exists()]

    def survey(self) -> _Survey:
        layout = self.layout
        classes, found = tuple(layout.classes.split()), {}
        for name, where, content in self._read(*layout.train, *layout.test, layout.meta):
            if name == layout.meta:
                classes = tuple(map(str, content.get(layout.class_key, classes)))
            else:
                found[name] = (where, _batch_labels(content, layout.label_key, where))
        missing = [name for name in (*layout.train, *layout.test) if name not in found]
        _fail(missing, f"{self.path}: files of {layout.folder} missing")
        sets = {"train": layout.train, "test": layout.test}
        return classes, {key: [found[name] for name in names] for key, names in sets.items()}

    def images(self, name: str) -> Iterator[tuple[str, Encoded]]:
        for file in self.layout.train if name == "train" else self.layout.test:
            for _, where, content in self._read(file):
                pixels = content["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                yield from ((f"{where}, row {row}", image) for row, image in enumerate(pixels))

    def _read(self, *names: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Unpickle those of `names` that are there: (name, where it lies, content)."""
        with _reading(self.path):
            for name, file in self._streams(names):
                yield name, f"{self.path}/{name}", _unpickle(file, f"{self.path}/{name}")

    def _streams(self, names: Sequence[str]) -> Iterator[tuple[str, IO[bytes]]]:
        if self.path.is_dir():
            for name in names:
                if (self.path / name).is_file():
                    with (self.path / name).open("rb") as file:
                        yield name, file
            return
        wanted = {f"{self.layout.folder}/{name}": name for name in names}
        with tarfile.open(self.path) as archive:
            while wanted and (member := archive.next()):
                name = wanted.pop(member.name.removeprefix("./"), "")
                stream = archive.extractfile(member) if name else None
                if stream:
                    yield name, stream


_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "fine_label")
"""Names of the columns, the second of each as on the Hugging Face hub."""


def _column(schema: pa.Schema, path: Path, names: Sequence[str]) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise DataError(
        f"{path}: no column {' or '.join(names)}; its columns are {', '.join(schema.names)}"
    )


def _parquet_labels(path: Path) -> _Ints:
    """Check one file's columns; returns its labels."""
    with _reading(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        image = _column(schema, path, _IMAGE_COLUMNS)
        label = _column(schema, path, _LABEL_COLUMNS)
        kind = schema.field(image).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DataError(f"{path}: column {image} is {kind}; bytes of image files were expected")
        if not pa.types.is_integer(schema.field(label).type):
            found = schema.field(label).type
            raise DataError(f"{path}: column {label} is {found}; integers were expected")
        labels = file.read(columns=[label]).column(0)
    rows = np.flatnonzero(labels.is_null().to_numpy())
    _fail([f"{path}, row {row}" for row in rows], "rows without a label")
    return np.asarray(labels, dtype=np.int64)


@dataclass(frozen=True)
class _Parquet:
    """Parquet files with encoded images, or Hugging Face's struct of bytes and path."""

    sets: dict[str, list[Path]]
    classes: tuple[str, ...]
    threads = 1

    def files(self) -> Iterable[Path]:
        return itertools.chain.from_iterable(self.sets.values())

    def survey(self) -> _Survey:
        parts: dict[str, list[tuple[str, _Ints]]] = {name: [] for name in self.sets}
        faults = []
        for name, path in ((name, path) for name, paths in self.sets.items() for path in paths):
            try:
                parts[name].append((str(path), _parquet_labels(path)))
            except DataError as error:
                faults.append(str(error))
        _fail(faults, "Parquet files that cannot be used")
        return self.classes, parts

    def images(self, name: str) -> Iterator[tuple[str, Encoded | None]]:
        for path in self.sets[name]:
            with _reading(path), pq.ParquetFile(path) as file:
                column = _column(file.schema_arrow, path, _IMAGE_COLUMNS)
                rows = itertools.count()
                for batch in file.iter_batches(256, columns=[column]):
                    values = batch.column(0)
                    if pa.types.is_struct(values.type):
                        values = values.field("bytes")
                    for value, row in zip(values, rows, strict=False):
                        yield f"{path}, row {row}", value.as_py()


@dataclass(frozen=True)
class _Folder:
    """Images in folders by class, as torchvision's ImageFolder."""

    classes: tuple[str, ...]
    roots: dict[str, Path]
    listing: dict[str, dict[str, list[str]]]
    """Image files by set and class."""

    @property
    def threads(self) -> int:
        return os.cpu_count() or 1  # Pillow frees Python's lock; 1.7 times faster on two cores

    def files(self) -> Iterable[Path]:
        return (path for name in self.listing for path in self._paths(name))

    def survey(self) -> _Survey:
        label = {name: index for index, name in enumerate(self.classes)}
        return self.classes, {
            name: [
                (str(self.roots[name] / key), np.full(len(files), label[key]))
                for key, files in by_class.items()
            ]
            for name, by_class in self.listing.items()
        }

    def images(self, name: str) -> Iterator[tuple[str, Encoded]]:
        return ((str(path), path) for path in self._paths(name))

    def _paths(self, name: str) -> Iterator[Path]:
        return map(Path, itertools.chain.from_iterable(self.listing[name].values()))
