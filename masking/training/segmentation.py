"""COCO's segmentations of an object, polygons or run lengths: checked, then drawn as masks.

Sizes and shapes are (H, W), the pixels of an image.
"""

import math
from typing import Any

import cv2
import numpy as np

from masking.images.arrays import Bools
from masking.images.decode import nearest, shown
from masking.images.masks import decode_rle

_FINE = 4
"""Factor by which polygons are drawn larger: fillPoly fills every pixel that an edge touches."""
_SHOWN = 60
"""Characters of a value that a message shows."""
_SHARES = 1.5
"""Coordinates below this are shares of the image; tools write some a little above 1."""


def fault_of(segmentation: Any, size: tuple[int, int]) -> str | None:
    """Return what is wrong with the segmentation of an image of `size`, if anything is.

    The sum of run lengths is checked when they are decoded.
    """
    if isinstance(segmentation, dict):
        return _fault_of_rle(segmentation, size)
    if not isinstance(segmentation, list):
        return f"has the segmentation {brief(segmentation)}; expected polygons or RLE"
    reach = max(size)  # an object may leave its image, but not by more than the image is large
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return "has a polygon that is not a list of x and y of at least three corners"
        if not _plausible(polygon, reach):
            return _fault_of_corners(polygon, size)
    if min(size) > 2 and -_SHARES < max(map(max, segmentation)) < _SHARES:
        return (
            f"has no coordinate above {max(map(max, segmentation)):g}: they seem to be shares of"
            " the image; expected pixels: multiply x by the width and y by the height"
        )
    return None


def _fault_of_rle(rle: dict[Any, Any], size: tuple[int, int]) -> str | None:
    if rle.get("size") != list(size) or "counts" not in rle:
        return f"is an RLE of size {brief(rle.get('size'))}; expected {list(size)} and counts"
    counts, pixels = rle["counts"], size[0] * size[1]
    if isinstance(counts, list):
        odd = [x for x in counts if not is_whole(x) or not 0 <= x <= pixels]
        if odd:
            return (
                f"is an RLE with {brief(odd[0])} among its counts; expected numbers of pixels, of"
                f" which the image has {pixels:,}"
            )
    elif not isinstance(counts, str) or not counts.isascii():
        return f"is an RLE with the counts {brief(counts)}; expected a list, or text of ASCII"
    return None


def _plausible(polygon: list[Any], reach: int) -> bool:
    """Return whether all are numbers and none is far outside; of the order of a microsecond."""
    try:
        finite = math.isfinite(sum(polygon))
        return finite and -reach <= min(polygon) and max(polygon) <= 2 * reach
    except (TypeError, OverflowError):
        return False


def _fault_of_corners(polygon: list[Any], size: tuple[int, int]) -> str:
    """Return which coordinate of a polygon is not plausible."""
    reach = max(size)
    for x in polygon:
        if not isinstance(x, int | float) or x != x:
            return f"has {brief(x)} among the coordinates of a polygon; expected pixels"
        if not -reach <= x <= 2 * reach:
            break
    return (
        f"has a polygon with the coordinate {brief(x)}, far outside its image, which has"
        f" {shown(size)} pixels by the JSON file; expected pixels of an image of that size"
    )


def is_whole(value: Any) -> bool:
    """Return whether a value of JSON is a whole number, which some tools write as 3.0."""
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def brief(value: Any) -> str:
    """Return a value of JSON as text for a message, cut if it is long."""
    if isinstance(value, list):
        value = value[:_SHOWN]
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # nested deeply; a whole number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def draw(segmentation: Any, size: tuple[int, int], shape: tuple[int, int]) -> Bools:
    """Draw the polygons or RLE of an image of `size` as a mask of `shape`.

    Raises:
        ImageError: run lengths do not add up to the size.
    """
    if isinstance(segmentation, dict):
        return nearest(decode_rle(segmentation["counts"], size), shape)
    scale = np.array([shape[1] / size[1], shape[0] / size[0]])
    polygons = [np.asarray(p, dtype=np.float64).reshape(-1, 2) * scale for p in segmentation]
    corners = np.concatenate(polygons)
    left, top = np.clip(np.floor(corners.min(axis=0)), 0, shape[::-1]).astype(int).tolist()
    right, bottom = np.clip(np.ceil(corners.max(axis=0)), 0, shape[::-1]).astype(int).tolist()
    mask = np.zeros(shape, dtype=np.bool_)
    if left < right and top < bottom:
        fine = np.zeros(((bottom - top) * _FINE, (right - left) * _FINE), dtype=np.uint8)
        for polygon in polygons:  # one at a time: fillPoly leaves out where two overlap
            places = np.rint((polygon - (left, top)) * _FINE - 0.5).astype(np.int32)
            cv2.fillPoly(fine, [places], 255)
        share = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
        mask[top:bottom, left:right] = share > 127
    return mask
