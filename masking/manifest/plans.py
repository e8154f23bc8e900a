"""Prompts fitted to their video: frames by timestamps, places in pixels, an object's plan."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from masking.images.arrays import Bools
from masking.images.outlines import filled
from masking.manifest.faults import Fault, ManifestError
from masking.manifest.prompt import FramePrompt, PromptRole
from masking.manifest.rows import (
    Row,
    contradictions,
    fault_outside,
    prompts,
    rows_by_object,
    span,
)
from masking.manifest.shapes import is_path, pixels_of, rings_of

_SLACK = 1.0  # pixels by which a box may exceed the frame: detectors round
_ROUNDED = 0.0005 + 1e-6  # seconds: most programs write times to the millisecond


@dataclass(frozen=True)
class ObjectPlan:
    """The prompts of one object of a video, and the frames on which it is tracked."""

    object_id: int
    """Id of the object, from 1."""
    name: str
    """Name of the object; may be empty."""
    start: int
    """First frame on which it is tracked."""
    end: int | None
    """Last frame on which it is tracked; None: the video's last."""
    prompts: Mapping[int, FramePrompt]
    """Its prompts by frame, in order."""


def resolve(
    rows: Sequence[Row], size: tuple[int, int], times: Sequence[float | None], complete: bool
) -> list[ObjectPlan]:
    """Fit prompts to their video.

    Args:
        rows: from `read_rows`.
        size: (H, W) in pixels of the video's frames.
        times: seconds of the video's frames since the first, as far as they are known.
        complete: whether `times` has all frames of the video.

    Raises:
        ManifestError: prompts outside the frame, beyond the last frame, at a time in a video
            without timestamps, or at a frame and a time that are not the same; a frame on which an
            object has neither a mask nor a positive point; points that contradict each other.
    """
    faults: list[Fault] = []
    plans = []
    for object_id, mine in rows_by_object(rows).items():
        by_frame: dict[int, list[Row]] = {}
        start, end = span(mine)
        for row in prompts(mine):
            frame = frame_of(row, times, complete, faults)
            if frame is not None and (fault := fault_outside(row, frame, start, end)):
                faults.append(fault)
            elif frame is not None:
                by_frame.setdefault(frame, []).append(row)
        name = next((row.name for row in mine if row.name), "")
        found = _prompts(object_id, by_frame, size, faults)
        plans.append(ObjectPlan(object_id, name, start, end, found))
    if faults:
        raise ManifestError(faults)
    return plans


def _prompts(
    object_id: int,
    by_frame: Mapping[int, Sequence[Row]],
    size: tuple[int, int],
    faults: list[Fault],
) -> dict[int, FramePrompt]:
    """Return the prompts of an object by frame; faults are added to the list."""
    found, has_mask = dict[int, FramePrompt](), False
    for frame, rows in sorted(by_frame.items()):
        found[frame] = prompt = _prompt(rows, size, faults)
        if prompt.role in ("end", "absent"):
            has_mask = False
        elif prompt.is_located:
            has_mask = True
        elif has_mask:  # negative points correct the mask that is there
            found[frame] = replace(prompt, role="correct")
        else:
            value = f"only negative on frame {frame}, without a mask to correct"
            column = f"label of object {object_id}"
            faults.append(Fault(rows[0].number, column, value, "a positive point or a box"))
    return found


def frame_of(
    row: Row, times: Sequence[float | None], complete: bool, faults: list[Fault]
) -> int | None:
    """Return the frame that a row refers to; None if there is none, after a fault was added.

    A time selects the frame that is shown then, or the next one if that begins within half a
    millisecond: times are often rounded. Arguments are those of `resolve`; `faults` is the list
    that a fault is added to.
    """
    if row.frame is not None:
        if complete and row.frame >= len(times):
            expected = f"0 to {len(times) - 1}, the last frame"
            faults.append(Fault(row.number, "frame", str(row.frame), expected))
            return None
        if fault := _time_fault(row, row.frame, times, complete):
            faults.append(fault)
        return row.frame
    stamped = [(time, frame) for frame, time in enumerate(times) if time is not None]
    known = [time for time, _ in stamped]
    wanted = cast(float, row.time_s)
    if not known:
        expected = "a frame instead, as this video has no timestamps"
        faults.append(Fault(row.number, "time_s", f"{wanted:g}", expected))
        return None
    last = known[-1] + (known[-1] - known[-2] if len(known) > 1 else 0)
    if complete and wanted > last:
        expected = f"0 to {last:g}, the end of the video"
        faults.append(Fault(row.number, "time_s", f"{wanted:g}", expected))
        return None
    shown = max(0, int(np.searchsorted(known, wanted + 1e-6, side="right")) - 1)
    if shown + 1 < len(known):
        gap, rest = known[shown + 1] - known[shown], known[shown + 1] - wanted
        shown += rest <= min(_ROUNDED, gap / 2)
    return stamped[shown][1]


