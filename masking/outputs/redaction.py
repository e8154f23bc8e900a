"""Objects hidden in a video, and the spans in which it is not certain that they are.

Where a mask cannot be trusted, or an object is lost, what was last and what is next known of it is
hidden, grown by a margin; these frames are listed as not safe. A frame is safe if each object has a
trusted mask, or a person said that it is not visible.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa

from masking.images.arrays import Bools, Pixels
from masking.images.masks import box
from masking.outputs.rows import frames_of, mask_of

Hiding = Literal["blur", "pixelate"]
Row = Mapping[str, Any]

_SAFE = ("prompted", "tracked", "recovered")
_MARGIN, _LEAST = 0.06, 4
"""Pixels that a trusted mask is grown by: a share of its longer side, at least so many. Its edge
may be off by a few pixels, which would show the outline of a face."""
_DOUBTFUL_MARGIN = 0.5
"""The same of what is last and next known of an object: it may have moved."""
_CELLS = 6
"""Cells along the longer side of an object: with so few, no face or number is left."""
_SMALLEST_CELL = 8


@dataclass(frozen=True)
class Unsafe:
    """Consecutive frames on which an object may show."""

    object_id: int
    """Its id."""
    first_frame: int
    """Index of the first frame."""
    last_frame: int
    """Index of the last frame."""
    first_s: float | None
    """Seconds of the first frame since the start; None: unknown."""
    last_s: float | None
    """Seconds of the last frame since the start; None: unknown."""
    reason: str
    """State of the object there: uncertain, lost, or untracked."""

    def __str__(self) -> str:
        frames = f"frame {self.first_frame:,}"
        if self.last_frame > self.first_frame:
            frames = f"frames {self.first_frame:,} to {self.last_frame:,}"
        return f"not safe: {frames}: object {self.object_id} is {self.reason}"


class Redaction:
    """Hides the objects of a video on its frames."""

    def __init__(self, table: pa.Table, hiding: Hiding) -> None:
        """Take the masks of the video (`masking.outputs.rows`), and how objects are hidden."""
        self._hiding = hiding
        self._known: dict[tuple[int, int], tuple[Row, ...]] = {}
        self.unsafe = self._survey(table)
        """Spans of frames that are not safe, by their first frames."""

    def _survey(self, table: pa.Table) -> list[Unsafe]:
        """Return the spans that are not safe, and note what is last and next known in each."""
        last: dict[int, Row] = {}
        open_rows: dict[int, list[Row]] = {}
        found: list[Unsafe] = []
        for _, rows in frames_of(table):
            for row in rows:
                number = row["object_id"]
                doubtful = open_rows.setdefault(number, [])
                if row["state"] in _SAFE or row["state"] == "absent":
                    following = row if row["state"] in _SAFE else None
                    found += self._close(doubtful, last.get(number), following)
                    open_rows[number] = []
                    last[number] = {name: row[name] for name in _KEPT}
                else:
                    doubtful.append({name: row[name] for name in _KEPT if name != "rle"})
        for number, doubtful in open_rows.items():
            found += self._close(doubtful, last.get(number), None)
        return sorted(found, key=lambda span: (span.first_frame, span.object_id))

    def _close(
        self, doubtful: Sequence[Row], before: Row | None, after: Row | None
    ) -> Iterable[Unsafe]:
        """Note what is known around doubtful frames of an object; yield its spans by reason."""
        known = tuple(row for row in (before, after) if row is not None and row["area"])
        begin = 0
        for place, row in enumerate(doubtful):
            self._known[row["object_id"], row["frame"]] = known
            following = doubtful[place + 1 : place + 2]
            if following and following[0]["state"] == row["state"]:
                continue
            first = doubtful[begin]
            begin = place + 1
            yield Unsafe(
                row["object_id"], first["frame"], row["frame"], first["time_s"], row["time_s"],
                row["state"] or "untracked",
            )  # fmt: skip

    def region(self, row: Row) -> Bools:
        """Return what is hidden of an object on a frame (H, W)."""
        own = mask_of(row)
        if row["state"] in _SAFE:
            return _grown(own, _MARGIN)
        if row["state"] == "absent":
            return own
        hidden = _grown(own, _MARGIN)
        for known in self._known.get((row["object_id"], row["frame"]), ()):
            mask = mask_of({**known, "owned": None})
            if mask.shape == hidden.shape:
                hidden |= _grown(mask, _DOUBTFUL_MARGIN)
            else:  # of a frame of another size
                hidden[:] = True
        return hidden

    def draw(self, image: Pixels, rows: Sequence[Row]) -> Pixels:
        """Return a frame (H, W, 3) uint8 with its objects hidden; `rows` are those of its masks."""
        hidden = image.copy()
        for row in rows:
            region = self.region(row)
            if region.any():
                _hide(hidden, image, region, self._hiding)
        return hidden


_KEPT = ("object_id", "frame", "time_s", "state", "rle", "height", "width", "area")


def _grown(mask: Bools, share: float) -> Bools:
    """Return a mask that is grown by a share of its longer side, at least by a few pixels."""
    if not mask.any():
        return mask.copy()
    left, top, width, height = box(mask)
    reach = max(_LEAST, round(share * max(width, height)))
    grown = np.zeros_like(mask)
    rows = slice(max(0, top - reach), top + height + reach)
    columns = slice(max(0, left - reach), left + width + reach)
    away = cv2.distanceTransform(
        (~mask[rows, columns]).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    grown[rows, columns] = away <= reach
    return grown


def _hide(target: Pixels, image: Pixels, region: Bools, hiding: Hiding) -> None:
    """Replace the pixels of a region in a frame by means over cells of the region's box."""
    left, top, width, height = box(region)
    rows, columns = slice(top, top + height), slice(left, left + width)
    cell = max(_SMALLEST_CELL, -(-max(width, height) // _CELLS))
    small = (max(1, width // cell), max(1, height // cell))
    means = cv2.resize(image[rows, columns], small, interpolation=cv2.INTER_AREA)
    how = cv2.INTER_NEAREST if hiding == "pixelate" else cv2.INTER_LINEAR
    inside = region[rows, columns]
    target[rows, columns][inside] = cv2.resize(means, (width, height), interpolation=how)[inside]


def unsafe_csv(spans: Iterable[Unsafe]) -> str:
    """Return spans that are not safe as CSV, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Unsafe.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(span) for span in spans)
    return text.getvalue()
