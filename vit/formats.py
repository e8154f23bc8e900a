"""Where labelled images come from: digits, CIFAR's archives, Parquet, folders; read, not decoded.

A reader knows the files of a data set, its classes and labels, and yields its images undecoded.
Rows count from 0, in messages too.
"""

import functools
import itertools
import json
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
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vit import rng
from vit.config import DatasetConfig
from vit.decode import DataError as DataError
from vit.decode import Encoded, Pixels

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
    "parquet": "Parquet files train*.parquet (and val*.parquet, test*.parquet if there are any), "
    "named or in folders, with columns image (bytes of image files) and label (integers from 0, "
    "or names)",
}

Ints = NDArray[np.int64]
Bad = tuple[str, int]
"""A line on what cannot be used, and how many images that is."""


class UnreadableError(DataError):
    """A file that cannot be read, whole or in part."""


def fail(faults: Sequence[str], what: str, count: int = 0, remedy: str = "") -> None:
    """Raise one DataError for all `faults`, the first few listed, if there are any.

    Args:
        faults: a line for each.
        what: the heading.
        count: how many there are, where a line stands for several.
        remedy: the last line.
    """
    if faults:
        rest = [f"... and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
        lines = [f"{what} ({count or len(faults):,}):", *faults[:LISTED], *rest]
        raise DataError("\n  ".join(lines) + (f"\n{remedy}" if remedy else ""))


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


@dataclass(frozen=True)
class Survey:
    """What a reader finds out without decoding a pixel."""

    classes: tuple[str, ...]
    parts: dict[str, list[tuple[str, Ints]]]
    """By set, the labels of each file (its name for messages) in the order of its images."""
    notes: tuple[str, ...] = ()
    """What a person should know: files that are left aside."""
    bad: tuple[Bad, ...] = ()
    """Files that cannot be read."""


class Reader(Protocol):
    """A data set on disk. Sets are named as in `SPLITS`; "train" is always there."""

    @property
    def threads(self) -> int:
        """Threads that decode: 1 where images are so small that Python's lock makes more slower."""

    def files(self) -> Iterable[Path]:
        """What is read, in order: the cache's key."""

    def survey(self) -> Survey:
        """Read labels, and check all but their range and the pixels."""

    def images(self, name: str) -> Iterator[tuple[str, Encoded | DataError]]:
        """The images of a set, with where each lies, in the order of the labels.

        A DataError stands for one that cannot be had, and says why.
        """


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
    if name == "imagefolder":
        return _find_folder(paths)
    return _find_parquet(name, paths) if name == "parquet" else _find_cifar(name, paths)


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

    def survey(self) -> Survey:
        _, labels, rows = _digits()
        parts = {name: [("digits", labels[part])] for name, part in rows.items()}
        return Survey(tuple("0123456789"), parts)

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
    return _Parquet(given, tuple(_CIFAR[name].classes.split()) if name in _CIFAR else None)


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
    listing: dict[str, dict[str, list[str]]] = {}
    aside = {}
    for name, folder in roots.items():
        found = {label: _image_files(folder / label) for label in _subfolders(folder)}
        listing[name] = {label: images for label, (images, _) in found.items()}
        loose = sum(path.is_file() and path.name[0] != "." for path in folder.iterdir())
        aside[folder] = loose + sum(others for _, others in found.values())
    faults = [
        f"{roots[name] / label}: "
        + ("no image in it" if label in classes else "not a class of train")
        for name, by_class in listing.items()
        for label, files in by_class.items()
        if not files or label not in classes
    ]
    fail(faults, "class folders that cannot be used")
    notes = tuple(
        f"{folder}: {others:,} files that are no image in a class folder are left aside"
        for folder, others in aside.items()
        if others
    )
    return _Folder(tuple(classes), roots, listing, notes)


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _image_files(folder: Path) -> tuple[list[str], int]:
    """Images in `folder` and below, in torchvision's order; how many other files there are."""
    files = [
        str(Path(root, name))
        for root, _, names in sorted(os.walk(folder, followlinks=True))
        for name in sorted(names)
    ]
    images = [file for file in files if file.lower().endswith(EXTENSIONS)]
    hidden = sum(Path(file).name[0] == "." for file in set(files).difference(images))
    return images, len(files) - len(images) - hidden


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what reading a file raises into a DataError with its name."""
    try:
        yield
    except (pa.ArrowException, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UnreadableError(f"{path} cannot be read: {error}") from error


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

    def survey(self) -> Survey:
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
        return Survey(
            classes, {key: [found[name] for name in names] for key, names in sets.items()}
        )

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


@dataclass(frozen=True)
class _Shard:
    """The labels of a Parquet file, checked but for their range."""

    path: Path
    labels: pa.Array
    """Integers or strings."""
    names: tuple[str, ...] | None
    """Names of the classes, where Hugging Face's `datasets` wrote them into the schema."""


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file for reading; damage that its checksums show is an error."""
    with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield file


def _read_shard(path: Path, named: bool) -> _Shard:
    """Read the labels, which may be names of classes if `named`."""
    with _parquet(path) as file:
        schema = file.schema_arrow
        _check_images(schema, path)
        name = _column(schema, path, _LABEL_COLUMNS)
        labels = file.read(columns=[name]).column(0).combine_chunks()
    if pa.types.is_dictionary(labels.type):
        labels = labels.dictionary_decode()
    if pa.types.is_large_string(labels.type):
        labels = labels.cast(pa.string())
    if not (pa.types.is_integer(labels.type) or (named and pa.types.is_string(labels.type))):
        expected = "integers or names" if named else "integers"
        raise DataError(f"{path}: column {name} is {labels.type}; {expected} were expected")
    rows = np.flatnonzero(labels.is_null().to_numpy(zero_copy_only=False))
    fail([f"{path}, row {row}" for row in rows], "rows without a label")
    return _Shard(path, labels, _class_label(schema, name))


def _check_images(schema: pa.Schema, path: Path) -> None:
    name = _column(schema, path, _IMAGE_COLUMNS)
    kind = schema.field(name).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(f"{path}: column {name} is {kind}; bytes of image files were expected")


def _class_label(schema: pa.Schema, name: str) -> tuple[str, ...] | None:
    """Names of a `ClassLabel` in what Hugging Face's `datasets` adds to a schema."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(map(str, about["info"]["features"][name]["names"]))
    except (KeyError, TypeError, ValueError):  # other data, or written by hand
        return None


def _shard_classes(shards: dict[str, list[_Shard]]) -> tuple[str, ...]:
    """The classes of the training set: as they are named there, else as they occur."""
    first = shards["train"][0]
    for shard in itertools.chain.from_iterable(shards.values()):
        if shard.names != first.names or (
            pa.types.is_string(shard.labels.type) != pa.types.is_string(first.labels.type)
        ):
            raise DataError(
                f"{shard.path} and {first.path} differ: in the names of the classes, or integers"
                " as labels in one, names in the other"
            )
    occur = set().union(*(pc.unique(shard.labels).to_pylist() for shard in shards["train"]))
    if pa.types.is_string(first.labels.type):
        return tuple(sorted(occur))
    names = first.names or tuple(map(str, range(len(occur))))
    missing = [name for label, name in enumerate(names) if label not in occur]
    fail(missing, "classes without an image to train on; labels count from 0, without a gap")
    return names


def _numbered(shard: _Shard, classes: Sequence[str]) -> Ints:
    """Labels as positions in `classes`; those that are integers remain."""
    labels = shard.labels
    if pa.types.is_integer(labels.type):
        return np.asarray(labels, dtype=np.int64)
    numbers = pc.index_in(labels, value_set=pa.array(classes, pa.string()))
    rows = np.flatnonzero(numbers.is_null().to_numpy(zero_copy_only=False))
    fail(
        [f"{shard.path}, row {row}: {labels[row]}" for row in rows],
        "classes without an image to train on",
    )
    return np.asarray(numbers, dtype=np.int64)


@dataclass(frozen=True)
class _Parquet:
    """Parquet files with encoded images, or Hugging Face's struct of bytes and path."""

    sets: dict[str, list[Path]]
    classes: tuple[str, ...] | None
    """Names of the classes by label; None: the files bring them."""
    threads = 1

    def files(self) -> Iterable[Path]:
        return itertools.chain.from_iterable(self.sets.values())

    def survey(self) -> Survey:
        """A file that cannot be read is taken to have held as many images as the longest other."""
        shards, unreadable = self._shards
        classes = self.classes or _shard_classes(shards)
        parts = {
            name: [(str(shard.path), _numbered(shard, classes)) for shard in found]
            for name, found in shards.items()
        }
        longest = max(len(shard.labels) for found in shards.values() for shard in found)
        bad = tuple((f"{reason} (taken for {longest:,} images)", longest) for reason in unreadable)
        return Survey(classes, parts, bad=bad)

    @functools.cached_property
    def _shards(self) -> tuple[dict[str, list[_Shard]], list[str]]:
        """The files of each set that can be read, and a line on each that cannot."""
        shards: dict[str, list[_Shard]] = {name: [] for name in self.sets}
        unreadable, faults = [], []
        for name, path in ((name, path) for name, paths in self.sets.items() for path in paths):
            try:
                shards[name].append(_read_shard(path, named=self.classes is None))
            except UnreadableError as error:
                unreadable.append(str(error))
            except DataError as error:
                faults.append(str(error))
        if not all(shards.values()):  # a set of which nothing is left
            faults += unreadable
        fail(faults, "Parquet files that cannot be used")
        return shards, unreadable

    def images(self, name: str) -> Iterator[tuple[str, Encoded | DataError]]:
        for shard in self._shards[0][name]:
            with _parquet(shard.path) as file:
                column = _column(file.schema_arrow, shard.path, _IMAGE_COLUMNS)
                values = (
                    value
                    for group in range(file.num_row_groups)
                    for value in _group_images(file, group, column)
                )
                for row, value in enumerate(values):
                    yield f"{shard.path}, row {row}", value


def _group_images(file: pq.ParquetFile, group: int, column: str) -> Iterator[bytes | DataError]:
    """Images of a row group; of a damaged one, those before the damage, then an error for each."""
    rows, done = file.metadata.row_group(group).num_rows, 0
    try:
        for batch in file.iter_batches(256, row_groups=[group], columns=[column]):
            values = batch.column(0)
            if pa.types.is_struct(values.type):
                values = values.field("bytes")
            for value in values:
                done += 1
                yield value.as_py() if value.is_valid else DataError("no image")
    except (pa.ArrowException, OSError) as error:
        for _ in range(done, rows):
            yield DataError(f"its row group {group} cannot be read: {error}")


@dataclass(frozen=True)
class _Folder:
    """Images in folders by class, as torchvision's ImageFolder."""

    classes: tuple[str, ...]
    roots: dict[str, Path]
    listing: dict[str, dict[str, list[str]]]
    """Image files by set and class."""
    notes: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        return os.cpu_count() or 1  # Pillow frees Python's lock; 1.7 times faster on two cores

    def files(self) -> Iterable[Path]:
        return (path for name in self.listing for path in self._paths(name))

    def survey(self) -> Survey:
        label = {name: index for index, name in enumerate(self.classes)}
        parts = {
            name: [
                (str(self.roots[name] / key), np.full(len(files), label[key]))
                for key, files in by_class.items()
            ]
            for name, by_class in self.listing.items()
        }
        return Survey(self.classes, parts, self.notes)

    def images(self, name: str) -> Iterator[tuple[str, Encoded]]:
        return ((str(path), path) for path in self._paths(name))

    def _paths(self, name: str) -> Iterator[Path]:
        return map(Path, itertools.chain.from_iterable(self.listing[name].values()))
