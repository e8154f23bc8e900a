"""YOLO's segments, as Ultralytics reads them: a text file a frame, a line an object.

A line is the class and x and y of a polygon, as shares of the frame. It holds one polygon: holes
and further parts are joined to it by seams of no width, as Ultralytics itself joins parts. Its
reader, and `supervision`, fill polygons by `cv2.fillPoly`, for which the outlines are made.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from masking.images.outlines import Ring, joined, one_ring, pixel_parts
from masking.outputs.formats import category_of
from masking.outputs.rows import mask_of

_SHIFT = 0.25
"""Pixels from the middle of a pixel to where it is written: Ultralytics rounds down, `supervision`
to the nearest whole number, and both then get that pixel."""
_FEWEST = 3
"""Points of the smallest polygon."""


def yolo_lines(
    rows: Sequence[Mapping[str, Any]], names: Mapping[int, str], categories: Sequence[str]
) -> str:
    """Return the content of the file of a frame; empty if no object is seen.

    Args:
        rows: the rows of the frame (`masking.outputs.rows`).
        names: names of the video's objects by id.
        categories: names of the classes of all videos, in order.
    """
    lines = []
    for row in rows:
        if row["area"]:
            ring = _ring([one_ring(part) for part in pixel_parts(mask_of(row))])
            shares = ((ring - _SHIFT) / [row["width"], row["height"]]).ravel()
            place = categories.index(category_of(names, row["object_id"]))
            lines.append(" ".join([str(place), *(f"{share:.6f}" for share in shares)]) + "\n")
    return "".join(lines)


def _ring(rings: Sequence[Ring]) -> Ring:
    """Return the rings of an object as one of at least three points: masks of a pixel have one."""
    ring = joined(rings)
    return ring[[min(n, len(ring) - 1) for n in range(max(_FEWEST, len(ring)))]]


def data_yaml(categories: Sequence[str]) -> str:
    """Return Ultralytics' `data.yaml`, with the names of the classes in order."""
    data = {"train": "images", "val": "images", "names": dict(enumerate(categories))}
    note = (
        "# Training and validation are the same frames here: list folders of other videos for\n"
        "# each, as in [images/a, images/b]. Frames are there with --export-frames.\n"
    )
    return note + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
