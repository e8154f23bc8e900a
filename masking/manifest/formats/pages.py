"""The sizes of a Parquet file's pages, as the pages themselves give them.

The description at the end of a file may say less than its pages hold, and a reader makes room for
what the pages say. Each page begins with a header in Thrift's compact protocol.
"""

from typing import Any

import pyarrow.parquet as pq

_UNCOMPRESSED, _COMPRESSED = 2, 3  # fields of a header: bytes
_KINDS = (5, 7, 8)  # of a page with values, of distinct values, and with values in version 2
_VALUES = 1  # of such a field: the number of values
_DEEPEST = 8
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 7, 8, 12


def sizes(content: bytes, chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Return how many bytes and values the pages of a column have, uncompressed.

    Args:
        content: the whole file.
        chunk: what the file says of the column in a group of rows.

    Raises:
        ValueError: there are no such pages.
    """
    # An offset of 0 means no page: a table without rows has no page with values.
    starts = [start for start in (chunk.data_page_offset, chunk.dictionary_page_offset) if start]
    if not starts:
        raise ValueError("a column without pages")
    place = min(starts)
    end = place + chunk.total_compressed_size
    size = values = 0
    while place < end:
        reader = _Reader(content, place)
        header = reader.struct()
        kinds = [header[kind] for kind in _KINDS if isinstance(header.get(kind), dict)]
        counts = [
            header.get(_UNCOMPRESSED),
            header.get(_COMPRESSED),
            *(k.get(_VALUES) for k in kinds),
        ]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError("a page without sizes")
        size, values = size + counts[0], values + sum(counts[2:])
        place = reader.place + counts[1]
    return size, values


class _Reader:
    """Reads values of Thrift's compact protocol."""

    def __init__(self, content: bytes, place: int) -> None:
        self.content, self.place = content, place

    def byte(self) -> int:
        if not 0 <= self.place < len(self.content):
            raise ValueError("a page is outside of the file")
        self.place += 1
        return self.content[self.place - 1]

    def unsigned(self) -> int:
        found = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
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
        if depth > _DEEPEST:
            raise ValueError("a header too deep")
        while (byte := self.byte()) != 0:
            number = number + (byte >> 4) if byte >> 4 else self.signed()
            fields[number] = self.value(byte & 15, depth)
        return fields

    def value(self, kind: int, depth: int) -> Any:
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind == _BYTE:
            return self.byte()
        if kind < _DOUBLE:
            return self.signed()
        if kind == _DOUBLE:
            self.place += 8
        elif kind == _BINARY:
            length = self.unsigned()
            self.place += length
        elif kind == _STRUCT:
            return self.struct(depth + 1)
        else:  # no header has lists or maps
            raise ValueError(f"a header with a field of type {kind}")
        return None
