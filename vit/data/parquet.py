"""Reader of labelled images in Parquet files: shards of bytes, and the Hugging Face hub's form."""

import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vit.data.decode import DataError, Encoded
from vit.data.reader import EXPECTED, SPLITS, Ints, Survey, UnreadableError, fail, reading

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "fine_label")
"""Names of the columns; the second of each is that of CIFAR on the Hugging Face hub."""
_BUFFER = 1 << 20
"""Bytes that are read at a time; without a limit, a column of a row group is read whole."""


def find_parquet(name: str, paths: Sequence[Path], classes: tuple[str, ...] | None) -> "_Parquet":
    """Sort Parquet files, named or in folders, into sets by how their names begin.

    Args:
        name: name of the data set, for messages.
        paths: files or folders.
        classes: names of the classes by label; None: the files name them.

    Raises:
        DataError: a file belongs to no set, or there is none for training.
    """
    nested = (sorted(path.glob("*.parquet")) if path.is_dir() else [path] for path in paths)
    files = dict.fromkeys(itertools.chain.from_iterable(nested))
    sets = {
        split_name: [path for path in files if path.match(f"{split_name}*.parquet")]
        for split_name in SPLITS
    }
    used = set(itertools.chain.from_iterable(sets.values()))
    stray = [str(path) for path in paths if path.is_file() and path not in used]
    fail(stray, f"files that belong to no set of dataset {name}; it expects {EXPECTED[name]}")
    if not sets["train"]:
        where = ", ".join(map(str, paths))
        raise DataError(f"no training images in {where}; dataset {name} expects {EXPECTED[name]}")
    given = {key: value for key, value in sets.items() if value}
    return _Parquet(given, classes)


def _column(schema: pa.Schema, names: Sequence[str]) -> str:
    """Find the first of `names` that is a column."""
    for name in names:
        if name in schema.names:
            return name
    raise DataError(f"no column {' or '.join(names)}; its columns are {', '.join(schema.names)}")


def image_column(schema: pa.Schema) -> str:
    """Find the column of encoded images, bytes or Hugging Face's struct; DataError without one."""
    name = _column(schema, _IMAGE_COLUMNS)
    kind = schema.field(name).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(f"column {name} is {kind}; expected bytes of image files")
    return name


@dataclass(frozen=True)
class _Shard:
    """The labels of a Parquet file; everything but their range has been checked."""

    path: Path
    labels: pa.Array
    """Integers or strings."""
    names: tuple[str, ...] | None
    """Names of the classes, if Hugging Face's `datasets` wrote them into the schema."""


@contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file for reading; damage that its checksums show raises an error."""
    options = {"page_checksum_verification": True, "buffer_size": _BUFFER}
    with reading(path), pq.ParquetFile(path, **options) as file:
        yield file


def _read_shard(path: Path, named: bool) -> _Shard:
    """Read the labels of a file; they may be names of classes if `named`."""
    with _parquet(path) as file:
        schema = file.schema_arrow
        try:
            image_column(schema)
            name = _column(schema, _LABEL_COLUMNS)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        labels = file.read(columns=[name]).column(0).combine_chunks()
    if pa.types.is_dictionary(labels.type):
        labels = labels.dictionary_decode()
    if pa.types.is_large_string(labels.type):
        labels = labels.cast(pa.string())
    if not (pa.types.is_integer(labels.type) or (named and pa.types.is_string(labels.type))):
        expected = "integers or names" if named else "integers"
        raise DataError(f"{path}: column {name} is {labels.type}; expected {expected}")
    rows = np.flatnonzero(labels.is_null().to_numpy(zero_copy_only=False))
    fail([f"{path}, row {row}" for row in rows], "rows without a label")
    return _Shard(path, labels, _class_label(schema, name))


def _class_label(schema: pa.Schema, name: str) -> tuple[str, ...] | None:
    """Find the names of a `ClassLabel` in the metadata of Hugging Face's `datasets`."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(map(str, about["info"]["features"][name]["names"]))
    except (KeyError, TypeError, ValueError):  # other data, or written by hand
        return None


