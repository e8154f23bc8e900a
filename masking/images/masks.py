"""Masks as COCO's run lengths, their areas and boxes, and their accuracy: DAVIS' J and F.

And the check that a label map has no soft edges.

Masks are (H, W) bool, origin top left. The run lengths are code of our own, not pycocotools: for
smooth masks that takes 0.5 (1080p) to 1.7 (480 x 270) times as long to encode, and 0.1 to 0.6 times
to decode (`benchmarks.masking.run_lengths`; for very ragged masks up to 3.1 times), and from
run lengths that end too early pycocotools returns whatever was in memory.
"""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from masking.images.arrays import Bools, Pixels
from masking.images.decode import ImageError, shown
from masking.images.runs import Runs

BOUNDARY = 0.008
"""Largest distance of contours that match, as a share of the image's diagonal (DAVIS)."""
_FEWEST = 8
"""Pixels from which on a border says something: an object of few pixels may be all border."""
_SHOWN = 6
"""Numbers that a message lists."""


def encode_rle(mask: Bools) -> bytes:
    """Return COCO's packed run lengths of a mask (H, W); see `Runs.counts`."""
    return Runs.of(mask).counts


def decode_rle(counts: str | bytes | Sequence[int], size: tuple[int, int]) -> Bools:
    """Decode COCO's run lengths, plain or packed (`maskApi.c`, rleFrString).

    Args:
        counts: lengths of runs of 0, 1, 0, ... down the columns, from the left one.
        size: (H, W) in pixels.

    Returns:
        (H, W) bool.

    Raises:
        ImageError: the runs are no lengths, or do not add up to the size.
    """
    runs = check_rle(counts, size)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def check_rle(counts: str | bytes | Sequence[int], size: tuple[int, int]) -> NDArray[np.int64]:
    """Return the lengths of the runs of COCO's run lengths; arguments and errors are those of
    `decode_rle`."""
    pixels = size[0] * size[1]
    if isinstance(counts, str):
        counts = counts.encode(errors="replace")
    runs = _unpack(counts) if isinstance(counts, bytes) else np.array(counts, np.int64)
    if runs.min(initial=0) < 0 or runs.max(initial=0) > pixels:  # their sum might overflow
        raise ImageError(
            f"an RLE has runs of {runs.min():,} to {runs.max():,} pixels; expected {shown(size)} in"
            " all"
        )
    if runs.sum() != pixels:
        raise ImageError(f"an RLE has {runs.sum():,} pixels; expected {shown(size)}")
    return runs


def _unpack(text: bytes) -> NDArray[np.int64]:
    """Read numbers of five bits a character, the lowest first; undo the differences."""
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    stops = np.flatnonzero(codes & 32 == 0) + 1
    if not len(stops):
        return stops
    codes, lengths = codes[: stops[-1]], np.diff(stops, prepend=0)
    shifts = 5 * (np.arange(len(codes)) - np.repeat(stops - lengths, lengths))
    values = np.add.reduceat((codes & 31) << shifts, stops - lengths)
    values -= (codes[stops - 1] & 16) << (5 * lengths - 4)  # a negative number's upper bits
    for first in (1, 2):
        values[first::2] = values[first::2].cumsum()
    return values


def area(mask: Bools) -> int:
    """Return the number of pixels of a mask (H, W)."""
    return int(np.count_nonzero(mask))


def box(mask: Bools) -> tuple[int, int, int, int]:
    """Return COCO's box of a mask: (x, y, width, height) in pixels; all 0 for an empty one."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def region_similarity(truth: Bools, found: Bools) -> float:
    """Return J of DAVIS (Perazzi et al. 2016): intersection over union; 1 if both are empty."""
    union = area(truth | found)
    return area(truth & found) / union if union else 1.0


def contour_accuracy(truth: Bools, found: Bools, bound: float = BOUNDARY) -> float:
    """Return F of DAVIS (Perazzi et al. 2016): harmonic mean of contours' precision and recall.

    A pixel of a contour is right if the other contour is within `bound` diagonals of the image,
    rounded up to whole pixels. 1 if both masks are empty, 0 if one is.
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
    """Mark pixels that differ from the one to the right, below, or both; as DAVIS' `seg2bmap`.

    Pixels of the last row and column have no neighbour beyond them to differ from.
    """
    padded = np.pad(mask, (0, 1), mode="edge")
    here = padded[:-1, :-1]
    edges = (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])
    return edges.astype(np.uint8)


def _disc(radius: int) -> NDArray[np.uint8]:
    """Return a square that marks the pixels within `radius` of the middle one."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)


def davis(truth: Sequence[Bools], found: Sequence[Bools]) -> tuple[float, float]:
    """Return the mean J and the mean F of one object over a sequence.

    Args:
        truth, found: a mask for each frame, at least three. DAVIS' rules for semi-supervised
            methods leave out the first, which was given, and the last.

    Raises:
        ValueError: there are fewer than three frames.
    """
    pairs = list(zip(truth, found, strict=True))[1:-1]
    if not pairs:
        raise ValueError(f"{len(truth)} frames; J and F of DAVIS need at least three")
    return (
        sum(region_similarity(*pair) for pair in pairs) / len(pairs),
        sum(contour_accuracy(*pair) for pair in pairs) / len(pairs),
    )


def refuse_soft_edges(labels: NDArray[Any], what: str) -> None:
    """Raise ImageError if a label map (H, W) was smoothed, resized or compressed with loss.

    That leaves numbers between those of two objects, or of an object and the background, along
    their border: each would be an object of its own. A pixel is taken for such a one if a smaller
    number lies within two pixels of it and a larger one beside it. A map is soft if numbers with
    hardly any other pixel make up much of its borders or are half of all its numbers, or if nearly
    the whole border of one number consists of such pixels. None of 2,737 true label maps (DAVIS,
    COCO, CamVid, BSDS and others) has a single number of the first kind.

    Args:
        labels: the map in the size in which it was stored; 0 is no object. Pixels that are void
            must be 0 too.
        what: name of the label map in messages.

    Raises:
        ImageError: the edges are soft; the message lists numbers that only edges have.
    """
    if labels.dtype == np.bool_ or labels.max() < 2:
        return
    numbers: Pixels = labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
    above: Pixels = cv2.dilate(numbers, np.ones((3, 3), np.uint8))
    border = above > numbers
    below: Pixels = cv2.erode(numbers, np.ones((5, 5), np.uint8))
    between = border & (below < numbers)
    size = int(labels.max()) + 1
    pixels, soft = (np.bincount(x, minlength=size) for x in (numbers.ravel(), numbers[between]))
    pixels[0] = 0
    only = (pixels > 0) & (soft >= 0.9 * pixels)  # numbers with hardly a pixel elsewhere
    many = pixels[only].sum() >= 0.05 * np.count_nonzero(border)
    most = 2 * np.count_nonzero(only) >= np.count_nonzero(pixels)
    around, hidden = (np.bincount(above[x], minlength=size) for x in (border, between))
    wrapped = (around >= _FEWEST) & (hidden >= 0.8 * around)
    if wrapped.any() or (pixels[only].sum() >= _FEWEST and (many or most)):
        found = np.flatnonzero(only if only.any() else soft)
        listed = ", ".join(map(str, found[:_SHOWN])) + (" ..." if len(found) > _SHOWN else "")
        raise ImageError(
            f"{what} has soft edges: of its {np.count_nonzero(pixels)} numbers, {len(found)} lie"
            f" between two others along their borders ({listed}), and each would be an object. Make"
            " it again without smoothing, resized only by nearest neighbour and saved as PNG; a"
            " mask of one object can be cut at half of its largest value"
        )
