"""Boxes of the objects of a video as tracks: runs of frames, and the frames to interpolate between.

Tools that hold tracks interpolate boxes linearly between keyframes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from masking.outputs.rows import frames_of

_TOLERANCE = 0.02
"""Largest distance of an interpolated edge of a box from its own place, as a share of the box's
longer side: a person who corrects a track wants few keyframes, and masks waver by as much."""


@dataclass(frozen=True)
class Run:
    """Consecutive frames on which an object has a mask."""

    frames: tuple[int, ...]
    """Indices of the frames, from 0."""
    times: tuple[float | None, ...]
    """Seconds of the frames since the first one of the video."""
    boxes: NDArray[np.float64]
    """(N, 4) left, top, right and bottom edge in pixels."""
    states: tuple[str, ...]
    """State of the object on each frame."""
    keys: frozenset[int]
    """Frames between which boxes may be interpolated: the first, the last, those that a person
    prompted, and those without which an edge would be too far off."""


@dataclass(frozen=True)
class Track:
    """An object of a video."""

    object_id: int
    """Its id."""
    runs: tuple[Run, ...]
    """The runs of frames that show it, in order."""


@dataclass(frozen=True)
class Clip:
    """A video, as the files of other tools describe it."""

    video_id: str
    """Its id."""
    uri: str
    """Where it is."""
    size: tuple[int, int]
    """(H, W) in pixels."""
    frames: int
    """Number of its frames."""
    rate: float | None
    """Frames per second; None: unknown."""
    duration: float
    """Seconds from its first frame to the end of its last one; 0 if they are unknown."""


def clip_of(table: pa.Table, video_id: str, uri: str, rate: float | None) -> Clip:
    """Return a video of which the masks are a table (`masking.outputs.rows`)."""
    row = table.slice(0, 1).to_pylist()[0]
    last = table.slice(table.num_rows - 1, 1).to_pylist()[0]
    frames = last["frame"] + 1
    step = 1 / rate if rate else 0.0
    duration = step * frames if last["time_s"] is None else last["time_s"] + step
    return Clip(video_id, uri, (row["height"], row["width"]), frames, rate, duration)


def tracks_of(table: pa.Table) -> list[Track]:
    """Return the tracks of a video's objects, in the order of their ids."""
    shown: dict[int, list[dict[str, Any]]] = {}
    for _, rows in frames_of(table):
        for row in rows:
            mine = shown.setdefault(row["object_id"], [])
            if row["area"]:
                mine.append({name: row[name] for name in ("frame", "time_s", "box", "state")})
    return [Track(number, tuple(_runs(rows))) for number, rows in sorted(shown.items())]


def _runs(rows: Sequence[dict[str, Any]]) -> Iterator[Run]:
    begin = 0
    for place in range(1, len(rows) + 1):
        if place < len(rows) and rows[place]["frame"] == rows[place - 1]["frame"] + 1:
            continue
        part = rows[begin:place]
        begin = place
        boxes = np.array([row["box"] for row in part], np.float64)
        boxes[:, 2:] += boxes[:, :2]
        states = tuple(row["state"] for row in part)
        frames = tuple(row["frame"] for row in part)
        keys = frozenset(frames[number] for number in _keys(boxes, states))
        yield Run(frames, tuple(row["time_s"] for row in part), boxes, states, keys)


def _keys(boxes: NDArray[np.float64], states: Sequence[str]) -> set[int]:
    """Return which boxes (N, 4) of a run are keyframes."""
    forced = {0, len(boxes) - 1} | {i for i, state in enumerate(states) if state == "prompted"}
    keys, ordered = set(forced), sorted(forced)
    open_spans = list(pairwise(ordered))
    while open_spans:
        first, last = open_spans.pop()
        share = np.arange(1, last - first)[:, None] / (last - first)
        straight = boxes[first] + share * (boxes[last] - boxes[first])
        own = boxes[first + 1 : last]
        side = (own[:, 2:] - own[:, :2]).max(axis=1, initial=0)
        off = np.abs(straight - own).max(axis=1, initial=0) - np.maximum(1, _TOLERANCE * side)
        if len(off) and off.max() > 0:
            middle = first + 1 + int(off.argmax())
            keys.add(middle)
            open_spans += [(first, middle), (middle, last)]
    return keys
