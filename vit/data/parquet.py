"""Reader of labelled images in Parquet files: shards of bytes, and the Hugging Face hub's form."""

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vit.data.decode import DataError, Encoded
from vit.data.layout import list_folder, set_of, subfolders
from vit.data.reader import (
    CROPS,
    EXPECTED,
    SPLITS,
    Ints,
    Survey,
    Tracks,
    UnreadableError,
    crops_of,
    fail,
    normal,
    reading,
    some,
)
from vit.data.walk import shown

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "fine_label")
"""Names of the columns; the second of each is that of CIFAR on the Hugging Face hub."""
_TRACK_COLUMNS = ("video_id", "object_id")
"""Names of the columns that say which images show the same object of the same video."""
MOST_CLASSES = 100_000
"""Labels of measured images up to which classes without names are counted."""
_BUFFER = 1 << 20
"""Bytes that are read at a time; without a limit, a column of a row group is read whole."""


def find_parquet(
    name: str, paths: Sequence[Path], classes: tuple[str, ...] | None, training: bool
) -> "_Parquet":
    """Sort Parquet files, named or in folders, into sets by their names.

    Args:
        name: name of the data set, for messages.
        paths: files or folders; of a folder without files, the only folder in it that has some is
            read, as the Hugging Face hub has them in `data/`.
        classes: names of the classes by label; None: the files name them.
        training: whether a classifier is trained, so that integers as labels must have no gap.

    Raises:
        DataError: a file belongs to no set, or there is none for training.
    """
    found = [file for path in paths for file in (_files(path) if path.is_dir() else [path])]
    files = dict.fromkeys(found)
    sets: dict[str, list[Path]] = {split_name: [] for split_name in SPLITS}
    notes = []
    for path in files:
        begins = next((each for each in SPLITS if path.match(f"{each}*.parquet")), None)
        if path.suffix == ".parquet" and (each := begins or set_of(path.stem)):
            sets[each].append(path)
            notes += [] if begins else [f"{shown(path)}: read as {each}"]
    used = set(itertools.chain.from_iterable(sets.values()))
    stray = [shown(path) for path in paths if path.is_file() and path not in used]
    fail(stray, f"files that belong to no set of dataset {name}; it expects {EXPECTED[name]}")
    aside = [shown(path) for path in files if path not in used]
    if not (sets["train"] if training else used):
        where = ", ".join(map(shown, paths))
        seen = f"; the files there are {', '.join(some(aside))}" if aside else ""
        raise DataError(
            f"no training images in {where}; dataset {name} expects {EXPECTED[name]}{seen}"
        )
    given = {key: value for key, value in sets.items() if value}
    notes += [f"{path}: neither train, val nor test by its name; it is not used" for path in aside]
    return _Parquet(given, classes, training, tuple(some(notes)))


def _files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder, or else of the only folder in it that has some."""
    if files := _tables(folder):
        return files
    inside = {name: files for name in subfolders(folder) if (files := _tables(folder / name))}
    if len(inside) > 1:
        names = ", ".join(shown(folder / name) for name in inside)
        raise DataError(f"{shown(folder)}: several folders have Parquet files, {names}; give one")
    return next(iter(inside.values()), [])


def _tables(folder: Path) -> list[Path]:
    """Return the Parquet files directly in a folder, and links that look like some."""
    here = list_folder(folder)
    names = sorted(name for name in (*here.files, *here.lost) if name.endswith(".parquet"))
    return [folder / name for name in names]


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
        if pa.types.is_null(kind):  # each cell says what is there instead
            return name
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(f"column {name} is {kind}; expected bytes of image files")
    return name


def cells(column: pa.Array) -> Iterator[bytes | DataError]:
    """Yield the bytes of images, or of Hugging Face's struct; an error where there are none."""
    values, paths = column, itertools.repeat(None)
    if pa.types.is_struct(column.type):
        values = column.field("bytes")
        if column.type.get_field_index("path") >= 0:
            paths = column.field("path").to_pylist()
    for value, path in zip(values, paths, strict=False):
        if value.is_valid:
            yield value.as_py()
        elif path is None:
            yield DataError("no image: the cell is null")
        else:
            yield DataError(
                f"no image, only a path ({path}); write the bytes of the images into the table, or"
                " give a folder of images"
            )


