"""Images with masks in Parquet files, one a row; bytes, or Hugging Face's struct of bytes and path.

Nothing is read whose size is not known to be within bounds: a small file may hold cells of
gigabytes, or one cell for every row.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from masking.images.decode import nearest, read_image, read_labels
from masking.images.lfs import POINTER, is_pointer
from masking.images.masks import refuse_soft_edges
from masking.images.pages import Chunk, chunks, opened, sizes
from masking.training.pair import Pair, Survey, masks_of, vanished

KEPT = 2 << 30
"""Bytes of decompressed row groups that a process keeps in memory."""
_NEEDED = ("image", "masks")
_BYTES = (*_NEEDED, "ignore")
_READ = (*_BYTES, "kind")
"""Columns that pairs are made of."""
_LARGEST, _RATIO = 256 << 20, 10
"""Decompressed bytes of a row group that are read from any file, or as a multiple of its size;
images and PNG maps hardly compress, so true files hardly exceed their size."""
_DENSE = 1 << 30
"""Bytes from which a column is not read by its dictionary, of which Arrow takes 2 GB at most."""
_ROW, _ROWS = 16, 100_000
"""Bytes that a row takes at least in a file of more rows than `_ROWS`."""
_SHOWN, _LISTED = 100, 20
"""Characters of a value, and names of columns, in a message."""
UNREADABLE = (
    pa.ArrowException,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
)
"""What Arrow and Pillow raise for damaged files beside their own exceptions."""
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(-\w+)?\.parquet", re.IGNORECASE)
"""Hugging Face's names of the files of a split."""


class RowGroups:
    """Row groups of Parquet files; those used last stay in memory, up to `KEPT` bytes.

    So a training set that fits is read once; a larger one is read again, by row groups.
    """

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._kept: OrderedDict[tuple[Path, int], pa.Table] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["RowGroups"], tuple[()]]:
        return RowGroups, ()  # another process reads for itself

    def read(self, path: Path, group: int) -> pa.Table:
        """Return the columns of a row group that pairs are made of."""
        with self._lock:
            if (path, group) not in self._kept:
                self._add(path, group)
            self._kept.move_to_end((path, group))
            return self._kept[path, group]

    def _add(self, path: Path, group: int) -> None:
        table = _read(path, group, _READ)
        self._kept[path, group] = table
        self._bytes += table.nbytes
        while len(self._kept) > 1 and self._bytes > KEPT:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes


def _read(path: Path, group: int, columns: Sequence[str]) -> pa.Table:
    """Read those of the columns that there are; of Hugging Face's structs the bytes alone.

    They are read by dictionaries where they have any: one cell that all rows have is one in memory.
    """
    with opened(path) as file:
        leaves = _leaves(path, file, group)
        wanted = [name for name in file.schema_arrow.names if name in columns]
    return _read_leaves(
        path, group, leaves, [n if _leaf(n) not in leaves else _leaf(n) for n in wanted]
    )


def _read_leaves(
    path: Path, group: int, leaves: Mapping[str, Chunk], names: Sequence[str]
) -> pa.Table:
    """Read columns by their paths, once their pages say that they are not too large."""
    found = [leaves[name] for name in names if name in leaves]
    size = path.stat().st_size
    with path.open("rb") as file:
        for chunk in found:
            count, values = sizes(file, chunk)
            if count > _most(size) or values > 2 * _most_rows(size):
                raise ValueError(
                    f"row group {group} has pages of {count:,} bytes and {values:,} values in"
                    f" column {chunk.path[:_SHOWN]}, in a file of {size:,} bytes; expected images"
                    " and PNG maps, which hardly compress"
                )
    texts = [name for name in names if name in leaves and leaves[name].is_text
             and leaves[name].size < _DENSE]  # fmt: skip
    with opened(path, read_dictionary=texts) as file:
        return file.read_row_group(group, names, use_threads=False)


