"""Rows of a manifest: their columns, and how each is read.

One row is a point, a box, or a remark about an object (accept, end, absent):

    object_id  frame | time_s  x  y  label  [x2 y2 prompt_type role coords ...]

`COLUMNS` describes each column. Points are (x, y) in pixels of the frame as displayed, origin top
left. `read_rows` takes the table of one video, `masking.manifest.table` that of many. What depends
on the video, its size, its timestamps, its length, is checked in `masking.manifest.plans`.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import pandas as pd

from masking.images.decode import ImageError
from masking.manifest.columns import COLUMNS as COLUMNS
from masking.manifest.columns import ROLES as ROLES
from masking.manifest.columns import Role, column_faults
from masking.manifest.faults import Fault, ManifestError, text_fault
from masking.manifest.shapes import (
    MASK,
    POLYGON,
    is_path,
    mask_text,
    picture_mask,
    polygon_text,
    text_of_mask,
)

Coords = Literal["pixel", "normalized"]

_LABELS = {"1": 1, "positive": 1, "0": 0, "negative": 0, "1.0": 1, "0.0": 0}
_ROLES: tuple[Role, ...] = tuple(ROLES)
_SHAPES: tuple[Literal["polygon", "mask"], ...] = ("polygon", "mask")
_TYPES = ("point", "box", *_SHAPES)
_WORDS: tuple[Role, ...] = ("accept", "end", "absent")
LARGEST_ID = 65_535
"""Largest id of an object: label maps have 16 bits."""
_LARGEST = 2**63 - 1  # of a number: tables hold whole ones in 64 bits


@dataclass(frozen=True)
class Row:
    """A row of a manifest. Coordinates are as in the manifest."""

    number: int
    """Number of the row, from 1."""
    object_id: int
    """Id of the object, from 1."""
    name: str
    """Name of the object; may be empty."""
    frame: int | None
    """Frame, from 0; None: `time_s` is given."""
    time_s: float | None
    """Seconds since the first frame; None: `frame` is given."""
    role: Role
    """What the row says of the object."""
    xy: tuple[float, float] | None
    """The point, or the left and top edge of a box; None: the row has neither."""
    corner: tuple[float, float] | None
    """Right and bottom edge of a box; None: the row has no box."""
    label: int
    """1: on the object; 0: beside it."""
    normalized: bool
    """Whether coordinates are shares of the frame's width and height."""
    reference: tuple[float, float] | None
    """Width and height of the frame that the coordinates refer to; None: the video's."""
    span: tuple[int | None, int | None]
    """First and last frame on which the object is tracked, where the row says so."""
    until: int | None = None
    """Last frame that is accepted; None: only `frame`."""
    polygon: str | None = None
    """A polygon, as `masking.manifest.shapes.polygon_text` returns it; None: the row has none."""
    mask: str | None = None
    """A mask, as `masking.manifest.shapes.mask_text` returns it; None: the row has none."""

    @property
    def is_shape(self) -> bool:
        """Whether the row says which pixels are the object's."""
        return self.polygon is not None or self.mask is not None


