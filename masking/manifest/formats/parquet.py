"""Parquet: what a file says of its size is checked before any of its values is read."""

import io
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from masking.images.pages import Chunk, chunks, opened, sizes
from masking.manifest.columns import COLUMNS, column_faults
from masking.manifest.faults import Fault, ManifestError
from masking.manifest.records import (
    BLANK,
    DEEPEST,
    LONGEST_TEXT,
    Table,
    check_cells,
    check_columns,
)

_BYTES, _BYTES_A_BYTE = 64 << 20, 100
_INDEX = re.compile(r"__index_level_\d+__")  # what pandas adds


def read(content: bytes) -> Table:
    """Return the rows of a Parquet file.

    Text is read as it is encoded there, as numbers of distinct values, so that what is repeated
    is in memory once.

    Raises:
        ManifestError: it has columns twice or nearly right, or is larger than a manifest may be.
        Exception: of many kinds, if it is no sound Parquet file.
    """
    found = [one for group in chunks(io.BytesIO(content)) for one in group]
    texts = list({one.path for one in found if one.is_text})
    file = opened(io.BytesIO(content), read_dictionary=texts)
    names = [field.name for field in file.schema_arrow]
    if faults := column_faults(names):
        raise ManifestError(faults)
    check_columns(file.metadata.num_columns)
    _check_size(file.metadata.num_rows * file.metadata.num_columns, found, content)
    table = file.read()
    columns = {
        name: _values(name, column, len(content))
        for name, column in zip(names, table.columns, strict=True)
        if not _INDEX.fullmatch(name)
    }
    rows = zip(*columns.values(), strict=True) if columns else iter([()] * table.num_rows)
    return Table(
        [*columns],
        [{n: v for n, v in zip(columns, row, strict=True) if v is not None} or BLANK
         for row in rows],
    )  # fmt: skip


def _check_size(cells: int, found: Sequence[Chunk], content: bytes) -> None:
    size = len(content)
    check_cells(max(cells, sum(one.values for one in found)), size)
    _check_bytes("the table", sum(one.size for one in found), size)
    pages = [sizes(io.BytesIO(content), one) for one in found]
    _check_bytes("the table", sum(count for count, _ in pages), size)
    check_cells(sum(values for _, values in pages), size)
    deep = [one.path.count(".") for one in found if one.path.count(".") > 2 * DEEPEST]
    if deep:
        value = f"nested in {deep[0]} levels"
        raise ManifestError([Fault(0, "a column", value, f"at most {DEEPEST} levels")])


def _check_bytes(what: str, count: int, size: int) -> None:
    most = _BYTES + _BYTES_A_BYTE * size
    if count > most:
        value = f"of {count / 1e6:,.0f} MB, uncompressed, in a file of {size / 1e6:,.3f} MB"
        raise ManifestError([Fault(0, what, value, f"at most {most / 1e6:,.0f} MB")])


def _values(name: str, column: pa.ChunkedArray, size: int) -> list[Any]:
    """Return the values of a column, as Python has them; those that it cannot hold, as text."""
    try:
        if pa.types.is_dictionary(column.type):
            found = []
            for chunk in column.chunks:
                _check_text(name, chunk.dictionary)
                distinct = [*_python(name, chunk.dictionary), None]
                found += [
                    distinct[i] for i in chunk.indices.fill_null(len(distinct) - 1).to_pylist()
                ]
            return found
        if pa.types.is_nested(column.type):
            _check_nested(name, column, size)
        return [value for chunk in column.chunks for value in _python(name, chunk)]
    except UnicodeDecodeError as error:
        expected = "text in UTF-8"
        raise ManifestError(
            [Fault(0, f"column {name}", f"unreadable: {error}", expected)]
        ) from error


def _check_text(name: str, distinct: pa.Array) -> None:
    longest = pc.max(pc.binary_length(distinct)).as_py() or 0
    if longest > LONGEST_TEXT:
        value = f"a text of {longest:,} bytes"
        expected = f"up to {LONGEST_TEXT:,} bytes"
        raise ManifestError([Fault(0, f"column {name}", value, expected)])


def _check_nested(name: str, column: pa.ChunkedArray, size: int) -> None:
    """Refuse lists and structures that would be too large with each of their texts written out."""
    count = 0
    for chunk in column.chunks:
        for leaf in _leaves(chunk):
            if pa.types.is_dictionary(leaf.type):
                longest = pc.max(pc.binary_length(leaf.dictionary)).as_py() or 0
                count += len(leaf) * longest
            count += leaf.nbytes
    _check_bytes(f"column {name}", count, size)


def _leaves(array: pa.Array) -> list[pa.Array]:
    if isinstance(array, pa.MapArray):
        return [*_leaves(array.keys), *_leaves(array.items)]
    if isinstance(array, pa.StructArray):
        return [leaf for each in array.flatten() for leaf in _leaves(each)]
    if isinstance(array, pa.ExtensionArray):
        return _leaves(array.storage)
    return _leaves(array.flatten()) if pa.types.is_nested(array.type) else [array]


def _python(name: str, array: pa.Array) -> list[Any]:
    kind = array.type
    try:
        values = array.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        if not pa.types.is_temporal(kind):
            raise
        values = array.cast(pa.string()).to_pylist()  # a time that Python cannot hold
    if name in COLUMNS and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        values = [_text(value) for value in values]
    return values


def _text(value: bytes | None) -> str | bytes | None:
    """Return the text of bytes, which some programs do not mark as such; others as they are."""
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value
