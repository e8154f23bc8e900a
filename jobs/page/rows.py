"""Translates rows of a manifest to the frames and pixels of the page, and changes of them back."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from jobs.page.arguments import encodable, short
from jobs.page.journal import Record
from jobs.page.videos import Clip
from masking.manifest.plans import frame_of, in_pixels
from masking.manifest.rows import COLUMNS, Row, parse_rows

_OF_THE_VIDEO = ("uri", "video_id")
LONGEST = 4096
"""Characters of a text that the page may give a cell."""
_INT64 = 1 << 63
_UNITS = ("coords", "ref_width", "ref_height")
"""Columns with the unit of a position; a position that changes is in pixels afterwards."""


def page_rows(
    records: Sequence[Record],
    size: tuple[int, int],
    times: Sequence[float | None],
    complete: bool,
) -> list[dict[str, Any]]:
    """Return a video's rows as the page shows them.

    Args:
        records: rows of the video, without faults.
        size: (H, W) of its first frame.
        times: seconds of its frames, as far as they are known.
        complete: whether `times` has all frames.

    Returns:
        For each record: `row`, its place in `records`; `frame` (None if it is not known yet),
        `object_id`, `object_name`, `role`, `until`; and those of x, y, x2, y2 (in pixels) and label
        that it has; or `shape`, "mask" or "polygon", if it has one.
    """
    found = []
    for number, row in enumerate(parse_rows(records)[0]):
        position: dict[str, Any] = {}
        if row.xy is not None:
            position["x"], position["y"] = in_pixels(row, row.xy, size)
        if row.corner is not None:
            position["x2"], position["y2"] = in_pixels(row, row.corner, size)
        elif row.xy is not None:
            position["label"] = row.label
        elif row.is_shape:
            position["shape"] = "mask" if row.polygon is None else "polygon"
        known = row.frame is not None or complete or _reached(row, times)
        found.append(
            {"row": number, "object_id": row.object_id, "object_name": row.name, "role": row.role,
             "frame": frame_of(row, times, complete, []) if known else None,
             "until": row.until, **position}
        )  # fmt: skip
    return found


def _reached(row: Row, times: Sequence[float | None]) -> bool:
    """Return whether the frame at the time of a row is among those known."""
    last = times[-1] if times else None
    return last is not None and row.time_s is not None and row.time_s < last


def changed_row(present: Sequence[Record], change: Mapping[str, Any], clip: Clip) -> Record:
    """Return a row after a change, or a new row.

    Args:
        present: current rows of the video.
        change: columns that change and `row`, the place of the row in `present`; or, without `row`,
            the columns of a new row.
        clip: the video.

    Raises:
        ValueError: a column does not exist or cannot be changed, a value is none that every format
            of a manifest can hold, or there is no such row.
    """
    if not isinstance(change, Mapping):
        raise ValueError(f"a row is {short(change)}; expected values by name of column")
    columns = {name: value for name, value in change.items() if name != "row"}
    wrong = [name for name in columns if name not in COLUMNS or name in _OF_THE_VIDEO]
    if wrong:
        raise ValueError(f"{short(', '.join(wrong))}: expected columns of a click")
    for name, value in columns.items():
        _check_value(name, value)
    number = change.get("row")
    if number is None:
        first = present[0] if present else {"uri": clip.uri, "video_id": clip.video_id}
        return {name: first[name] for name in _OF_THE_VIDEO if name in first} | columns
    if type(number) is not int:
        raise ValueError(f"row is {short(number)}; expected the place of a row")
    if not 0 <= number < len(present):
        raise ValueError(f"row {number} does not exist: the video has {len(present)} rows")
    unit = {name: None for name in _UNITS if "x" in columns and name in present[number]}
    return {**present[number], **unit, **columns}


def _check_value(column: str, value: Any) -> None:
    """Raise ValueError if a cell of some format could not hold a value."""
    kind = type(value)
    if value is None or (kind is int and abs(value) < _INT64):
        return
    if kind is float and isfinite(value):
        return
    if kind is str and len(value) <= LONGEST and "\0" not in value and encodable(value):
        return
    size = f", {len(value):,} characters," if kind is str and len(value) > LONGEST else ""
    raise ValueError(
        f"{column} is {short(value)}{size}; expected a finite number of 64 bits, or text of at most"
        f" {LONGEST:,} characters that UTF-8 can encode, without NUL"
    )
