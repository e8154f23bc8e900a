"""How large the columns of a Parquet file are, read before a reader makes room for them.

The description at the end of the file is read here because pyarrow's `RowGroupMetaData.column` ends
the process if a description is damaged. It may also say less than the pages of a column hold, and
a reader makes room for what the pages say. Both are in Thrift's compact protocol; the numbers of
fields are those of `parquet.thrift`.
"""

import io
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq

_MAGIC = b"PAR1"
_BYTE_ARRAY = 6
_PAGES = (5, 7, 8)  # the fields of a page's header by its kind; each has a field 1, the values
_DEEPEST = 24
_OUTSIDE = "it refers to a place outside of the file"


@dataclass(frozen=True)
class Chunk:
    """A column in a group of rows."""

    path: str
    """Name of the column, with those of its parts after dots."""
    is_text: bool
    """Whether it holds text or bytes of any length."""
    values: int
    """Number of values."""
    size: int
    """Bytes, uncompressed."""
    place: int
    """Where it begins in the file."""
    stored: int
    """Bytes in the file."""
    nulls: int | None
    """Number of nulls; None if the file does not say it."""


def chunks(file: BinaryIO) -> list[list[Chunk]]:
    """Return the columns of each group of rows, as the end of a file describes them.

    Raises:
        ValueError: there is no such description.
    """
    groups = _Reader(io.BytesIO(_description(file))).struct().get(4, [])
    try:
        return [[_chunk(column[3]) for column in group[1]] for group in groups]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("its description of columns is damaged") from error


def opened(source: Path | BinaryIO, **options: Any) -> pq.ParquetFile:
    """Open a file; pyarrow makes no room for more than its description can hold.

    By itself pyarrow makes room for a million parts of each list, though none of them is there.

    Args:
        source: the file, or what is open for reading and stays so.
        options: those of `pyarrow.parquet.ParquetFile`.

    Raises:
        ValueError: it has no description.
        pyarrow.ArrowException, OSError: pyarrow does not read it.
    """
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        most = len(_description(file))
    return pq.ParquetFile(
        source, thrift_string_size_limit=most, thrift_container_size_limit=most, **options
    )


def _description(file: BinaryIO) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    end = file.read(8)
    begin = size - 8 - int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or begin < len(_MAGIC):
        raise ValueError("it does not end as Parquet does; it may be cut off")
    file.seek(begin)
    return file.read(size - 8 - begin)


def _chunk(fields: dict[int, Any]) -> Chunk:
    # A place of 0 means no page: a table without rows has no page with values.
    places = [place for place in (fields[9], fields.get(11)) if place] or [0]
    found = Chunk(
        ".".join(part.decode() for part in fields[3]),
        fields[1] == _BYTE_ARRAY,
        fields[5], fields[6], min(places), fields[7], fields.get(12, {}).get(3),
    )  # fmt: skip
    if min(found.values, found.size, found.place, found.stored) < 0:
        raise ValueError("a column of fewer than no values")
    return found


def sizes(file: BinaryIO, chunk: Chunk) -> tuple[int, int]:
    """Return how many bytes and values the pages of a column have, uncompressed.

    Raises:
        ValueError: there are no such pages.
    """
    place, size, values = chunk.place, 0, 0
    while place < chunk.place + chunk.stored:
        reader = _Reader(file, place)
        header = reader.struct()
        kinds = [header[kind] for kind in _PAGES if isinstance(header.get(kind), dict)]
        counts = [header.get(2), header.get(3), *(kind.get(1) for kind in kinds)]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError("a page without sizes")
        size, values = size + counts[0], values + sum(counts[2:])
        place = reader.place + counts[1]
    return size, values


class _Reader:
    """Reads values of Thrift's compact protocol."""

    def __init__(self, file: BinaryIO, place: int = 0) -> None:
        self.file, self.place, self.size = file, place, file.seek(0, os.SEEK_END)
        if place > self.size:
            raise ValueError(_OUTSIDE)
        file.seek(place)

    def take(self, count: int) -> bytes:
        self.place += count
        if self.place > self.size:
            raise ValueError(_OUTSIDE)
        return self.file.read(count)

    def unsigned(self) -> int:
        found = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            found |= (byte & 127) << shift
            if byte < 128:
                return found
        raise ValueError("a number of more than 64 bits")

    def signed(self) -> int:
        value = self.unsigned()
        return value >> 1 ^ -(value & 1)

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the fields of a struct by their numbers."""
        fields, number = dict[int, Any](), 0
        while byte := self.take(1)[0]:
            number = number + (byte >> 4) if byte >> 4 else self.signed()
            kind = byte & 15
            fields[number] = kind == 1 if kind in (1, 2) else self.value(kind, depth + 1)
        return fields

    def value(self, kind: int, depth: int) -> Any:
        """Return a value of a type: a number, bytes, a list or a struct."""
        if depth > _DEEPEST:
            raise ValueError("too deep")
        match kind:
            case 1 | 2 | 3:
                return self.take(1)[0]
            case 4 | 5 | 6:
                return self.signed()
            case 7:
                return self.take(8)
            case 8:
                return self.take(self.unsigned())
            case 9 | 10:
                return list(self.items(depth))
            case 12:
                return self.struct(depth)
        raise ValueError(f"a value of type {kind}, which Parquet does not have")

    def items(self, depth: int) -> Iterator[Any]:
        byte = self.take(1)[0]
        count = byte >> 4 if byte >> 4 < 15 else self.unsigned()
        for _ in range(count):
            yield self.value(byte & 15, depth + 1)
