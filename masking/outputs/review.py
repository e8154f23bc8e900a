"""The review of masks: on which frames a click of a person would help most.

A row of a mask file has the IoU to expect of its mask (`score`) and the probability that it is
right (`quality`, `masking.tracking.trust`). What is missing from an IoU of 1 is what a frame can
gain. A click heals its own frame, and the others of its object the less the farther away they are,
up to the next frame with a prompt. So each span of frames has a frame on which a click gains most,
and spans are ranked by that gain.

Masks that no one doubts can be wrong, too. A few spans of tracked frames are drawn at random, for a
person to check: what is found there says how far the estimates can be believed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from masking.images.geometry import deepest
from masking.outputs.rows import mask_of

REACH = 15.0
"""Frames from a click at which it still heals half of what is wrong."""
HEALED = 0.8
"""Share of what is wrong that a click heals on its own frame."""
WORTH = 1.0
"""Least gain of a span of tracked frames that is listed, in frames of IoU."""
CHECKED = 0.05
"""Share of the objects without any listed span of which tracked frames are drawn for a check."""
REASONS: dict[str, str] = {
    "lost": "the mask is empty, and the tracker searches for the object",
    "uncertain": "the mask may well be wrong",
    "tracked": "each mask is probably right, but the frames are many",
    "check": "nothing is wrong as far as is known: drawn at random, to see whether that is true",
}
"""Reasons of spans, and what each means."""
READ = (
    "frame",
    "object_id",
    "state",
    "score",
    "quality",
    "area",
    "rle",
    "owned",
    "height",
    "width",
)
"""Columns of a mask file that `spans` reads."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Span:
    """Consecutive frames of an object that a person should check."""

    video_id: str
    """Id of the video."""
    object_id: int
    """Id of the object."""
    first_frame: int
    """Index of the first frame."""
    last_frame: int
    """Index of the last frame."""
    reason: str
    """Why; see `REASONS`."""
    click_frame: int
    """Frame on which a click gains most."""
    severity: float
    """Gain of a click there, in frames: the sum of what is expected to be added to the IoU of the
    object's frames. Spans of the same object share what there is to gain."""
    click_x: float | None = None
    """Column of the middle of the mask on that frame, or on the nearest frame that has one, in
    pixels: where to begin to search. None: the object has no mask at all."""
    click_y: float | None = None
    """Row of that place."""


def spans(video_id: str, table: pa.Table) -> list[Span]:
    """Return the spans of a video that a person should check, the greatest gain first.

    Args:
        video_id: id of the video.
        table: its mask file, with at least the columns `READ`.
    """
    numbers = table["object_id"].unique().to_pylist()
    parts = (table.filter(pc.field("object_id") == number) for number in numbers)
    found = [span for part in parts for span in _Object(video_id, part).spans()]
    return sorted(found, key=lambda one: (-one.severity, one.object_id, one.first_frame))


