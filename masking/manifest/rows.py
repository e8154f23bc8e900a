"""The table of clicks: its columns, and what they mean, with every fault by row.

One row is a point, a box, or a word about an object (accept, end, absent):

    object_id  frame | time_s  x  y  label  [x2 y2 prompt_type role coords ...]

`COLUMNS` says what each holds. Points are (x, y) in pixels of the frame as displayed, origin top
left. `read_rows` takes the table of one video (`masking.manifest.table` those of many); what
depends on the video, its size, its timestamps, its length, is checked by `resolve`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd

from masking.manifest.prompt import FramePrompt, PromptRole

Coords = Literal["pixel", "normalized"]

COLUMNS = {
    "uri": "a video file or a folder of frames, local or s3://; relative to the manifest's folder",
    "video_id": "what its results are called; empty: the uri without scheme and ending",
    "object_id": "whole number from 1: which object",
    "object_name": "what a person calls it",
    "frame": "whole number from 0, in presentation order; or else time_s",
    "time_s": "seconds since the first frame; the frame that is shown then is meant",
    "x": "pixels from the left; of a box its left edge",
    "y": "pixels from the top; of a box its top edge",
    "label": "1 or positive: on the object; 0 or negative: not on it",
    "prompt_type": "point or box; if empty, a box where there is x2 or y2, else a point",
    "x2": "right edge of a box",
    "y2": "bottom edge of a box",
    "role": "init (also if empty), correct, accept, end or absent; the last three need no x and y",
    "until": "of an accept: last frame that it speaks of; empty: its own frame alone",
    "start_frame": "first frame on which the object is asked for; empty: the video's first",
    "end_frame": "last frame on which it is asked for; empty: the video's last",
    "coords": "pixel (also if empty) or normalized: shares of the frame's width and height",
    "ref_width": "width of the frame that x belongs to, if it was shown at another size",
    "ref_height": "height of that frame",
}
"""Columns of a manifest that have a meaning, and what they hold."""
_LABELS = {"1": 1, "positive": 1, "0": 0, "negative": 0, "1.0": 1, "0.0": 0}
Role = PromptRole | Literal["accept"]
ROLES: dict[Role, str] = {
    "init": "the object is here: its mask starts from these prompts alone",
    "correct": "the prompts correct the tracked mask; negative points alone always do",
    "accept": "the mask of this frame, up to the frame `until`, is right; no mask changes",
    "end": "from this frame on the object is not tracked",
    "absent": "from this frame on the object is not to be seen, until the next prompt",
}
"""Roles of a row, and what each means."""
_ROLES: tuple[Role, ...] = tuple(ROLES)
_WORDS: tuple[Role, ...] = ("accept", "end", "absent")
_SLACK = 1.0  # pixels that a box may reach beyond the frame: detectors round
LARGEST_ID = 65_535
"""Of an object: label maps have 16 bits."""
LISTED = 20
"""Faults that a message lists before it only counts them; `ManifestError.faults` has them all."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a row."""

    row: int
    """From 1, as a spreadsheet counts rows below its header; 0: the table as a whole."""
    column: str
    value: str
    expected: str

    def __str__(self) -> str:
        where = f"row {self.row}: " if self.row else ""
        return f"{where}{self.column} is {self.value}; expected {self.expected}"


class ManifestError(ValueError):
    """Prompts that cannot be meant so; `faults` has all of them."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        """Take at least one fault."""
        super().__init__(*faults)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        lines = [str(fault) for fault in self.faults[:LISTED]]
        rest = len(self.faults) - LISTED
        return "\n".join([*lines, f"... and {rest:,} more"] if rest > 0 else lines)


@dataclass(frozen=True)
class Row:
    """A row that was read."""

    number: int
    """From 1."""
    object_id: int
    name: str
    frame: int | None
    time_s: float | None
    role: Role
    xy: tuple[float, float] | None
    corner: tuple[float, float] | None
    """Right and bottom edge of a box."""
    label: int
    normalized: bool
    reference: tuple[float, float] | None
    """Width and height of the frame that the coordinates belong to."""
    span: tuple[int | None, int | None]
    """First and last frame on which the object is asked for."""
    until: int | None = None
    """Last frame that an accept speaks of."""


@dataclass(frozen=True)
class ObjectPlan:
    """What is asked of one object of a video."""

    object_id: int
    name: str
    start: int
    """First frame on which it is asked for."""
    end: int | None
    """Last one; None: the video's last."""
    prompts: Mapping[int, FramePrompt]
    """Its prompts by frame, in order."""


