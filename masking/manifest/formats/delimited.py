"""CSV, as spreadsheets and programs write it: which character parts the columns, and the rows.

Cells stay text: each row distinguishes a frame of 1.0 from an empty one. Blank lines stay as empty
rows, so that rows have the numbers that a spreadsheet shows.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence

from masking.manifest.columns import COLUMNS, NEEDED, NUMBERS, column_faults
from masking.manifest.faults import Fault, ManifestError
from masking.manifest.records import BLANK, MOST_COLUMNS, Table, check_columns

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SEP = re.compile(r'"?sep=([,;\t|])"?\r?\n')  # a first line for Excel alone
_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
_THOUSANDS = re.compile(r"\s*[+-]?[1-9]\d{0,2}(,\d{3})+\s*")


def read(text: str) -> Table:
    """Return the rows of CSV.

    Raises:
        ManifestError: it has no header, a column twice or nearly right, rows that are longer than
            the header, or an unfinished quotation.
    """
    if found := _SEP.match(text):
        text = text[found.end() :]
    rows = _rows(text, _delimiter(text))
    header = next(rows, [])
    if not any(name.strip() for name in header):
        value = "empty" if not text.strip() else "without names in its first line"
        raise ManifestError([Fault(0, "the table", value, NEEDED)])
    check_columns(len(header))
    if faults := column_faults(header):
        raise ManifestError(faults)
    names = _distinct(header)
    cells = list(rows)
    if faults := [*_odd_rows(names, cells)]:
        raise ManifestError(faults)
    _read_decimal_commas(names, cells)
    same: dict[str, str] = {}  # most cells are repeated, and need to be in memory only once
    return Table(
        names,
        [
            {n: same.setdefault(v, v) for n, v in zip(names, row, strict=False) if v} or BLANK
            for row in cells
        ],
    )


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        before = reader.line_num
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            expected = 'quotes in pairs, and "" for a quote within a quoted value'
            if "limit" in str(error):
                expected = "values of up to 131,072 characters; is a quote not closed?"
            place = f"line {before + 1}"
            raise ManifestError(
                [Fault(0, "a value", f"broken: {error}", expected, place)]
            ) from error


def _delimiter(text: str) -> str:
    """Return what parts the columns: the comma, unless only another gives the columns needed."""
    found = {delimiter: _known(text, delimiter) for delimiter in _DELIMITERS}
    best = max(found, key=lambda delimiter: found[delimiter])
    return best if found[best] > max(1, found[","]) else ","


def _known(text: str, delimiter: str) -> int:
    """Return how many columns of the header are those of a manifest, or nearly."""
    try:
        header = next(_rows(text, delimiter), [])
    except ManifestError:
        return 0
    names = set(header[:MOST_COLUMNS])
    return len(names & {*COLUMNS}) + len(column_faults([*names - {*COLUMNS}]))


def _distinct(header: Sequence[str]) -> list[str]:
    """Return names of columns, each once: a person's own that are there twice get a number."""
    names: list[str] = []
    for place, name in enumerate(header):
        name = name or f"Unnamed: {place}"
        found, count = name, 0
        while found in names:
            count += 1
            found = f"{name}.{count}"
        names.append(found)
    return names


def _odd_rows(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[Fault]:
    """Yield the faults of rows whose values would be in the wrong columns."""
    count, place = len(names), names.index("object_id") if "object_id" in names else len(names)
    for number, row in enumerate(rows, 1):
        if len(row) > count and any(row[count:]):
            expected = f"{count}, as in the header; put a value with a comma in quotes"
            yield Fault(number, "the row", f"of {len(row)} values", expected)
        elif len(row) > place and row[place] in COLUMNS:
            expected = "values; give tables that were joined as a --manifest each"
            yield Fault(number, "the row", "a second header", expected)


def _read_decimal_commas(names: Sequence[str], rows: Sequence[list[str]]) -> None:
    """Turn 40,5 into 40.5, if all numbers of the table show that this is what is meant.

    It is not certain beside a number with a point, nor if every comma may part thousands; the
    numbers then stay as they are, and are faults of their rows.
    """
    numeric = [place for place, name in enumerate(names) if name in NUMBERS]
    cells = {row[i] for row in rows for i in numeric if i < len(row)}
    with_comma = {cell for cell in cells if "," in cell}
    if (
        not with_comma
        or any("." in cell for cell in cells)
        or not all(map(_COMMA.fullmatch, with_comma))
        or all(map(_THOUSANDS.fullmatch, with_comma))
    ):
        return
    for row in rows:
        for i in numeric:
            if i < len(row):
                row[i] = row[i].replace(",", ".")
