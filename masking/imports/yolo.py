"""YOLO's label files: boxes and segments, a text file a frame, a line an object.

A line is the class and the middle, width and height of a box, or x and y of a polygon's corners, as
shares of the frame; boxes may have a confidence and the number of a track behind them, as
Ultralytics writes them. Pixels of a segment are those that Ultralytics and `supervision` fill.

Without the number of a track, a line does not say which object it is. If a class is at most once on
each frame of a video, it is one object; otherwise labels of one frame only can be read.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import yaml

from masking.images.outlines import touched
from masking.imports.items import Cells, Found, ImportsError, Item, box_cells, mask_cells

_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names", "labels.txt")
_NUMBERED = re.compile(r"(.*?)[_-](\d+)")
_SLACK = 1e-3
"""How far a share may be above 1: other programs round."""
_MOST_BYTES = 64 << 20


def is_yolo(folder: Path) -> bool:
    """Return whether a folder has label files of YOLO."""
    return any(_is_labels(path) for path in folder.rglob("*.txt"))


def _is_labels(path: Path) -> bool:
    return path.name not in _NAMES and not path.name.startswith(".") and path.is_file()


def read_yolo(folder: Path) -> Found:
    """Read the label files below a folder, which are those below `labels/` if there is one.

    Raises:
        ImportsError: a list of class names cannot be read.
        OSError: a file cannot be read.
    """
    found = Found()
    names = _class_names(folder)
    top = folder / "labels" if (folder / "labels").is_dir() else folder
    lines: list[tuple[Item, bool]] = []
    for path in sorted(path for path in top.rglob("*.txt") if _is_labels(path)):
        lines += _read_file(path, top, names, found)
    _identify(lines, found)
    return found


def _class_names(folder: Path) -> dict[int, str]:
    """Return the names of the classes by number; empty if no file lists them."""
    for path in (place / name for place in (folder, folder.parent) for name in _NAMES):
        if not path.is_file():
            continue
        text = path.read_text(errors="replace")
        if path.suffix == ".txt" or path.suffix == ".names":
            return dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
        try:
            listed = yaml.safe_load(text)["names"]
            pairs = listed.items() if isinstance(listed, dict) else enumerate(listed)
            return {int(number): str(name) for number, name in pairs}
        except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
            raise ImportsError(f"{path}: expected names, a list of classes: {error}") from error
    return {}


def _read_file(
    path: Path, top: Path, names: Mapping[int, str], found: Found
) -> list[tuple[Item, bool]]:
    """Return the items of a file, and whether each has a track."""
    relative = path.relative_to(top)
    if path.stat().st_size > _MOST_BYTES:
        found.fault(str(path), f"{path.stat().st_size:,} bytes", f"at most {_MOST_BYTES:,}")
        return []
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        found.fault(str(path), "no text in UTF-8", "lines of numbers")
        return []
    video, stem = "" if relative.parent == Path() else relative.parent.as_posix(), path.stem
    if not video and (numbered := _NUMBERED.fullmatch(stem)):
        video = numbered[1]  # `clip_12.txt`, as Ultralytics names what it finds in clip.mp4
    items = []
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            kind, track, cells_of = _read_line(line)
        except ValueError as error:
            found.fault(where, str(error), "a class and shares of the frame from 0 to 1")
            continue
        if names and kind not in names:
            found.fault(where, f"class {kind}", f"0 to {max(names)}, the classes that are listed")
            continue
        name = names.get(kind, f"class {kind}")
        item = Item(where, video, f"{kind}" if track is None else str(track), name, {},
                    frame_name=f"{stem}.txt", cells_of=cells_of)  # fmt: skip
        items.append((item, track is not None))
    return items


def _read_line(line: str) -> tuple[int, int | None, "partial[Cells]"]:
    """Return class, track (None: the line has none) and shape; raises ValueError."""
    words = line.split()
    if not words[0].isdecimal():
        raise ValueError(f"the class is {words[0][:40]!r}")
    try:
        numbers = [float(word) for word in words[1:]]
    except ValueError as error:
        raise ValueError(f"a value is no number: {error}") from error
    track = None
    if len(numbers) in (5, 6):  # with a confidence, and a track
        if len(numbers) == 6 and numbers[5] == int(numbers[5]):
            track = int(numbers[5])
        elif len(numbers) == 6:
            return _segment(int(words[0]), None, numbers)
        numbers = numbers[:4]
    if len(numbers) == 4:
        _check(numbers)
        if min(numbers[2:]) <= 0:
            raise ValueError(f"a box of {numbers[2]:g} x {numbers[3]:g}")
        return int(words[0]), track, partial(_box, numbers)
    if len(numbers) % 2 and len(numbers) > 6 and numbers[-1] == int(numbers[-1]):
        *numbers, last = numbers
        track = int(last)
    return _segment(int(words[0]), track, numbers)


def _segment(
    kind: int, track: int | None, numbers: Sequence[float]
) -> tuple[int, int | None, "partial[Cells]"]:
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"{len(numbers)} numbers behind the class")
    _check(numbers)
    return kind, track, partial(_pixels, numbers)


def _check(numbers: Sequence[float]) -> None:
    for number in numbers:
        if not 0 <= number <= 1 + _SLACK:
            raise ValueError(f"{number:g} is no share of the frame")


def _pixels(shares: Sequence[float], size: tuple[int, int]) -> Cells:
    return mask_cells(touched(shares, size))


def _box(shares: Sequence[float], size: tuple[int, int]) -> Cells:
    x, y, width, height = shares
    (h, w), half = size, 2
    left, right = (x - width / half) * w, (x + width / half) * w
    top, bottom = (y - height / half) * h, (y + height / half) * h
    return box_cells(*(round(max(edge, 0.0), 4) for edge in (left, top, right, bottom)))


def _identify(lines: Iterable[tuple[Item, bool]], found: Found) -> None:
    """Add items to what was found, with the object that each is of."""
    by_video: dict[str, list[Item]] = {}
    for item, has_track in lines:
        if has_track:
            found.items.append(item)
        else:
            by_video.setdefault(item.video, []).append(item)
    for video, items in by_video.items():
        frames = {item.frame_name for item in items}
        often = Counter((item.frame_name, item.track) for item in items)
        several = next((item for item in items if often[item.frame_name, item.track] > 1), None)
        if several is None:
            found.items += [replace(item, track=f"class {item.track}") for item in items]
        elif len(frames) == 1:
            found.items += [replace(item, track=item.place) for item in items]
        else:
            found.fault(
                several.place,
                f"{several.name!r} is on this frame more than once, and there are labels of"
                f" {len(frames):,} frames of {video or 'the video'}: which object is which is not"
                " known",
                "labels of one frame, or numbers of tracks behind the values",
            )