@dataclass(frozen=True)
class _Shard:
    """The labels of a Parquet file; everything but their range has been checked."""

    path: Path
    labels: pa.Array
    """Integers or strings."""
    names: tuple[str, ...] | None
    """Names of the classes, if Hugging Face's `datasets` wrote them into the schema."""
    is_labelled: bool = True
    """Whether any row has a label; the hub's test sets have null or -1 in all rows."""
    tracks: tuple[list[tuple[str, str]], Ints] | None = None
    """Ids of video and object of each track, and the number of each row's track, (n,) int64."""
    crops: bytes | None = None
    """The text of `CROPS` in the metadata."""


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
        tracks = _read_tracks(file)
    names = _class_label(schema, name)
    crops = (schema.metadata or {}).get(CROPS.encode())
    if len(labels) and labels.null_count == len(labels):
        return _Shard(path, pa.nulls(len(labels), pa.int64()).fill_null(-1), names, False)
    if pa.types.is_dictionary(labels.type):
        labels = labels.dictionary_decode()
    if pa.types.is_large_string(labels.type):
        labels = labels.cast(pa.string())
    if not (pa.types.is_integer(labels.type) or (named and pa.types.is_string(labels.type))):
        expected = "integers or names" if named else "integers"
        raise DataError(f"{path}: column {name} is {labels.type}; expected {expected}")
    rows = np.flatnonzero(labels.is_null().to_numpy(zero_copy_only=False))
    fail([f"{path}, row {row}" for row in rows], "rows without a label")
    is_labelled = not pa.types.is_integer(labels.type) or pc.any(pc.not_equal(labels, -1)).as_py()
    return _Shard(path, labels, names, is_labelled is not False, tracks, crops)


