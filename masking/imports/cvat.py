"""CVAT's annotations of videos: "CVAT for video 1.1" in XML, and `annotations.json` of a backup.

Only keyframes count, as in CVAT itself: between them it interpolates. A shape that is `outside`
says that the object is out of sight from its frame on. Frames count from 0.

The XML is read element by element; a document type, by which a small file could become a large one
or read other files, is refused.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.parsers import expat

import numpy as np

from masking.images.arrays import Bools
from masking.imports.items import (
    Cells,
    Found,
    ImportsError,
    Item,
    box_cells,
    mask_cells,
    polygon_cells,
)

_SHAPES = ("box", "polygon", "points", "mask", "polyline", "ellipse", "cuboid", "skeleton")
_TYPES = {"rectangle": "box"}  # names of shapes in JSON that differ from those in XML
_MOST_PIXELS = 1 << 28
_DEEPEST = 64


class _StopError(Exception):
    """The file is refused; the message says why."""


class _Reader:
    """Takes the elements of the XML one by one."""

    def __init__(self, name: str, found: Found) -> None:
        self.name, self.found = name, found
        self.path: list[str] = []
        self.text = ""
        self.version = self.source = self.mode = ""
        self.width = self.height = 0
        self.track: Mapping[str, str] | None = None
        self.items: list[Item] = []
        self.tracks = self.keys = 0

    def begin(self, tag: str, about: dict[str, str]) -> None:
        if not self.path and tag != "annotations":
            raise _StopError(f"its first element is {tag!r}; expected annotations, as CVAT writes")
        self.path.append(tag)
        self.text = ""
        if len(self.path) > _DEEPEST:
            raise _StopError(f"its elements are nested in more than {_DEEPEST} levels")
        if tag == "image" and self.path == ["annotations", "image"]:
            raise _StopError(
                'it is of "CVAT for images", where objects have no identity from frame to frame;'
                ' expected "CVAT for video 1.1", which CVAT exports too'
            )
        if tag == "track":
            self.track, self.items, self.keys = about, [], 0
            self.tracks += 1
        elif self.track is not None and tag in _SHAPES and len(self.path) == 3:
            self._shape(tag, about)

    def end(self, tag: str) -> None:
        self.path.pop()
        text = self.text.strip()
        if tag == "version" and self.path == ["annotations"]:
            self.version = text
            if text != "1.1":
                raise _StopError(f"its version is {text!r}; expected 1.1")
        elif tag == "source" and self.path[:2] == ["annotations", "meta"]:
            self.source = self.source or text
        elif tag in ("width", "height") and self.path[-1:] == ["original_size"]:
            setattr(self, tag, int(text) if text.isdecimal() else 0)
        elif tag == "track":
            self._end_track()
        self.text = ""

    def characters(self, text: str) -> None:
        if len(self.text) < 4096:  # of texts between elements, which are names and numbers
            self.text += text

    def _end_track(self) -> None:
        assert self.track is not None
        where = f"{self.name}, track {self.track.get('id', self.tracks - 1)}"
        if not self.keys:
            self.found.fault(where, "no keyframe", "at least one shape with keyframe 1")
        self.found.items += self.items
        self.track = None

    def _shape(self, tag: str, about: Mapping[str, str]) -> None:
        assert self.track is not None
        track = self.track.get("id", str(self.tracks - 1))
        where = f"{self.name}, track {track}, frame {about.get('frame')}"
        if about.get("keyframe", "1") != "1":
            return
        self.keys += 1
        frame = about.get("frame", "")
        if not frame.isdecimal() or len(frame) > 15:
            self.found.fault(where, f"frame is {frame!r}", "a whole number from 0")
            return
        size = (self.height, self.width) if self.width and self.height else None
        label = self.track.get("label", "")
        if about.get("outside") == "1":
            cells: Sequence[Cells] = [{"role": "absent"}]
        else:
            try:
                cells = _cells(tag, about, size)
            except ValueError as error:
                self.found.fault(where, f"a {tag} {error}", "a shape as CVAT writes it")
                return
        if not cells:
            self.found.leave_out(tag)
            return
        self.items += [
            Item(where, self.source, track, label, each, int(frame), size=size, starts=True)
            for each in cells
        ]


def read_cvat_xml(name: str, content: bytes) -> Found:
    """Read CVAT's XML of a video.

    Args:
        name: name of the file, for messages.
        content: its bytes.

    Raises:
        ImportsError: it is not XML, not of CVAT, of another version, or has a document type.
    """
    found = Found()
    reader = _Reader(name, found)
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise _StopError("it has a document type; expected none, as CVAT writes none")

    parser.StartElementHandler, parser.EndElementHandler = reader.begin, reader.end
    parser.CharacterDataHandler = reader.characters
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ImportsError(f"{name} is no sound XML: {error}") from error
    except (_StopError, LookupError, ValueError) as error:
        raise ImportsError(f"{name}: {error}") from error
    if not reader.version:
        raise ImportsError(f"{name} has no version; expected CVAT's annotations of version 1.1")
    return found


def _cells(tag: str, about: Mapping[str, str], size: tuple[int, int] | None) -> list[Cells]:
    """Return the columns of a shape, a row for each point; none if nothing in a manifest is like
    it. Raises ValueError, with what is wrong."""
    if tag == "box":
        return [_box(_numbers([about.get(k, "") for k in ("xtl", "ytl", "xbr", "ybr")]), about)]
    if tag in ("polygon", "points"):
        pairs = [pair.split(",") for pair in about.get("points", "").split(";")]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"with the points {about.get('points', '')[:60]!r}")
        numbers = _numbers([number for pair in pairs for number in pair])
        return _placed(tag, numbers)
    if tag == "mask":
        runs = [int(run) for run in about.get("rle", "").split(",")]
        left, top, width, height = (
            int(about.get(k, "")) for k in ("left", "top", "width", "height")
        )
        return [mask_cells(_mask(runs, (left, top, width, height), size))]
    return []


def _numbers(texts: Sequence[Any]) -> list[float]:
    numbers = []
    for text in texts:
        try:
            number = math.nan if isinstance(text, bool) else float(text)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"with {text!r} as a coordinate")
        numbers.append(number)
    return numbers


def _placed(tag: str, numbers: Sequence[float]) -> list[Cells]:
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    if tag == "points":
        return [{"x": x, "y": y} for x, y in pairs]
    if len(pairs) < 3:
        raise ValueError(f"of {len(pairs)} corners")
    return [polygon_cells(pairs)]


def _box(edges: Sequence[float], about: Mapping[str, Any]) -> Cells:
    """Return the columns of a box; of one that is rotated, about its middle, those of a polygon."""
    left, top, right, bottom = edges
    (angle,) = _numbers([about.get("rotation") or 0])
    if right <= left or bottom <= top:
        raise ValueError(f"from ({left:g}, {top:g}) to ({right:g}, {bottom:g})")
    if angle % 360 == 0:
        # CVAT lets boxes reach over the edge of the frame, by less than a pixel as a rule.
        return box_cells(max(left, 0.0), max(top, 0.0), right, bottom)
    return polygon_cells(rotated(left, top, right, bottom, angle))


def rotated(
    left: float, top: float, right: float, bottom: float, angle: float, about_corner: bool = False
) -> list[tuple[float, float]]:
    """Return the corners of a box that is rotated clockwise by degrees, about its middle or about
    its top left corner."""
    x, y = (left, top) if about_corner else ((left + right) / 2, (top + bottom) / 2)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return [
        (x + (a - x) * cos - (b - y) * sin, y + (a - x) * sin + (b - y) * cos) for a, b in corners
    ]


def _mask(
    runs: Sequence[int], box: tuple[int, int, int, int], size: tuple[int, int] | None
) -> Bools:
    """Return the pixels (H, W) of run lengths along the rows of a box."""
    left, top, width, height = box
    if size is None or math.prod(size) > _MOST_PIXELS:
        raise ValueError("without the size of the frame (original_size)")
    if min(left, top) < 0 or min(width, height) < 1:
        raise ValueError(f"at ({left}, {top}) of {width} x {height} pixels")
    if left + width > size[1] or top + height > size[0]:
        raise ValueError(f"that ends outside of the frame of {size[1]} x {size[0]} pixels")
    if min(runs) < 0 or max(runs) > width * height or sum(runs) != width * height:
        raise ValueError(f"with runs of {sum(runs):,} pixels in a box of {width} x {height}")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    mask = np.zeros(size, np.bool_)
    mask[top : top + height, left : left + width] = inside
    return mask


def read_cvat_json(name: str, value: Any, size: tuple[int, int] | None = None) -> Found:
    """Read `annotations.json` of a backup of a CVAT task, or the same list from its API.

    Args:
        name: name of the file, for messages.
        value: the content of the JSON.
        size: (H, W) of the video, which the file does not have and masks need; None: unknown.
    """
    found = Found()
    jobs = value if isinstance(value, list) else [value]
    number = 0
    for job in jobs:
        for track in job.get("tracks") or []:
            _json_track(name, str(number), track, size, found)
            number += 1
        for shape in job.get("shapes") or []:
            _json_shape(name, f"shape {number}", str(number), shape, shape, size, found)
            number += 1
        for _ in job.get("tags") or []:
            found.leave_out("tag")
    return found


def is_cvat_json(value: Any) -> bool:
    """Return whether JSON is of CVAT: jobs with tracks and shapes."""
    jobs = value if isinstance(value, list) else [value]
    return bool(jobs) and all(
        isinstance(job, dict)
        and all(isinstance(job.get(kind), list) for kind in ("tracks", "shapes"))
        for job in jobs
    )


def _json_track(
    name: str, number: str, track: Any, size: tuple[int, int] | None, found: Found
) -> None:
    where = f"track {number}"
    shapes = track.get("shapes") if isinstance(track, dict) else None
    if not isinstance(shapes, list) or not shapes:
        found.fault(f"{name}, {where}", "no keyframe", "at least one shape")
        return
    for shape in shapes:
        _json_shape(name, where, number, track, shape, size, found)


def _json_shape(
    name: str,
    where: str,
    number: str,
    owner: Mapping[str, Any],
    shape: Any,
    size: tuple[int, int] | None,
    found: Found,
) -> None:
    frame = shape.get("frame") if isinstance(shape, dict) else None
    place = f"{name}, {where}, frame {frame}"
    if type(frame) is not int or frame < 0:
        found.fault(place, f"frame is {frame!r}", "a whole number from 0")
        return
    label = owner.get("label", owner.get("label_id", ""))
    cells: Sequence[Cells] = [{"role": "absent"}]
    if not shape.get("outside"):
        kind = str(shape.get("type"))
        try:
            cells = _json_cells(_TYPES.get(kind, kind), shape, size)
        except ValueError as error:
            found.fault(place, f"a {kind} {error}", "a shape as CVAT writes it")
            return
        if not cells:
            found.leave_out(kind)
            return
    starts = owner is not shape
    found.items += [
        Item(place, "", number, str(label), each, frame, starts=starts) for each in cells
    ]


def _json_cells(
    kind: str, shape: Mapping[str, Any], size: tuple[int, int] | None
) -> Sequence[Cells]:
    points = shape.get("points")
    if kind not in ("box", "polygon", "points", "mask"):
        return []
    if not isinstance(points, list):
        raise ValueError(f"with the points {json.dumps(points)[:60]}")
    numbers = _numbers(points)
    if len(numbers) % 2 and kind != "mask":
        raise ValueError(f"with {len(numbers)} numbers, an x without its y")
    if kind == "box":
        if len(numbers) != 4:
            raise ValueError(f"with {len(numbers)} numbers instead of 4")
        return [_box(numbers, shape)]
    if kind != "mask":
        return _placed(kind, numbers)
    if len(numbers) < 5:
        raise ValueError(f"with {len(numbers)} numbers")
    *runs, left, top, right, bottom = (int(number) for number in numbers)
    return [mask_cells(_mask(runs, (left, top, right - left + 1, bottom - top + 1), size))]
