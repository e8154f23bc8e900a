"""Where labelled images come from: digits, CIFAR's archives, Parquet, folders; read, not decoded.

A reader knows the files of a data set, its classes and labels, and yields its images undecoded.
Rows count from 0, in messages too.
"""

import functools
import itertools
import os
import pickle
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vit import rng
from vit.config import DatasetConfig

SPLITS = ("train", "val", "test")
LISTED = 5
"""Faults that a message lists before it only counts them."""
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""torchvision's IMG_EXTENSIONS."""
_CIFAR_EXPECTED = (
    "cifar-{0}-python.tar.gz (from https://www.cs.toronto.edu/~kriz/cifar.html), its unpacked "
    "folder, or Parquet files train*.parquet and test*.parquet (val*.parquet if there is one), "
    "with columns image and label"
)
EXPECTED = {
    "digits": "no path: scikit-learn brings them along",
    "cifar10": _CIFAR_EXPECTED.format(10),
    "cifar100": _CIFAR_EXPECTED.format(100),
    "imagefolder": "one folder with train/ (and val/, test/ if there are any), each with a folder "
    "of images for every class; or one folder of class folders",
}

Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]
Encoded = bytes | Path | Pixels
"""An image before decoding: a file's bytes, its path, or (H, W) or (H, W, 3) uint8 pixels."""


class DataError(ValueError):
    """Data that cannot be used; the message says what, where, and what was expected."""


def fail(faults: Sequence[str], what: str) -> None:
    """Raise one DataError for all `faults`, the first few listed, if there are any."""
    if faults:
        rest = [f"... and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
        raise DataError("\n  ".join([f"{what} ({len(faults)}):", *faults[:LISTED], *rest]))


def split(labels: Ints, fraction: float, *key: int | str) -> tuple[Ints, Ints]:
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


_Survey = tuple[tuple[str, ...], dict[str, list[tuple[str, Ints]]]]
"""Classes; by set, the labels of each file (its name for messages) in the order of its images."""


class Reader(Protocol):
    """A data set on disk. Sets are named as in `SPLITS`; "train" is always there."""

    @property
    def threads(self) -> int:
        """Threads that decode: 1 where images are so small that Python's lock makes more slower."""

    def files(self) -> Iterable[Path]:
        """What is read, in order: the cache's key."""

    def survey(self) -> _Survey:
        """Read labels, and check all but their range and the pixels."""

    def images(self, name: str) -> Iterator[tuple[str, Encoded | None]]:
        """The images of a set, with where each lies, in the order of the labels."""


def find(config: DatasetConfig, paths: Sequence[Path]) -> Reader:
    """Recognise what lies at `paths`."""
    name = config.name
    if bool(paths) == (name == "digits"):
        given = ", ".join(map(str, paths)) or "no path"
        raise DataError(f"dataset {name}: got {given}; expected {EXPECTED[name]}")
    fail(
        [str(path) for path in paths if not path.exists()],
        f"paths do not exist; dataset {name} expects {EXPECTED[name]}; missing",
    )
    paths = [path.resolve() for path in paths]
    if name == "digits":
        return _Digits()
    return _find_folder(paths) if name == "imagefolder" else _find_cifar(name, paths)


@functools.cache
def _digits() -> tuple[Pixels, Ints, dict[str, Ints]]:
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


def _find_cifar(name: str, paths: Sequence[Path]) -> Reader:
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
        for split_name in SPLITS
    }
    used = set(itertools.chain.from_iterable(sets.values()))
    stray = [str(path) for path in paths if path.is_file() and path not in used]
    fail(stray, f"files that dataset {name} cannot place; it expects {EXPECTED[name]}")
    if not sets["train"]:
        where = ", ".join(map(str, paths))
        raise DataError(f"no training images in {where}; dataset {name} expects {EXPECTED[name]}")
    given = {key: value for key, value in sets.items() if value}
    return _Parquet(given, tuple(_CIFAR[name].classes.split()))


def _find_folder(paths: Sequence[Path]) -> "_Folder":
    """List an image folder; its classes are the sorted names of the folders of train."""
    root = paths[0]
    if len(paths) > 1 or not root.is_dir():
        given = ", ".join(map(str, paths))
        raise DataError(f"dataset imagefolder: got {given}; expected {EXPECTED['imagefolder']}")
    roots = {name: root / name for name in SPLITS if (root / name).is_dir()} or {"train": root}
    classes = _subfolders(roots.get("train", root)) if "train" in roots else []
    if not classes:
        raise DataError(
            f"{roots.get('train', root / 'train')}: no class folders; "
            f"dataset imagefolder expects {EXPECTED['imagefolder']}"
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
    fail(faults, "class folders that cannot be used")
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
        if name.lower().endswith(EXTENSIONS)
    ]


@contextmanager
def reading(path: Path) -> Iterator[None]:
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


def _batch_labels(content: dict[str, Any], key: str, where: str) -> Ints:
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
        fail(missing, f"{self.path}: files of {layout.folder} missing")
        sets = {"train": layout.train, "test": layout.test}
        return classes, {key: [found[name] for name in names] for key, names in sets.items()}

    def images(self, name: str) -> Iterator[tuple[str, Encoded]]:
        for file in self.layout.train if name == "train" else self.layout.test:
            for _, where, content in self._read(file):
                pixels = content["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                yield from ((f"{where}, row {row}", image) for row, image in enumerate(pixels))

    def _read(self, *names: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Unpickle those of `names` that are there: (name, where it lies, content)."""
        with reading(self.path):
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


def _parquet_labels(path: Path) -> Ints:
    """Check one file's columns; returns its labels."""
    with reading(path), pq.ParquetFile(path) as file:
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
    fail([f"{path}, row {row}" for row in rows], "rows without a label")
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
        parts: dict[str, list[tuple[str, Ints]]] = {name: [] for name in self.sets}
        faults = []
        for name, path in ((name, path) for name, paths in self.sets.items() for path in paths):
            try:
                parts[name].append((str(path), _parquet_labels(path)))
            except DataError as error:
                faults.append(str(error))
        fail(faults, "Parquet files that cannot be used")
        return self.classes, parts

    def images(self, name: str) -> Iterator[tuple[str, Encoded | None]]:
        for path in self.sets[name]:
            with reading(path), pq.ParquetFile(path) as file:
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