def _time_fault(
    row: Row, frame: int, times: Sequence[float | None], complete: bool
) -> Fault | None:
    """Return the fault of a row with a frame and a time of another one; None: there is none.

    The time may be earlier than the frame by half the time between frames, as rounding makes it.
    """
    own = times[frame] if frame < len(times) else None
    if row.time_s is None or own is None:
        return None
    before = times[frame - 1] if frame else None
    after = times[frame + 1] if frame + 1 < len(times) else None
    if after is None and complete and before is not None:  # the last frame
        after = 2 * own - before + _ROUNDED
    first = own if before is None else (own + before) / 2
    if first - _ROUNDED <= row.time_s and (after is None or row.time_s < after):
        return None
    value = f"{row.time_s:g}, not the time of frame {frame}"
    return Fault(row.number, "time_s", value, f"{own:g}; or leave frame or time_s empty")


def _prompt(rows: Sequence[Row], size: tuple[int, int], faults: list[Fault]) -> FramePrompt:
    """Return the prompt of an object on one frame, in pixels; faults are added to the list."""
    points, labels, box = [], [], None
    for row in rows:
        if row.xy is None:
            continue
        place = in_pixels(row, row.xy, size)
        if row.corner is None:
            points.append(place)
            labels.append(row.label)
        else:
            if box is not None:
                expected = "one box for each object and frame"
                faults.append(Fault(row.number, "prompt_type", "box", expected))
            corner = in_pixels(row, row.corner, size)
            box = np.array([*place, *corner], np.float32)
            if not (box[0] < box[2] and box[1] < box[3]):
                faults.append(Fault(row.number, "x2, y2", "not below and right of x, y", "a box"))
        with np.errstate(over="ignore"):
            x, y = np.array(place, np.float32)  # as they are stored: 159.999999 becomes 160
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            faults.append(_outside_frame(row, "x, y", place, size))
        if row.corner is not None and (
            corner[0] > size[1] + _SLACK or corner[1] > size[0] + _SLACK
        ):
            faults.append(_outside_frame(row, "x2, y2", corner, size))
    mask = _mask(rows, size, faults)
    if mask is not None and box is not None:
        value = f"beside a {'mask' if any(row.mask for row in rows) else 'polygon'}"
        faults.append(Fault(rows[0].number, "a box", value, "one of them on a frame"))
    faults += contradictions((row, _pixel(row, size)) for row in rows if row.xy and not row.corner)
    roles = {row.role for row in rows}
    if len(roles) > 1:
        expected = "one role for each object and frame"
        faults.append(Fault(rows[0].number, "role", ", ".join(sorted(roles)), expected))
    return FramePrompt(
        np.array(points, np.float32).reshape(-1, 2),
        np.array(labels, np.int64),
        box,
        mask,
        cast(PromptRole, rows[0].role),
    )


def _mask(rows: Sequence[Row], size: tuple[int, int], faults: list[Fault]) -> Bools | None:
    """Return the pixels (H, W) of all masks and polygons of an object on one frame together; None:
    there are none. Faults are added to the list."""
    found = None
    for row in rows:
        if not row.is_shape:
            continue
        one = _polygon_pixels(row, size, faults) if row.polygon else _mask_pixels(row, size, faults)
        if one is not None and not one.any():
            kind = "polygon" if row.polygon else "mask"
            expected = "pixels of the object; role absent says that it is not visible"
            faults.append(Fault(row.number, kind, f"empty in {size[1]} x {size[0]}", expected))
        elif one is not None:
            found = one if found is None else found | one
    return found


def _mask_pixels(row: Row, size: tuple[int, int], faults: list[Fault]) -> Bools | None:
    text = cast(str, row.mask)
    if is_path(text):
        expected = "run lengths; pictures are read by jobs.mask and masking.mask_video"
        faults.append(Fault(row.number, "mask", repr(text), expected))
        return None
    mask = pixels_of(text)
    if mask.shape != size:
        value = f"of {mask.shape[1]} x {mask.shape[0]} pixels"
        expected = f"the size of the frame, {size[1]} x {size[0]}"
        faults.append(Fault(row.number, "mask", value, expected))
        return None
    return mask


def _polygon_pixels(row: Row, size: tuple[int, int], faults: list[Fault]) -> Bools | None:
    scale = np.ones(2)
    if row.normalized:
        scale = np.array([size[1], size[0]], np.float64)
    elif row.reference is not None:
        scale = np.array([size[1], size[0]]) / np.array(row.reference)
    rings = [ring * scale for ring in rings_of(cast(str, row.polygon))]
    for x, y in np.concatenate(rings).tolist():
        if not (-_SLACK <= x <= size[1] + _SLACK and -_SLACK <= y <= size[0] + _SLACK):
            faults.append(_outside_frame(row, "a corner of the polygon", (x, y), size))
            return None
    return filled(rings, size)


def _pixel(row: Row, size: tuple[int, int]) -> tuple[int, int]:
    x, y = in_pixels(row, cast(tuple[float, float], row.xy), size)
    return math.floor(x), math.floor(y)


def _outside_frame(
    row: Row, columns: str, place: tuple[float, float], size: tuple[int, int]
) -> Fault:
    expected = f"a place in the frame of {size[1]} x {size[0]} pixels"
    return Fault(row.number, columns, f"({place[0]:g}, {place[1]:g})", expected)


def in_pixels(row: Row, place: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
    """Return a place (x, y) in pixels of a frame (H, W); a share of 1 is the last pixel."""
    h, w = size
    if row.normalized:
        return min(place[0] * w, w - 1), min(place[1] * h, h - 1)
    if row.reference is not None:
        return place[0] * w / row.reference[0], place[1] * h / row.reference[1]
    return place