def _shard_classes(shards: dict[str, list[_Shard]]) -> tuple[str, ...]:
    """Find the classes of the training set: those that it names, else those that occur."""
    first = shards["train"][0]
    for shard in itertools.chain.from_iterable(shards.values()):
        if shard.names != first.names or (
            pa.types.is_string(shard.labels.type) != pa.types.is_string(first.labels.type)
        ):
            raise DataError(
                f"{shard.path} and {first.path} differ in the names of their classes, or only one"
                " has integers as labels; write all files alike"
            )
    occur = set().union(*(pc.unique(shard.labels).to_pylist() for shard in shards["train"]))
    if pa.types.is_string(first.labels.type):
        return tuple(sorted(occur))
    names = first.names or tuple(map(str, range(len(occur))))
    missing = [name for label, name in enumerate(names) if label not in occur]
    fail(missing, "classes without a training image; labels must be 0, 1, 2, ... without a gap")
    return names


def _numbered(shard: _Shard, classes: Sequence[str]) -> Ints:
    """Turn labels that are names into positions in `classes`, (n,) int64."""
    labels = shard.labels
    if pa.types.is_integer(labels.type):
        return np.asarray(labels, dtype=np.int64)
    numbers = pc.index_in(labels, value_set=pa.array(classes, pa.string()))
    rows = np.flatnonzero(numbers.is_null().to_numpy(zero_copy_only=False))
    fail(
        [f"{shard.path}, row {row}: {labels[row]}" for row in rows],
        "classes without a training image",
    )
    return np.asarray(numbers, dtype=np.int64)


@dataclass(frozen=True)
class _Parquet:
    """Parquet files with a column of encoded images, or of Hugging Face's struct."""

    sets: dict[str, list[Path]]
    classes: tuple[str, ...] | None
    """Names of the classes by label; None: the files name them."""
    threads = 1

    def files(self) -> Iterable[Path]:
        return itertools.chain.from_iterable(self.sets.values())

    def survey(self) -> Survey:
        """Read the labels; an unreadable file counts as many images as the longest other."""
        shards, unreadable = self._shards
        classes = self.classes or _shard_classes(shards)
        parts = {
            name: [(str(shard.path), _numbered(shard, classes)) for shard in found]
            for name, found in shards.items()
        }
        longest = max(len(shard.labels) for found in shards.values() for shard in found)
        bad = tuple((f"{reason} (counted as {longest:,} images)", longest) for reason in unreadable)
        return Survey(classes, parts, bad=bad)

    @functools.cached_property
    def _shards(self) -> tuple[dict[str, list[_Shard]], list[str]]:
        """The readable files of each set, and a line on each unreadable one."""
        shards: dict[str, list[_Shard]] = {name: [] for name in self.sets}
        unreadable, faults = [], []
        for name, path in ((name, path) for name, paths in self.sets.items() for path in paths):
            try:
                shards[name].append(_read_shard(path, named=self.classes is None))
            except UnreadableError as error:
                unreadable.append(str(error))
            except DataError as error:
                faults.append(str(error))
        if not all(shards.values()):  # a set without a readable file
            faults += unreadable
        fail(faults, "Parquet files that cannot be used")
        return shards, unreadable

    def images(self, name: str) -> Iterator[tuple[str, Encoded | DataError]]:
        for shard in self._shards[0][name]:
            with _parquet(shard.path) as file:
                column = image_column(file.schema_arrow)
                values = (
                    value
                    for group in range(file.num_row_groups)
                    for value in _group_images(file, group, column)
                )
                for row, value in enumerate(values):
                    yield f"{shard.path}, row {row}", value


def _group_images(file: pq.ParquetFile, group: int, column: str) -> Iterator[bytes | DataError]:
    """Yield the images of a row group; from the first damage onwards, an error for each."""
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