def _most(size: int) -> int:
    """Return how many bytes of a column may be decompressed at once, by the bytes of its file."""
    return max(_LARGEST, _RATIO * size)


def _most_rows(size: int) -> int:
    return _ROWS + size // _ROW


def _leaves(path: Path, file: pq.ParquetFile, group: int) -> dict[str, Chunk]:
    """Return what the file says of each of its columns in a row group, by their paths.

    A nested column has several, so they do not count as the columns of the schema do.
    """
    about = path.stat()
    found = _described(path, about.st_size, about.st_mtime_ns)[group]
    names = [file.schema.column(number).path for number in range(len(file.schema))]
    return dict(zip(names, found, strict=True))


@lru_cache(maxsize=16)
def _described(path: Path, size: int, changed: int) -> list[list[Chunk]]:
    """Return the columns of each row group of a file, as it was at a time and with a size."""
    with path.open("rb") as file:
        return chunks(file)


def _leaf(column: str) -> str:
    """Return the path of the bytes in a column that has Hugging Face's struct."""
    return f"{column}.bytes"


@dataclass(frozen=True)
class _ParquetRow:
    """A row of a Parquet file."""

    name: str
    path: Path
    group: int
    row: int
    """Number of the row in its row group."""
    groups: RowGroups

    def load(self, longest: int) -> Pair:
        [record] = self.groups.read(self.path, self.group).slice(self.row, 1).to_pylist()
        cells = {name: _content(record.get(name)) for name in _BYTES}
        image, size, orientation = read_image(cells["image"], longest)
        shape = image.shape[:2]
        labels, _ = read_labels(cells["masks"], "column masks", size, orientation)
        refuse_soft_edges(labels, "column masks")
        ignore = np.zeros(shape, dtype=np.bool_)
        if cells["ignore"] is not None:
            ignore = nearest(read_labels(cells["ignore"], "column ignore", size)[0], shape) > 0
        masks = masks_of(nearest(labels, shape))
        if labels.any() and not len(masks):
            raise vanished()
        regions = record.get("kind") == "regions"
        return Pair(image, masks, ignore, self.name, regions, turned=orientation > 1)


def _content(cell: Any) -> Any:
    """Return the bytes of a cell, which may be Hugging Face's struct."""
    return cell.get("bytes") if isinstance(cell, dict) else cell


def survey_parquet(path: Path, result: Survey, groups: RowGroups) -> None:
    """Add the rows of a Parquet file, or its faults."""
    try:
        with opened(path) as file:
            wrong = list(_wrong(path, file))
            result.faults += [f"{path}: {fault}" for fault in wrong]
            if not wrong:
                _survey_rows(path, file, result, groups)
    except UNREADABLE as error:
        if path.is_file() and is_pointer(path):
            result.faults.append(f"{path}: {POINTER}")
            return
        reason = str(error).split("\n")[0][: 3 * _SHOWN] or type(error).__name__
        result.faults.append(f"{path}: not a Parquet file that can be read: {reason}")


def _wrong(path: Path, file: pq.ParquetFile) -> Iterator[str]:
    """Yield what is wrong with the columns and sizes of a file; nothing of it is read yet."""
    schema, size = file.schema_arrow, path.stat().st_size
    for name in (*_READ, "key"):
        expected = "strings" if name not in _BYTES else "bytes of image files"
        if schema.names.count(name) > 1:
            yield f"there are {schema.names.count(name)} columns {name}; expected one"
        elif name in schema.names:
            kind = schema.field(name).type
            if not _is_wanted(name, kind):
                yield f"column {name} holds {str(kind)[:_SHOWN]}; expected {expected}"
        elif name in _NEEDED:
            names = ", ".join(schema.names[:_LISTED]) + (", ..." if schema.names[_LISTED:] else "")
            yield f"no column {name} ({expected}); it has {names}"
    if file.metadata.num_rows > _most_rows(size):
        yield (
            f"{file.metadata.num_rows:,} rows in {size:,} bytes, too many to have an image each;"
            " expected an image and its masks in each row"
        )
    for group in range(file.num_row_groups):
        leaves = _leaves(path, file, group)
        read = {x for name in (*_READ, "key") for x in (name, _leaf(name))} & leaves.keys()
        most = max((leaves[name].size for name in read), default=0)
        if most > _most(size):
            yield (
                f"row group {group} has a column of {most:,} bytes, in a file of {size:,}; expected"
                " images and PNG maps, which hardly compress"
            )


