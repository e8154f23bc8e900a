"""What a mask is on disk, and how good it is: COCO's run lengths, areas, boxes, DAVIS' J and F.

Masks are (H, W) bool, origin top left.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from masking.images.arrays import Bools
from masking.images.decode import ImageError, shown

BOUNDARY = 0.008
"""How far apart contours may lie and still match, as a share of the image's diagonal (DAVIS)."""


def encode_rle(mask: Bools) -> bytes:
    """COCO's packed run lengths of a mask, as pycocotools' `encode` gives them in `counts`.

    Lengths of runs of 0, 1, 0, ... down the columns, from the left one; from the fourth on as
    differences to two before; five bits a character, the lowest first (`maskApi.c`, rleToString).
    """
    flat = mask.T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    runs = np.diff(edges)
    if flat.size and flat[0]:
        runs = np.concatenate([[0], runs])
    values = runs.copy()
    values[3:] -= runs[1:-2]
    return _pack(values)


def _pack(values: NDArray[np.int64]) -> bytes:
    characters, used, going = [], [], np.ones(len(values), dtype=np.bool_)
    while going.any():
        bits = values & 31
        values = values >> 5
        more = np.where(bits & 16 > 0, values != -1, values != 0)
        characters.append(bits | (more << 5))
        used.append(going)
        going = going & more
    if not characters:
        return b""
    text = np.stack(characters, axis=1)[np.stack(used, axis=1)] + 48
    return text.astype(np.uint8).tobytes()


def decode_rle(counts: str | bytes | Sequence[int], size: tuple[int, int]) -> Bools:
    """Decode COCO's run lengths, plain or packed (`maskApi.c`, rleFrString).

    Args:
        counts: lengths of runs of 0, 1, 0, ... down the columns, from the left one.
        size: (H, W).

    Returns:
        (H, W) bool.

    Raises:
        ImageError: the runs do not add up to the size.
    """
    if isinstance(counts, bytes):
        counts = counts.decode()
    runs = _unpack(counts) if isinstance(counts, str) else list(counts)
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise ImageError(f"an RLE has {sum(runs):,} pixels; expected {shown(size)}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size[::-1]).T


def _unpack(text: str) -> list[int]:
    """Five bits a character, the lowest first, then a bit for more; differences to two before."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def area(mask: Bools) -> int:
    """Pixels of a mask."""
    return int(np.count_nonzero(mask))


def box(mask: Bools) -> tuple[int, int, int, int]:
    """COCO's box of a mask, (x, y, width, height) in pixels; all 0 of an empty one."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def region_similarity(truth: Bools, found: Bools) -> float:
    """J of DAVIS (Perazzi et al. 2016): intersection over union; 1 where both are empty."""
    union = area(truth | found)
    return area(truth & found) / union if union else 1.0


def contour_accuracy(truth: Bools, found: Bools, bound: float = BOUNDARY) -> float:
    """F of DAVIS (Perazzi et al. 2016): harmonic mean of the precision and recall of contours.

    A contour's pixel is right if the other contour is within `bound` diagonals of the image,
    rounded up to whole pixels. 1 where both are empty, 0 where one is.
    """
    radius = math.ceil(bound * math.hypot(*truth.shape))
    lines = [_contour(mask) for mask in (truth, found)]
    counts = [np.count_nonzero(line) for line in lines]
    if not all(counts):
        return float(not any(counts))
    wide = [cv2.dilate(line, _disc(radius)).astype(np.uint8, copy=False) for line in lines]
    recall = np.count_nonzero(lines[0] & wide[1]) / counts[0]
    precision = np.count_nonzero(lines[1] & wide[0]) / counts[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _contour(mask: Bools) -> NDArray[np.uint8]:
    """1 where a pixel differs from the one to the right, below, or both; as DAVIS' `seg2bmap`.

    Beyond the last row and column lies nothing to differ from.
    """
    padded = np.pad(mask, (0, 1), mode="edge")
    here = padded[:-1, :-1]
    edges = (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])
    return edges.astype(np.uint8)


def _disc(radius: int) -> NDArray[np.uint8]:
    """Pixels within `radius` of the middle one."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)


def davis(truth: Sequence[Bools], found: Sequence[Bools]) -> tuple[float, float]:
    """Mean J and mean F of one object over a sequence, its first and last frame left out.

    Args:
        truth, found: a mask a frame, at least three; the first was given, the last is left out by
            DAVIS' rules for semi-supervised methods.
    """
    pairs = list(zip(truth, found, strict=True))[1:-1]
    if not pairs:
        raise ValueError(f"{len(truth)} frames; J and F of DAVIS need at least three")
    return (
        sum(region_similarity(*pair) for pair in pairs) / len(pairs),
        sum(contour_accuracy(*pair) for pair in pairs) / len(pairs),
    )