def given(value: Any) -> bool:
    """Return whether a cell holds a value."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return False
    return value is not pd.NaT and str(value) != ""


def read_rows(
    table: pd.DataFrame | Iterable[Mapping[str, Any]], numbers: Sequence[int] | None = None
) -> list[Row]:
    """Read the rows of one video.

    Args:
        table: rows in the columns of `COLUMNS`; other columns are ignored.
        numbers: the numbers of the rows in messages; None: from 1.

    Raises:
        ManifestError: every fault that can be found without the video.
    """
    rows, faults = parse_rows(table, numbers)
    if not rows and not faults:
        faults.append(Fault(0, "the table", "empty", "a row for each click"))
    if not faults:
        faults += object_faults(rows)
    if faults:
        raise ManifestError(faults)
    return rows


def parse_rows(
    table: pd.DataFrame | Iterable[Mapping[str, Any]], numbers: Sequence[int] | None = None
) -> tuple[list[Row], list[Fault]]:
    """Return the rows of one video that have no fault, and the faults of the others.

    Each row is checked by itself, so that the table may be unfinished. Arguments are those of
    `read_rows`.
    """
    if isinstance(table, str | Mapping):
        return [], [Fault(0, "the table", f"a {type(table).__name__}", "a list of rows")]
    if isinstance(table, pd.DataFrame):
        names = [str(name) for name in table.columns]
        once = table.loc[:, ~table.columns.duplicated()]
        records: list[Any] = once.to_dict("records")
    else:
        records = [*table]
        used = dict.fromkeys(k for row in records if isinstance(row, Mapping) for k in row)
        names = [str(name) for name in used]
    faults, rows = column_faults(names), list[Row]()
    for number, record in zip(numbers or range(1, len(records) + 1), records, strict=True):
        if not isinstance(record, Mapping):
            faults.append(Fault(number, "the row", repr(record), "values by name of column"))
            continue
        reader = _Reader(number, cast(Mapping[str, Any], record))
        row = reader.row()
        faults += reader.faults
        if not reader.faults:
            rows.append(row)
    return rows, faults


class _Reader:
    """Reads one row, value by value, and collects its faults."""

    def __init__(self, number: int, record: Mapping[str, Any]) -> None:
        self.number, self.record = number, record
        self.faults: list[Fault] = []

    def row(self) -> Row:
        object_id = self._whole("object_id", 1, needed=True)
        if object_id is not None and object_id > LARGEST_ID:
            self._fault("object_id", object_id, f"a whole number from 1 to {LARGEST_ID}")
        frame, time_s = self._whole("frame", 0), self._number("time_s", 0)
        if frame is None and time_s is None and not self.faults:
            self._fault("frame", "empty", "a frame from 0, or time_s in seconds")
        role = cast(Role, self._choice("role", _ROLES, "init"))
        if role == "accept" and frame is None and not self.faults:
            self._fault("frame", "empty", "the frame that is accepted; time_s is not enough")
        kind = self._choice("prompt_type", _TYPES, self._default_type())
        boxed = kind == "box"
        shaped = kind in _SHAPES and role not in _WORDS
        placed = kind not in _SHAPES and (role not in _WORDS or self._given("x"))
        xy = self._pair("x", "y") if placed else None
        corner = self._pair("x2", "y2") if boxed and placed else None
        if xy and corner and not (xy[0] < corner[0] and xy[1] < corner[1]):
            self._fault("x2, y2", f"({corner[0]:g}, {corner[1]:g})", "below and right of x, y")
        reference = None
        if self._given("ref_width") or self._given("ref_height"):
            reference = self._pair("ref_width", "ref_height", least=1)
        normalized = self._choice("coords", get_args(Coords), "pixel") == "normalized"
        if normalized and xy and max(*xy, *(corner or ())) > 1:
            self._fault("x, y", f"({xy[0]:g}, {xy[1]:g})", "0 to 1 with normalized coords")
        span = self._whole("start_frame", 0), self._whole("end_frame", 0)
        name = str(self.record["object_name"]) if self._given("object_name") else ""
        if fault := text_fault(self.number, "object_name", name):
            self.faults.append(fault)
        polygon, mask = (self._shape(each) if shaped and kind == each else None for each in _SHAPES)
        return Row(
            self.number, object_id or 0, name, frame, time_s, role, xy, corner,
            self._label(kind), normalized, reference, span,
            self._whole("until", 0), polygon, mask,
        )  # fmt: skip

    def _default_type(self) -> str:
        if self._given("x2") or self._given("y2"):
            return "box"
        given = [kind for kind in reversed(_SHAPES) if self._given(kind)]
        return given[0] if given and not self._given("x") else "point"

    def _shape(self, column: Literal["polygon", "mask"]) -> str | None:
        """Return the text of a polygon or a mask."""
        read, expected = (polygon_text, POLYGON) if column == "polygon" else (mask_text, MASK)
        if not self._given(column):
            self._fault(column, "empty", expected)
            return None
        try:
            text = read(self.record[column])
        except ValueError as error:
            self._fault(column, str(error), expected)
            return None
        if fault := text_fault(self.number, column, text):
            self.faults.append(fault)
        return text

    def _given(self, column: str) -> bool:
        return given(self.record.get(column))

    def _fault(self, column: str, value: Any, expected: str) -> None:
        self.faults.append(Fault(self.number, column, str(value), expected))

    def _number(self, column: str, least: float, needed: bool = False) -> float | None:
        if not self._given(column):
            if needed:
                self._fault(column, "empty", f"a number from {least:g}")
            return None
        value = self.record[column]
        try:
            number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not least <= number <= _LARGEST:
            more = f" to {_LARGEST:g}" if number > _LARGEST else ""
            more += ", with a point as the decimal sign" if "," in str(value) else ""
            self._fault(column, repr(value), f"a number from {least:g}{more}")
            return None
        return number

    def _whole(self, column: str, least: int, needed: bool = False) -> int | None:
        number = self._number(column, least, needed)
        if number is None:
            return None
        if number != int(number):
            self._fault(column, number, f"a whole number from {least}")
            return None
        return int(number)

    def _pair(self, first: str, second: str, least: float = 0) -> tuple[float, float] | None:
        x, y = (self._number(column, least, needed=True) for column in (first, second))
        return None if x is None or y is None else (x, y)

    def _choice(self, column: str, options: Sequence[str], default: str) -> str:
        if not self._given(column):
            return default
        value = str(self.record[column]).strip().lower()
        if value not in options:
            self._fault(column, repr(self.record[column]), " or ".join(options))
            return default
        return value

    def _label(self, kind: str) -> int:
        if not self._given("label"):
            return 1
        label = _LABELS.get(str(self.record["label"]).strip().lower())
        if label is None:
            self._fault("label", repr(self.record["label"]), "1 or positive, 0 or negative")
        elif kind != "point" and not label:
            self._fault("label", repr(self.record["label"]), f"1 for a {kind}")
        return label or 0


def rows_by_object(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Return the rows of each object, in the order of the ids."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row.object_id, []).append(row)
    return dict(sorted(found.items()))


def object_faults(rows: Sequence[Row]) -> Iterator[Fault]:
    """Yield the faults of objects as a whole: no positive point or box, spans that do not fit."""
    for object_id, mine in rows_by_object(rows).items():
        first, where = mine[0].number, f"of object {object_id}"
        placed = [row for row in mine if (row.xy or row.is_shape) and row.role not in _WORDS]
        located = [row for row in placed if row.corner or row.label]
        if not located:
            kind = "only negative points" if placed else "no points"
            yield Fault(first, f"label {where}", kind, "at least a positive point or a box")
        elif all(row.role == "correct" for row in located):
            expected = "init for the prompts that place the object; no row does yet"
            yield Fault(located[0].number, f"role {where}", "correct", expected)
        points = ((row, row.xy) for row in placed if row.xy and not row.corner)
        yield from contradictions((row, _pixel(row, xy)) for row, xy in points)
        for place, name in ((0, "start_frame"), (1, "end_frame")):
            values = {value for row in mine if (value := row.span[place]) is not None}
            if len(values) > 1:
                yield Fault(
                    first, f"{name} {where}", str(sorted(values)), "one value for each object"
                )
        start, end = span(mine)
        if end is not None and end < start:
            yield Fault(first, f"end_frame {where}", str(end), f"start_frame, {start}, or later")
        for row in mine:
            if row.frame is not None and (fault := fault_outside(row, row.frame, start, end)):
                yield fault


def contradictions(points: Iterable[tuple[Row, Hashable]]) -> Iterator[Fault]:
    """Yield the faults of points of an object that are positive and negative in one place.

    Args:
        points: rows of one object, each with the frame and the pixel that it is on.
    """
    seen: dict[Hashable, Row] = {}
    for row, place in points:
        other = seen.setdefault(place, row)
        if other.label != row.label:
            kind, opposite = ("positive", "negative") if row.label else ("negative", "positive")
            value = f"{kind} on a pixel of the frame that row {other.number} calls {opposite}"
            expected = "one of the two; delete the other"
            yield Fault(row.number, f"label of object {row.object_id}", value, expected)


def _pixel(row: Row, place: tuple[float, float]) -> Hashable:
    """Return the frame and the pixel of a point as far as they are known without the video."""
    exact = row.normalized or row.reference is not None
    where = place if exact else (math.floor(place[0]), math.floor(place[1]))
    when = ("frame", row.frame) if row.frame is not None else ("time_s", row.time_s)
    return when, row.normalized, row.reference, where


def fault_outside(row: Row, frame: int, start: int, end: int | None) -> Fault | None:
    """Return the fault of a frame on which its object is not tracked; None: there is none."""
    if start <= frame and (end is None or frame <= end):
        return None
    shown = f"{start} to {'the end' if end is None else end}, where the object is tracked"
    return Fault(row.number, "frame", str(frame), shown)


def span(rows: Sequence[Row]) -> tuple[int, int | None]:
    """Return the first and the last frame on which the object of these rows is tracked; None: the
    video's last."""
    starts = [row.span[0] for row in rows if row.span[0] is not None]
    ends = [row.span[1] for row in rows if row.span[1] is not None]
    return (starts[0] if starts else 0), (ends[0] if ends else None)


def prompts(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows that masks depend on: all but those that accept existing masks."""
    return tuple(row for row in rows if row.role != "accept")


def with_pictures(
    rows: Sequence[Row], read: Callable[[str], bytes], faults: list[Fault]
) -> tuple[Row, ...]:
    """Return rows whose masks are run lengths, where they were paths of pictures.

    Args:
        rows: the rows.
        read: returns the content of the picture at a path.
        faults: list that faults of pictures which cannot be read are added to.
    """
    found = []
    for row in rows:
        if row.mask is not None and is_path(row.mask):
            try:
                text = text_of_mask(picture_mask(read(row.mask), row.mask))
                row = replace(row, mask=text)
            except (OSError, ImageError) as error:
                expected = "a picture that is 0 beside the object"
                faults.append(Fault(row.number, "mask", f"{row.mask!r}: {error}", expected))
        found.append(row)
    return tuple(found)
