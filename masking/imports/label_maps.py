"""Folders of label maps: DAVIS and YouTube-VOS, an indexed PNG a frame, a number an object."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from masking.images.decode import ImageError, opened, read_labels
from masking.images.masks import refuse_soft_edges
from masking.imports.items import Found, ImportsError, Item, mask_cells

_VOID = 255


def is_label_maps(folder: Path) -> bool:
    """Return whether a folder is laid out as DAVIS or YouTube-VOS."""
    return (folder / "Annotations").is_dir()


def read_label_maps(folder: Path) -> Found:
    """Read the label maps below `Annotations/`; names of objects come from `meta.json`.

    A video is a folder of PNGs; it is named as the folder of its frames below `JPEGImages/`, with
    the same parts between. An object has an item on each frame that shows it.

    Raises:
        ImportsError: `meta.json` cannot be read.
    """
    found = Found()
    top = folder / "Annotations"
    names = _names(folder / "meta.json")
    for video in _videos(top):
        relative = video.relative_to(top).as_posix()
        frames = folder / "JPEGImages" / relative
        named = frames.relative_to(folder).as_posix() if frames.is_dir() else video.name
        for path in sorted(video.glob("*.png")):
            _read_map(path, named, names.get(video.name, {}), found)
    return found


def _videos(top: Path) -> Iterator[Path]:
    """Yield the folders with PNGs, in order."""
    yield from sorted({path.parent for path in top.rglob("*.png")})


def _names(path: Path) -> dict[str, dict[int, str]]:
    """Return the categories of objects by video and number, as YouTube-VOS has them."""
    if not path.is_file():
        return {}
    try:
        videos = json.loads(path.read_bytes())["videos"]
        return {
            video: {int(number): str(one["category"]) for number, one in about["objects"].items()}
            for video, about in videos.items()
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ImportsError(
            f"{path}: expected videos with objects and categories: {error}"
        ) from None


def _read_map(path: Path, video: str, names: dict[int, str], found: Found) -> None:
    try:
        content = path.read_bytes()
        with opened(content) as picture:
            size = (picture.height, picture.width)
        labels, palette = read_labels(content, str(path), size)
        if palette:
            labels = np.where(labels == _VOID, 0, labels)
        refuse_soft_edges(labels, str(path))
    except (ImageError, OSError, ValueError, SyntaxError) as error:
        found.fault(str(path), str(error), "an indexed PNG")
        return
    for number in map(int, np.unique(labels)):
        if number:
            place, cells = f"{path}, object {number}", mask_cells(labels == number)
            found.items.append(
                Item(place, video, str(number), names.get(number, ""), cells,
                     frame_name=path.name, size=size)
            )  # fmt: skip