def given(value: Any) -> bool:
    """Whether a cell holds something."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return False
    return value is not pd.NaT and str(value) != ""


def read_rows(
    table: pd.DataFrame | Iterable[Mapping[str, Any]], numbers: Sequence[int] | None = None
) -> list[Row]:
    """Read the rows of one video.

    Args:
        table: in the manifest's columns; columns that are not known are left alone.
        numbers: of the rows, as messages have them; None: from 1.

    Raises:
        ManifestError: every fault that shows without the video.
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
    """Rows of one video that read well, and the faults of the others, each row by itself.

    For tables that are still being made; arguments as of `read_rows`.
    """
    if isinstance(table, str | Mapping):
        return [], [Fault(0, "the table", f"a {type(table).__name__}", "a list of rows")]
    records = table.to_dict("records") if isinstance(table, pd.DataFrame) else [*table]
    rows, faults = [], []
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
    """One row, value by value; notes faults and goes on."""

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
            self._fault("frame", "empty", "the frame that the accept speaks of; time_s will not do")
        either = "box" if self._given("x2") or self._given("y2") else "point"
        boxed = self._choice("prompt_type", ("point", "box"), either) == "box"
        placed = role not in _WORDS or self._given("x")
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
        return Row(
            self.number, object_id or 0, name, frame, time_s, role, xy, corner,
            self._label(boxed), normalized, reference, span,
            self._whole("until", 0),
        )  # fmt: skip

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
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and number >= least) or isinstance(value, bool):
            self._fault(column, repr(value), f"a number from {least:g}")
            return None
        return number

    def _whole(self, column: str, least: int, needed: bool = False) -> int | None:
        number = self._number(column, least, needed)
        if number is not None and number != int(number):
            self._fault(column, number, f"a whole number from {least}")
            return None
        return None if number is None else int(number)

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

    def _label(self, boxed: bool) -> int:
        if not self._given("label"):
            return 1
        label = _LABELS.get(str(self.record["label"]).strip().lower())
        if label is None:
            self._fault("label", repr(self.record["label"]), "1 or positive, 0 or negative")
        elif boxed and not label:
            self._fault("label", repr(self.record["label"]), "1: a box holds its object")
        return label or 0


