"""Label Studio's export of videos in JSON: tracks of boxes with keyframes.

Its frames count from 1, its coordinates are per cent of the frame. After a keyframe that is not
`enabled` the object is out of sight until the next one.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from masking.imports.cvat import rotated
from masking.imports.items import Cells, Found, Item, box_cells, polygon_cells

_VIDEO = ("video_id", "video", "video_url", "url")  # what may name the video of a task
_DIGITS = 4  # of pixels: shares of a frame are often whole pixels but for rounding
_NEEDED = ("frame", "x", "y", "width", "height")


def is_label_studio(value: Any) -> bool:
    """Return whether JSON is of Label Studio: a list of tasks with annotations."""
    return isinstance(value, list) and any(
        isinstance(task, dict) and ("annotations" in task or "predictions" in task)
        for task in value
    )


def read_label_studio(name: str, value: Sequence[Any]) -> Found:
    """Read the tasks of an export.

    Args:
        name: name of the file, for messages.
        value: the content of the JSON.
    """
    found = Found()
    for number, task in enumerate(value):
        where = f"{name}, task {task.get('id', number) if isinstance(task, dict) else number}"
        data = task.get("data") if isinstance(task, dict) else None
        named = [data.get(key) for key in _VIDEO] if isinstance(data, dict) else []
        video = next((one for one in named if isinstance(one, str) and one), "")
        if not video:
            found.fault(where, "no video in its data", "data with a video, as in an export of JSON")
            continue
        for region_place, region in _regions(where, task, found):
            _read_region(region_place, video, region, found)
    return found


def _regions(where: str, task: Mapping[str, Any], found: Found) -> Iterator[tuple[str, Any]]:
    """Yield the regions of the first annotation that was not cancelled; further ones are of other
    people, who annotated the same objects."""
    annotations = task.get("annotations") or task.get("predictions") or []
    if not isinstance(annotations, list):
        found.fault(where, "annotations that are no list", "a list, as in an export of JSON")
        return
    kept = [one for one in annotations if isinstance(one, dict) and not one.get("was_cancelled")]
    for _ in kept[1:]:
        found.leave_out("annotation of another person")
    for one in kept[:1]:
        results = one.get("result")
        if not isinstance(results, list):
            found.fault(where, "an annotation without result", "a list of regions")
            return
        for number, region in enumerate(results):
            given = region.get("id") if isinstance(region, dict) else None
            yield f"{where}, region {number if given is None else given}", region


def _read_region(where: str, video: str, region: Any, found: Found) -> None:
    value = region.get("value") if isinstance(region, dict) else None
    if not isinstance(value, dict):
        found.fault(where, "no value", "a region as Label Studio exports it")
        return
    if str(region.get("type", "")).lower() != "videorectangle":
        found.leave_out(str(region.get("type")))
        return
    sequence = value.get("sequence")
    if not isinstance(sequence, list) or not sequence:
        found.fault(where, "no keyframe", "a sequence of at least one keyframe")
        return
    labels = value.get("labels") or [""]
    label = str(labels[0]) if isinstance(labels, list) else str(labels)
    track = str(region.get("id", where))
    keys = []
    for key in sequence:
        frame = key.get("frame") if isinstance(key, dict) else None
        if type(frame) is not int or frame < 1:
            found.fault(where, f"frame is {frame!r}", "a whole number from 1, as its frames count")
            return
        keys.append((frame - 1, key))
    keys.sort(key=lambda pair: pair[0])
    count = value.get("framesCount")
    for place, (frame, key) in enumerate(keys):
        here = f"{where}, frame {frame + 1}"
        try:
            box = _box(key)
        except ValueError as error:
            found.fault(here, f"a keyframe {error}", "x, y, width and height in per cent")
            continue
        cells_of = partial(_cells, *box)
        found.items.append(
            Item(here, video, track, label, {}, frame, cells_of=cells_of, starts=True)
        )
        following = keys[place + 1][0] if place + 1 < len(keys) else None
        is_last = following is None and frame + 1 == count
        if not key.get("enabled", True) and following != frame + 1 and not is_last:
            absent = {"role": "absent"}
            found.items.append(Item(here, video, track, label, absent, frame + 1, starts=True))


def _box(key: Mapping[str, Any]) -> tuple[float, float, float, float, float]:
    """Return x, y, width, height in per cent and degrees of a keyframe; raises ValueError."""
    numbers = []
    for column in (*_NEEDED[1:], "rotation"):
        given = key.get(column, 0 if column == "rotation" else None)
        if isinstance(given, bool) or not isinstance(given, int | float) or given != given:
            raise ValueError(f"with {column} {given!r}")
        numbers.append(float(given))
    if numbers[2] <= 0 or numbers[3] <= 0:
        raise ValueError(f"of {numbers[2]:g} x {numbers[3]:g} per cent")
    return numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]


def _cells(
    x: float, y: float, width: float, height: float, angle: float, size: tuple[int, int]
) -> Cells:
    """Return the columns of a box in a frame (H, W); it is rotated about its top left corner."""
    h, w = size
    left, top, right, bottom = (
        share / 100 * side
        for share, side in zip((x, y, x + width, y + height), (w, h, w, h), strict=True)
    )
    if angle % 360:
        return polygon_cells(rotated(left, top, right, bottom, angle, about_corner=True))
    # The editor lets boxes reach over the edge of the frame by rounding.
    edges = (round(edge, _DIGITS) for edge in (max(left, 0.0), max(top, 0.0), right, bottom))
    return box_cells(*edges)