def _is_wanted(name: str, kind: pa.DataType) -> bool:
    """Return whether a column may have a type."""
    if name == "key" or pa.types.is_null(kind):
        return not pa.types.is_nested(kind)
    if name not in _BYTES:
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
        if pa.types.is_null(kind):
            return True
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _survey_rows(path: Path, file: pq.ParquetFile, result: Survey, groups: RowGroups) -> None:
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        keys = _keys(path, group) if "key" in file.schema_arrow.names else [""] * rows
        names = [f"{path}, row {first + row}{keys[row]}" for row in range(rows)]
        result.entries += [_ParquetRow(n, path, group, row, groups) for row, n in enumerate(names)]
        for row, fault in sorted(_missing(path, file, group)):
            result.faults.append(f"{names[row]}: {fault}")
        first += rows
    if first == 0:
        result.faults.append(f"{path}: no rows")


def _keys(path: Path, group: int) -> list[str]:
    """Return the key of each row for messages."""
    found: list[str] = []
    for chunk in _read(path, group, ["key"])["key"].chunks:
        values = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        shown = ["" if value is None else f" ({str(value)[:_SHOWN]})" for value in _texts(values)]
        if values is chunk:
            found += shown
        else:
            found += ["" if place is None else shown[place] for place in chunk.indices.to_pylist()]
    return found


def _texts(values: pa.Array) -> list[Any]:
    """Return values as Python has them; text that is not UTF-8 with signs in place of its bytes."""
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        kind = pa.binary() if pa.types.is_string(values.type) else pa.large_binary()
        raw = values.cast(kind).to_pylist()
        return [x if x is None else x.decode(errors="backslashreplace") for x in raw]
    return list(values.to_pylist())


def _missing(path: Path, file: pq.ParquetFile, group: int) -> Iterator[tuple[int, str]]:
    """Yield rows without an image or masks, and what they have instead."""
    leaves = _leaves(path, file, group)
    for column in _NEEDED:
        if leaves[_leaf(column) if _leaf(column) in leaves else column].nulls == 0:
            continue  # so there is nothing to read
        cells = _read(path, group, [column])[column]
        if pa.types.is_struct(cells.type):
            cells = pc.struct_field(cells, "bytes")
        rows = np.flatnonzero(cells.is_null().to_numpy()).tolist()
        paths = _paths(path, file, group, column) if rows else None
        for row in rows:
            path_only = None if paths is None else paths[row].as_py()
            yield row, f"column {column} {_why_null(path_only)}"


def _why_null(path: str | None) -> str:
    """Return what is wrong with a cell without bytes, which may have a path."""
    if path is None:
        return "is null"
    return (
        f"has no bytes, only the path {path[:_SHOWN]}; write the bytes of the files into the table,"
        " as datasets.table.embed_table_storage does"
    )


def _paths(path: Path, file: pq.ParquetFile, group: int, column: str) -> pa.ChunkedArray | None:
    """Return the paths in Hugging Face's structs; None if the column has none."""
    kind = file.schema_arrow.field(column).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return None
    leaves = _leaves(path, file, group)
    return pc.struct_field(_read_leaves(path, group, leaves, [f"{column}.path"])[column], "path")


def splits(files: Sequence[Path]) -> list[str]:
    """Return Hugging Face's splits among files: train of train-00000-of-00001.parquet."""
    return sorted({match[1] for file in files if (match := _SHARD.fullmatch(file.name))})