def _by_object(rows: Sequence[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row.object_id, []).append(row)
    return dict(sorted(found.items()))


def object_faults(rows: Sequence[Row]) -> Iterator[Fault]:
    """Faults of objects as a whole: nothing that is part of them, spans that do not fit."""
    for object_id, mine in _by_object(rows).items():
        first, where = mine[0].number, f"of object {object_id}"
        placed = [row for row in mine if row.xy and row.role not in _WORDS]
        if not any(row.corner or row.label for row in placed):
            kind = "only negative points" if placed else "no points"
            yield Fault(first, f"label {where}", kind, "at least a positive point or a box")
        for place, name in ((0, "start_frame"), (1, "end_frame")):
            values = {value for row in mine if (value := row.span[place]) is not None}
            if len(values) > 1:
                yield Fault(first, f"{name} {where}", str(sorted(values)), "one value an object")
        start, end = span(mine)
        if end is not None and end < start:
            yield Fault(first, f"end_frame {where}", str(end), f"start_frame, {start}, or later")
        for row in mine:
            if row.frame is not None and (fault := _outside(row, row.frame, start, end)):
                yield fault


def _outside(row: Row, frame: int, start: int, end: int | None) -> Fault | None:
    """What is wrong with a frame on which its object is not asked for."""
    if start <= frame and (end is None or frame <= end):
        return None
    shown = f"{start} to {'the end' if end is None else end}, where it is asked for"
    return Fault(row.number, "frame", str(frame), shown)


def span(rows: Sequence[Row]) -> tuple[int, int | None]:
    """First and last frame on which the object of these rows is asked for; None: the last one."""
    starts = [row.span[0] for row in rows if row.span[0] is not None]
    ends = [row.span[1] for row in rows if row.span[1] is not None]
    return (starts[0] if starts else 0), (ends[0] if ends else None)


def resolve(
    rows: Sequence[Row], size: tuple[int, int], times: Sequence[float | None], complete: bool
) -> list[ObjectPlan]:
    """Fit prompts to their video.

    Args:
        rows: of `read_rows`.
        size: (H, W) of its frames.
        times: seconds of its frames, as many as have been looked at.
        complete: whether these are all frames there are.

    Raises:
        ManifestError: prompts outside the frame, beyond the last frame, or without time stamps to
            find them by; a frame on which an object has neither mask nor positive point.
    """
    faults: list[Fault] = []
    plans = []
    for object_id, mine in _by_object(rows).items():
        by_frame: dict[int, list[Row]] = {}
        start, end = span(mine)
        for row in prompts(mine):
            frame = frame_of(row, times, complete, faults)
            if frame is not None and (fault := _outside(row, frame, start, end)):
                faults.append(fault)
            elif frame is not None:
                by_frame.setdefault(frame, []).append(row)
        asked, there = dict[int, FramePrompt](), False
        for frame, found in sorted(by_frame.items()):
            asked[frame] = here = _asked(found, size, faults)
            if here.role in ("end", "absent"):
                there = False
            elif here.is_located:
                there = True
            elif there:  # what is not the object: said of the mask that is there
                asked[frame] = replace(here, role="correct")
            else:
                faults.append(
                    Fault(
                        found[0].number,
                        f"label of object {object_id}",
                        f"no positive point on frame {frame}, and no mask to correct",
                        "a positive point or a box",
                    )
                )
        name = next((row.name for row in mine if row.name), "")
        plans.append(ObjectPlan(object_id, name, start, end, asked))
    if faults:
        raise ManifestError(faults)
    return plans


def prompts(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows that masks hang on: all but accepts, which speak of masks that are there."""
    return tuple(row for row in rows if row.role != "accept")


def frame_of(
    row: Row, times: Sequence[float | None], complete: bool, faults: list[Fault]
) -> int | None:
    """The frame that a row means; None after a fault was added. Arguments as of `resolve`."""
    if row.frame is not None:
        if complete and row.frame >= len(times):
            faults.append(
                Fault(row.number, "frame", str(row.frame), f"0 to {len(times) - 1}, the last frame")
            )
            return None
        return row.frame
    stamped = [(time, frame) for frame, time in enumerate(times) if time is not None]
    known = [time for time, _ in stamped]
    if not known:
        faults.append(
            Fault(row.number, "time_s", f"{row.time_s:g}", "frame: this video has no time stamps")
        )
        return None
    last = known[-1] + (known[-1] - known[-2] if len(known) > 1 else 0)
    wanted = cast(float, row.time_s)
    if complete and wanted > last:
        faults.append(
            Fault(row.number, "time_s", f"{wanted:g}", f"0 to {last:g}, the end of the video")
        )
        return None
    return stamped[max(0, int(np.searchsorted(known, wanted + 1e-6, side="right")) - 1)][1]


def _asked(rows: Sequence[Row], size: tuple[int, int], faults: list[Fault]) -> FramePrompt:
    """The rows of an object on one frame, in pixels."""
    points, labels, box = [], [], None
    for row in rows:
        if row.xy is None:
            continue
        place = in_pixels(row, row.xy, size)
        if row.corner is not None:
            if box is not None:
                faults.append(
                    Fault(row.number, "prompt_type", "box", "one box an object and frame")
                )
            box = np.array([*place, *in_pixels(row, row.corner, size)], np.float32)
            if not (box[0] < box[2] and box[1] < box[3]):
                faults.append(Fault(row.number, "x2, y2", "not below and right", "a box of pixels"))
        else:
            points.append(place)
            labels.append(row.label)
        x, y = np.array(place, np.float32)  # as they are kept: 159.999999 is 160 then
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            faults.append(_not_within(row, "x, y", place, size))
        if row.corner is not None:
            corner = in_pixels(row, row.corner, size)
            if corner[0] > size[1] + _SLACK or corner[1] > size[0] + _SLACK:
                faults.append(_not_within(row, "x2, y2", corner, size))
    roles = {row.role for row in rows}
    if len(roles) > 1:
        faults.append(
            Fault(rows[0].number, "role", ", ".join(sorted(roles)), "one role an object and frame")
        )
    return FramePrompt(
        np.array(points, np.float32).reshape(-1, 2),
        np.array(labels, np.int64),
        box,
        cast(PromptRole, rows[0].role),
    )


def _not_within(row: Row, columns: str, place: tuple[float, float], size: tuple[int, int]) -> Fault:
    expected = f"a place in the frame of {size[1]} x {size[0]} pixels"
    return Fault(row.number, columns, f"({place[0]:g}, {place[1]:g})", expected)


def in_pixels(row: Row, place: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
    """A place (x, y) of a row, in pixels of a frame of (H, W); a share of 1 is its last pixel."""
    h, w = size
    if row.normalized:
        return min(place[0] * w, w - 1), min(place[1] * h, h - 1)
    if row.reference is not None:
        return place[0] * w / row.reference[0], place[1] * h / row.reference[1]
    return place
