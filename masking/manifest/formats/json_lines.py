"""JSON lines: an object a row, or a video with its rows in a list `prompts`."""

import json
from collections.abc import Iterator
from typing import Any

from masking.manifest.columns import COLUMNS, column_faults
from masking.manifest.faults import Fault, ManifestError
from masking.manifest.records import (
    BLANK,
    DEEPEST,
    LONGEST_TEXT,
    Record,
    Table,
    check_cells,
    check_columns,
)

_KNOWN = (*COLUMNS, "prompts")
_SHOWN = 40  # characters of what is no object in a message


def read(text: str, size: int) -> Table:
    """Return the rows of JSON lines as they are.

    Args:
        text: the text of the file.
        size: bytes of the file.

    Raises:
        ManifestError: lines that are no such objects, or with a column nearly right; each fault
            names its line.
    """
    faults: list[Fault] = []
    records, places, columns, cells = list[Record](), list[str](), dict[str, str](), 0
    for number, line in enumerate(text.split("\n"), 1):
        try:
            for place, record in _rows(line, f"line {number}"):
                records.append(record)
                places.append(place)
                cells += len(record)
                for name in record:
                    columns.setdefault(name, place)
                check_cells(cells, size)
        except ManifestError as error:
            faults += error.faults
        check_columns(len(columns))
    for name, place in columns.items():
        faults += column_faults([name], _KNOWN, place)
    if faults:
        raise ManifestError(faults)
    return Table([*columns], records, places)


def _rows(line: str, place: str) -> Iterator[tuple[str, Record]]:
    """Yield the rows of a line, each with its place."""
    if not line.strip():
        yield place, BLANK
        return
    value = _object(line, place)
    nested = value.pop("prompts", None)
    if not nested:
        yield place, value  # a video without prompts gives a row with faults, rather than no row
        return
    if not isinstance(nested, list) or not all(isinstance(prompt, dict) for prompt in nested):
        raise _error(place, "prompts", repr(nested)[:_SHOWN], "a list of objects, one for a click")
    for number, prompt in enumerate(nested, 1):
        yield f"{place}, prompt {number}", {**value, **prompt}


def _object(line: str, place: str) -> dict[str, Any]:
    """Return the object of a line, whose values are no larger than another format takes."""
    try:
        value = json.loads(line, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        found = f"not JSON: {error.msg} at character {error.pos + 1}"
        raise _error(place, "the line", found, "a JSON object") from error
    except RecursionError as error:
        raise _error(place, "the line", "too deep", f"at most {DEEPEST} levels") from error
    except _TwiceError as error:
        raise _error(place, f"column {error}", "there twice", "each column once") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise _error(place, "the line", "with a number too long to read", "64 bits") from error
    if not isinstance(value, dict):
        raise _error(place, "the line", f"{line[:_SHOWN]!r}, not an object", "a JSON object")
    for name, cell in value.items():
        if isinstance(cell, str) and len(cell) > LONGEST_TEXT:
            found = f"a text of {len(cell):,} characters"
            raise _error(place, name, found, f"up to {LONGEST_TEXT:,} characters")
        if isinstance(cell, list | dict) and _is_deep(cell, DEEPEST):
            raise _error(place, name, "too deep", f"at most {DEEPEST} levels of lists and objects")
    return value


class _TwiceError(ValueError):
    """A column of a manifest that is twice in an object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and name in _KNOWN:
            raise _TwiceError(name)
        found[name] = value
    return found


def _is_deep(value: Any, levels: int) -> bool:
    """Return whether lists and objects lie within each other in more than so many levels."""
    if not isinstance(value, list | dict):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(each, levels - 1) for each in inside)


def _error(place: str, column: str, value: str, expected: str) -> ManifestError:
    return ManifestError([Fault(0, column, value, expected, place)])