class _Object:
    """An object of a video: what is missing on each of its T frames."""

    def __init__(self, video_id: str, table: pa.Table) -> None:
        self.video_id, self.number, self.table = video_id, table["object_id"][0].as_py(), table
        self.states = table["state"].to_pylist()
        self.missing = missing_of(table)
        self.walls = np.array([state in ("prompted", None) for state in self.states])

    def spans(self) -> list[Span]:
        """Return its spans; each has the gain that those before it leave."""
        parts, start = [], 0
        for state, run in groupby("tracked" if s == "recovered" else s for s in self.states):
            stop = start + sum(1 for _ in run)
            if state in REASONS:
                parts.append((state, start, stop))
            start = stop
        gains = [self._healed(self._best(start, stop)).sum() for _, start, stop in parts]
        found = []
        for number in sorted(range(len(parts)), key=lambda n: -gains[n]):
            state, start, stop = parts[number]
            place = self._best(start, stop)
            healed = self._healed(place)
            if state == "tracked" and healed[start:stop].sum() < WORTH:
                continue
            self.missing = self.missing - healed
            found.append(self._span(start, stop, state, place, float(healed.sum())))
        tracked = [part for part in parts if part[0] == "tracked"]
        if not found and tracked and self._random("drawn") < CHECKED:
            _, start, stop = max(tracked, key=lambda part: part[2] - part[1])
            place = start + int(self._random("frame") * (stop - start))
            gain = float(self._healed(place).sum())
            found.append(self._span(place, place + 1, "check", place, gain))
        return found

    def _best(self, start: int, stop: int) -> int:
        """Return the frame of a span on which a click heals most of the span."""
        worst = start + int(self.missing[start:stop].argmax())
        candidates = sorted({worst, start, (start + stop) // 2, stop - 1})
        return max(candidates, key=lambda place: float(self._healed(place)[start:stop].sum()))

    def _healed(self, place: int) -> Floats:
        """Return what a click on a frame heals of each frame, (T,)."""
        reach, count = int(10 * REACH), len(self.missing)
        first, last = max(0, place - reach), min(count, place + reach + 1)
        walls = np.flatnonzero(self.walls[first:last]) + first
        before, after = walls[walls < place], walls[walls > place]
        first = int(before[-1]) + 1 if len(before) else first
        last = int(after[0]) if len(after) else last
        found, far = np.zeros(count), np.abs(np.arange(first, last) - place)
        found[first:last] = HEALED * self.missing[first:last] * 0.5 ** (far / REACH)
        return found

    def _span(self, start: int, stop: int, reason: str, place: int, gain: float) -> Span:
        first, last, click = (self.table["frame"][at].as_py() for at in (start, stop - 1, place))
        x, y = self._middle(place)
        return Span(self.video_id, self.number, first, last, reason, click, gain, x, y)

    def _middle(self, place: int) -> tuple[float | None, float | None]:
        """Return the deepest pixel (x, y) of the mask that is nearest in time to a frame."""
        masked = np.flatnonzero(self.table["area"].fill_null(0).to_numpy() > 0)
        if not len(masked):
            return None, None
        nearest = int(masked[np.abs(masked - place).argmin()])
        found = deepest(mask_of(self.table.slice(nearest, 1).to_pylist()[0]))
        return (None, None) if found is None else (float(found[0]), float(found[1]))

    def _random(self, what: str) -> float:
        """Return a number from 0 to 1 that depends on the video, the object and `what` alone."""
        digest = hashlib.sha256(f"{self.video_id}\0{self.number}\0{what}".encode()).digest()
        return int.from_bytes(digest[:7]) / 2**56


def missing_of(table: pa.Table) -> Floats:
    """Return how much of an IoU of 1 is expected to be missing in each row (T,)."""
    states = table["state"].to_pylist()
    score, quality = (table[n].fill_null(1.0).to_numpy() for n in ("score", "quality"))
    lost = np.array([state == "lost" for state in states])
    known = np.array([state in (None, "prompted", "absent") for state in states])
    missing: Floats = np.where(known, 0.0, 1.0 - np.where(lost, quality, score))
    return missing


def outlook(spans: Sequence[Mapping[str, Any]], missing: float, frames: int) -> dict[str, Any]:
    """Return what is to be expected of all masks now, and after the first clicks.

    Args:
        spans: rows of review.csv, the greatest gain first.
        missing: sum over frames and objects of what is expected to be missing from an IoU of 1.
        frames: number of these frames.

    Returns:
        `frames`; `iou`, the mean IoU to expect; and `iou_after`, the same after so many clicks.
    """
    gains, after = np.cumsum([span["severity"] for span in spans]), {}
    for count in sorted({1, 10, 100, 1000, 10000, len(spans)}):
        if 0 < count <= len(spans):
            after[str(count)] = 1 - max(0.0, missing - float(gains[count - 1])) / max(frames, 1)
    return {"frames": frames, "iou": 1 - missing / max(frames, 1), "iou_after": after}
