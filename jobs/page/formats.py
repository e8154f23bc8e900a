"""A manifest as bytes, in CSV, JSON lines or Parquet, written so that it reads back as it was."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.page.journal import Record
from masking.manifest.faults import Fault, ManifestError
from masking.manifest.formats.read import format_of, parse_table
from masking.manifest.rows import given
from masking.manifest.table import filled, read_manifest

Types = Mapping[str, pa.DataType]
"""Types of the columns of a Parquet file, by name."""
_SHOWN = 60  # characters of a value in a message


def read_records(name: str, content: bytes) -> list[Record]:
    """Return the rows of a manifest that may not be finished.

    Args:
        name: file name of the manifest.
        content: bytes of the manifest.

    Raises:
        ManifestError: all faults, except that an object may have no positive point yet.
    """
    return _rows(name, content, sound=False)


def _rows(name: str, content: bytes, sound: bool) -> list[Record]:
    """Return the rows of a manifest; `sound`: they have no faults as rows."""
    table = parse_table(name, content)
    if not any(map(filled, table.records)):
        return []
    if not sound:
        _, faulty, loose = read_manifest(table, finished=False)
        faults = [*loose, *(fault for some in faulty.values() for fault in some)]
        if faults:
            raise ManifestError(faults)
    # With the columns that are empty in a row, so that they stay where they are in the file.
    return [
        {name: record.get(name) for name in table.columns}
        for record in table.records
        if filled(record)
    ]


def types_of(name: str, content: bytes) -> Types:
    """Return the types of the columns of a manifest, which only Parquet has."""
    if format_of(name) != ".parquet":
        return {}
    return {field.name: field.type for field in pq.read_schema(io.BytesIO(content))}


def write_records(
    ending: str, columns: Sequence[str], records: Sequence[Record], types: Types
) -> bytes:
    """Return the bytes of a manifest: the same bytes for the same rows.

    Args:
        ending: of a manifest, in small letters.
        columns: names of the columns, in order.
        records: the rows.
        types: types of columns in Parquet, where they fit the values.
    """
    if ending == ".csv":
        return _csv(columns, records)
    if ending != ".parquet":
        lines = (json.dumps(_json_row(row), ensure_ascii=False, default=str) for row in records)
        return "".join(line + "\n" for line in lines).encode()
    file = io.BytesIO()
    table = {
        name: _column([record.get(name) for record in records], types.get(name)) for name in columns
    }
    pq.write_table(pa.table(table), file)
    return file.getvalue()


def check_readable(
    ending: str, columns: Sequence[str], records: Sequence[Record], types: Types, sound: bool
) -> None:
    """Check that rows read back as they are from a file of an ending.

    Args:
        ending, columns, records, types: as of `write_records`.
        sound: whether it is known that the rows have no faults as rows.

    Raises:
        ManifestError: a value would not, or a file with these rows could not be read.
    """
    try:
        content = write_records(ending, columns, records, types)
        again = _rows(f"rows{ending}", content, sound)
    except ManifestError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, pa.ArrowException) as error:
        raise ManifestError([_lost(ending, 0, "a value", str(error))]) from error
    if len(again) != len(records):
        raise ManifestError([_lost(ending, 0, "the table", f"of {len(again)} rows there")])
    faults = [
        _lost(ending, number, name, _short(row.get(name)))
        for number, (row, found) in enumerate(zip(records, again, strict=True), 1)
        for name in {**row, **found}
        if not _same(row.get(name), found.get(name))
    ]
    if faults:
        raise ManifestError(faults)


def _lost(ending: str, row: int, column: str, value: str) -> Fault:
    return Fault(row, column, value, f"values and names of columns that a {ending} file gives back")


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _same(value: Any, again: Any) -> bool:
    """Return whether a value means the same after reading: CSV gives back the text of a number."""
    if not given(value) or not given(again):
        return given(value) == given(again)
    if type(value) is type(again) and value == again:
        return True
    if str(value) == str(again):
        return True
    numbers = {type(value), type(again)} <= {int, float}
    return numbers and value == again


def _csv(columns: Sequence[str], records: Sequence[Record]) -> bytes:
    """Return rows as CSV with the line feed at the end of lines.

    The writer puts a text in quotes if it has a character of its own line ends: with the line feed
    for them, a carriage return in a text would end its row.
    """
    lines: list[str] = []
    writer = csv.DictWriter(_Lines(lines), columns, lineterminator="\r\n", restval="")
    writer.writeheader()
    writer.writerows(records)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines).encode()


class _Lines:
    """A file of which each write is a line of the list."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


def _json_row(record: Record) -> Record:
    """Return a row as an object of JSON lines; `prompts`, a list of rows there, is put into one."""
    row = {name: value for name, value in record.items() if value is not None}
    return {"prompts": [row]} if "prompts" in row else row


def _column(values: Sequence[Any], kind: pa.DataType | None) -> pa.Array:
    """Return values as a column: of a type, or else of their own, or of text if these lose one."""
    for each in (kind, None):
        if each is None and not _alike(values):
            continue
        try:
            found = pa.array(values, type=each)
            if pa.types.is_nested(found.type):  # some of which a file cannot hold
                pq.write_table(pa.table({"": found}), pa.BufferOutputStream())
            if found.to_pylist() == values:
                return found
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            pass  # these values have no such type
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _alike(values: Sequence[Any]) -> bool:
    """Return whether values are of one type; Arrow would turn texts beside bytes into bytes."""
    types = {type(value) for value in values if value is not None}
    return len(types) < 2 or types == {int, float}
