"""Rows of a manifest as the page shows them, in frames and pixels, and changes of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.page.store import Record
from jobs.page.videos import Clip
from masking.manifest.rows import COLUMNS, Row, frame_of, in_pixels, parse_rows

_OF_THE_VIDEO = ("uri", "video_id")
_UNITS = ("coords", "ref_width", "ref_height")
"""Columns that say what a place is measured in: a place that is changed is in pixels."""


def shown(
    records: Sequence[Record],
    size: tuple[int, int],
    times: Sequence[float | None],
    complete: bool,
) -> list[dict[str, Any]]:
    """Rows as the page takes them; `row` is the number of each among the records.

    Args:
        records: of one video, without faults.
        size: (H, W) of its frames.
        times: seconds of its frames, as many as are known.
        complete: whether these are all.

    Returns:
        Of each `frame` (None: not known yet), `object_id`, `object_name`, `role`, `until`, and what
        is given of x, y, x2, y2 in pixels, and label.
    """
    found = []
    for number, row in enumerate(parse_rows(records)[0]):
        place: dict[str, Any] = {}
        if row.xy is not None:
            place["x"], place["y"] = in_pixels(row, row.xy, size)
        if row.corner is not None:
            place["x2"], place["y2"] = in_pixels(row, row.corner, size)
        elif row.xy is not None:
            place["label"] = row.label
        known = row.frame is not None or complete or _reached(row, times)
        found.append(
            {"row": number, "object_id": row.object_id, "object_name": row.name, "role": row.role,
             "frame": frame_of(row, times, complete, []) if known else None,
             "until": row.until, **place}
        )  # fmt: skip
    return found


def _reached(row: Row, times: Sequence[float | None]) -> bool:
    """Whether the frame that is shown at the time of a row is among those known."""
    last = times[-1] if times else None
    return last is not None and row.time_s is not None and row.time_s < last


def changed(present: Sequence[Record], change: Mapping[str, Any], clip: Clip) -> Record:
    """A row after a change, or a new row.

    Args:
        present: the video's rows.
        change: `row`, the number of a present one, and the columns that change; or without it the
            columns of a new one.
        clip: the video.

    Raises:
        ValueError: a column that is none, or a row that is not there.
    """
    columns = {name: value for name, value in change.items() if name != "row"}
    wrong = [name for name in columns if name not in COLUMNS or name in _OF_THE_VIDEO]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: no column that a click has")
    number = change.get("row")
    if number is None:
        first = present[0] if present else {"uri": clip.uri, "video_id": clip.video_id}
        return {name: first[name] for name in _OF_THE_VIDEO if name in first} | columns
    if not 0 <= number < len(present):
        raise ValueError(f"row {number} is not there: the video has {len(present)}")
    unit = {name: None for name in _UNITS if "x" in columns and name in present[number]}
    return {**present[number], **unit, **columns}
