"""Masks and polygons in a manifest: the text that a row keeps of them, and their pixels.

A mask is COCO's run lengths, {"size": [H, W], "counts": "..."}, as an object or as JSON, or the
path of a picture. A polygon is x and y of its corners in pixels, origin top left; several rings
follow each other, and a ring within another one is a hole:

    "10,20 60,20 60,80"    "10,20 60,20 60,80; 30,30 40,30 40,40"    [[10, 20], [60, 20], [60, 80]]
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from masking.images.arrays import Bools
from masking.images.decode import ImageError, opened, read_labels
from masking.images.masks import check_rle, decode_rle, encode_rle
from masking.images.outlines import Ring

MASK = 'run lengths {"size": [H, W], "counts": "..."}, or the path of a picture'
"""What a mask is, for messages."""
POLYGON = 'x and y of at least 3 corners, as in "10,20 60,20 60,80"; several rings parted by ;'
"""What a polygon is, for messages."""
_NUMBER = re.compile(r"[^\s,]+")
_FEWEST = 3  # corners of a ring
_MOST_PIXELS = 1 << 28


def mask_text(value: Any) -> str:
    """Return a mask of a manifest as text: JSON with packed run lengths, or a path.

    Raises:
        ValueError: it is neither; the message says what it is.
    """
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        return value
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"a {type(found).__name__}")
    h, w = _size(found.get("size"))
    counts = found.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    try:
        if isinstance(counts, list) and all(type(count) is int for count in counts):
            counts = encode_rle(decode_rle(counts, (h, w))).decode()
        if not isinstance(counts, str) or not counts.isascii():
            raise ValueError("without counts")
        check_rle(counts, (h, w))
    except (ImageError, OverflowError) as error:
        raise ValueError(f"damaged: {error}") from error
    return json.dumps({"size": [h, w], "counts": counts})


def _size(value: Any) -> tuple[int, int]:
    sides = value.tolist() if isinstance(value, np.ndarray) else value
    if (
        not isinstance(sides, list | tuple)
        or len(sides) != 2
        or not all(type(side) is int and side > 0 for side in sides)
        or math.prod(sides) > _MOST_PIXELS
    ):
        raise ValueError(f"of size {str(sides)[:40]}")
    return sides[0], sides[1]


def picture_mask(content: bytes, name: str) -> Bools:
    """Return the mask (H, W) in a picture of one object: pixels at least half as bright as the
    brightest; in a palette, any index but 0.

    Raises:
        ImageError: it does not decode, or is no label map.
    """
    try:
        with opened(content) as picture:
            size = (picture.height, picture.width)
    except Exception as error:  # Pillow's formats raise all kinds
        raise ImageError(f"{name} does not decode: {error}") from error
    labels, palette = read_labels(content, name, size)
    mask: Bools = labels > 0 if palette else labels >= max(1, labels.max() / 2)
    return mask


def text_of_mask(mask: Bools) -> str:
    """Return a mask (H, W) as the text that a manifest has of it."""
    return json.dumps({"size": [*mask.shape], "counts": encode_rle(mask).decode()})


def is_path(text: str) -> bool:
    """Return whether the text of a mask is the path of a picture."""
    return not text.startswith("{")


def pixels_of(text: str) -> Bools:
    """Return the mask (H, W) of the text of run lengths."""
    found = json.loads(text)
    return decode_rle(found["counts"], (found["size"][0], found["size"][1]))


def polygon_text(value: Any) -> str:
    """Return a polygon of a manifest as text, "x,y x,y ...; x,y ...".

    Raises:
        ValueError: it is none; the message says what it is.
    """
    rings = [_corners(ring) for ring in _rings(value)]
    if not rings:
        raise ValueError("without corners")
    return "; ".join(" ".join(f"{x!r},{y!r}" for x, y in ring) for ring in rings)


def _rings(value: Any) -> Sequence[Any]:
    """Return the rings of a polygon, each a list of numbers or of pairs."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return [_NUMBER.findall(ring) for ring in value.split(";") if ring.strip()]
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError("not JSON") from error
    if not isinstance(value, list | tuple):
        raise ValueError(f"a {type(value).__name__}")
    first = value[0] if value else None
    deep = isinstance(first, list | tuple) and (len(first) != 2 or isinstance(first[0], list))
    return value if deep else [value]


def _corners(ring: Any) -> list[tuple[float, float]]:
    if not isinstance(ring, list | tuple):
        raise ValueError(f"a {type(ring).__name__} among its rings")
    if any(isinstance(each, list | tuple) for each in ring):
        if not all(isinstance(each, list | tuple) and len(each) == 2 for each in ring):
            raise ValueError("of corners that are no pairs of x and y")
        ring = [number for pair in ring for number in pair]
    try:
        numbers = [math.nan if isinstance(one, bool) else float(one) for one in ring]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("of values that are no numbers") from error
    if not all(map(math.isfinite, numbers)):
        raise ValueError("of values that are no finite numbers")
    if len(numbers) % 2:
        raise ValueError(f"of {len(numbers)} numbers in a ring, an x without its y")
    if len(numbers) < 2 * _FEWEST:
        raise ValueError(f"a ring of {len(numbers) // 2} corners")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def rings_of(text: str) -> list[Ring]:
    """Return the rings of the text of a polygon."""
    return [
        np.array([pair.split(",") for pair in ring.split()], np.float64) for ring in text.split(";")
    ]