def _read_tracks(file: pq.ParquetFile) -> tuple[list[tuple[str, str]], Ints] | None:
    """Read the track of each row: its video_id and, where there is one, its object_id.

    None without a column video_id, or if ids are null or neither texts nor integers.
    """
    names = [name for name in _TRACK_COLUMNS if name in file.schema_arrow.names]
    if _TRACK_COLUMNS[0] not in names:
        return None
    table, numbers, ids = file.read(columns=names), np.zeros(file.metadata.num_rows, np.int64), []
    for column in table.itercolumns():
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        is_id = any(
            check(kind)
            for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
        )
        if column.null_count or not is_id:
            return None
        coded = column.cast(kind).combine_chunks().dictionary_encode()
        ids.append(list(map(str, coded.dictionary.to_pylist())))
        numbers = numbers * len(coded.dictionary) + np.asarray(coded.indices, np.int64)
    found, numbers = np.unique(numbers, return_inverse=True)
    last = ids[1] if len(ids) > 1 else [""]
    return [(ids[0][code // len(last)], last[code % len(last)]) for code in found.tolist()], numbers


def _joined_tracks(shards: dict[str, list[_Shard]]) -> Tracks | None:
    """Number the tracks of all files; None if a file has none."""
    known: dict[tuple[str, str], int] = {}
    numbers: dict[str, Ints] = {}
    for name, found in shards.items():
        parts = []
        for shard in found:
            if shard.tracks is None:
                return None
            mine = np.array([known.setdefault(t, len(known)) for t in shard.tracks[0]], np.int64)
            parts.append(mine[shard.tracks[1]])
        numbers[name] = np.concatenate(parts)
    return Tracks(tuple(known), numbers)


def _class_label(schema: pa.Schema, name: str) -> tuple[str, ...] | None:
    """Find the names of a `ClassLabel` in the metadata of Hugging Face's `datasets`."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(map(str, about["info"]["features"][name]["names"]))
    except (KeyError, TypeError, ValueError):  # other data, or written by hand
        return None


def _shard_classes(shards: dict[str, list[_Shard]], training: bool) -> tuple[str, ...]:
    """Find the classes: those that the files name, else those that occur in the training set.

    Without a training set, or to measure, those of any set count.
    """
    every = list(itertools.chain.from_iterable(shards.values()))
    first = every[0]
    for shard in every:
        if shard.names != first.names or (
            pa.types.is_string(shard.labels.type) != pa.types.is_string(first.labels.type)
        ):
            raise DataError(
                f"{shard.path} and {first.path} differ in the names of their classes, or only one"
                " has integers as labels; write all files alike"
            )
    counted = shards["train"] if training else every
    occur = set().union(*(pc.unique(shard.labels).to_pylist() for shard in counted))
    if pa.types.is_string(first.labels.type):
        alike = Counter(map(normal, occur))
        faults = [repr(name) for name in sorted(occur) if alike[normal(name)] > 1]
        fail(faults, "names of classes that look the same but are written differently")
        return tuple(sorted(occur))
    if first.names or not training:
        return first.names or tuple(map(str, range(min(max(occur, default=0), MOST_CLASSES) + 1)))
    names = tuple(map(str, range(len(occur))))
    missing = [name for label, name in enumerate(names) if label not in occur]
    fail(missing, "classes without a training image; labels must be 0, 1, 2, ... without a gap")
    return names


def _numbered(shard: _Shard, classes: Sequence[str]) -> Ints:
    """Turn labels that are names into positions in `classes`, (n,) int64."""
    labels = shard.labels
    if pa.types.is_integer(labels.type):
        # What does not fit into 64 bits is outside the classes, as -1 is.
        return np.asarray(labels.cast(pa.int64(), safe=False), dtype=np.int64)
    names = pa.array(map(normal, classes), pa.string())
    numbers = pc.index_in(pc.utf8_normalize(labels, form="NFC"), value_set=names)
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
    training: bool
    """Whether a classifier is trained, so that integers as labels must have no gap."""
    notes: tuple[str, ...]
    """Lines on files that are not used."""
    threads = 1

    def files(self) -> Iterable[Path]:
        return itertools.chain.from_iterable(self.sets.values())

    def survey(self) -> Survey:
        """Read the labels; an unreadable file counts as many images as the longest other."""
        shards, unreadable, notes = self._shards
        classes = self.classes or _shard_classes(shards, self.training)
        parts = {
            name: [(str(shard.path), _numbered(shard, classes)) for shard in found]
            for name, found in shards.items()
        }
        longest = max(len(shard.labels) for found in shards.values() for shard in found)
        bad = tuple((f"{reason} (counted as {longest:,} images)", longest) for reason in unreadable)
        every = list(itertools.chain.from_iterable(shards.values()))
        tracks = _joined_tracks(shards)
        if tracks is None and any(shard.tracks is not None for shard in every):
            lacking = next(shard.path for shard in every if shard.tracks is None)
            notes = [*notes, f"{lacking}: no usable column video_id; that of others is not used"]
        cuttings = {shard.crops for shard in every}
        crops = crops_of(cuttings.pop()) if len(cuttings) == 1 else None
        return Survey(classes, parts, (*self.notes, *notes), bad, tracks, crops)

    @functools.cached_property
    def _shards(self) -> tuple[dict[str, list[_Shard]], list[str], list[str]]:
        """The readable files of each set; a line on each unreadable one; and notes."""
        shards: dict[str, list[_Shard]] = {name: [] for name in self.sets}
        unreadable, faults, notes = [], [], []
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
        for name, found in list(shards.items()):
            if not any(shard.is_labelled for shard in found):
                if name == "train" or len(shards) == 1:
                    fail([str(shard.path) for shard in found], "files in which no row has a label")
                notes.append(f"{found[0].path}: no row has a label; the {name} set is not used")
                del shards[name]
        return shards, unreadable, notes

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
            for value in cells(batch.column(0)):
                done += 1
                yield value
    except (pa.ArrowException, OSError) as error:
        for _ in range(done, rows):
            yield DataError(f"its row group {group} cannot be read: {error}")
