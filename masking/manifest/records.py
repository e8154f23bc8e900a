"""The rows of a file as they are, and what a file may hold at most.

The limits are on what a small file can become: an honest manifest is far below them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from masking.manifest.faults import Fault, ManifestError

MOST_COLUMNS = 256
"""Columns of a manifest."""
LONGEST_TEXT = 131_072
"""Characters of a value, and of a line of JSON: what Python's reader of CSV takes."""
DEEPEST = 16
"""Lists and objects within each other in a value."""
_CELLS, _CELLS_A_BYTE = 2_000_000, 20

Record = Mapping[str, Any]
BLANK: Record = {}
"""The row of a blank line; all of them are this one."""


@dataclass(frozen=True)
class Table:
    """The rows of a manifest."""

    columns: Sequence[str]
    """Names of the columns, each once, in order."""
    records: Sequence[Record]
    """The rows; a row has no key for a column in which it is empty."""
    places: Sequence[str] = ()
    """Where each row is in its file, if that is not "row" and its number."""

    @classmethod
    def of(cls, records: Iterable[Record], places: Sequence[str] = ()) -> "Table":
        """Return the table of rows, with all columns that they have."""
        rows = list(records)
        return cls([*dict.fromkeys(name for row in rows for name in row)], rows, places)


def most_cells(size: int) -> int:
    """Return how many cells a file of so many bytes may have."""
    return _CELLS + _CELLS_A_BYTE * size


def check_columns(count: int) -> None:
    """Refuse a table of too many columns; raises ManifestError."""
    if count > MOST_COLUMNS:
        expected = f"at most {MOST_COLUMNS} columns"
        raise ManifestError([Fault(0, "the table", f"of {count:,} columns", expected)])


def check_cells(count: int, size: int) -> None:
    """Refuse more cells than a file of `size` bytes may have; raises ManifestError."""
    if count > most_cells(size):
        value = f"of {count:,} cells in a file of {size:,} bytes"
        expected = f"at most {most_cells(size):,}; divide it into several manifests"
        raise ManifestError([Fault(0, "the table", value, expected)])
