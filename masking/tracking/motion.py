"""Points from frame to frame by optical flow, and the motion that they agree on.

Points are (P, 2) float32 (x, y) in pixels, origin top left. Frames are (H, W) uint8 grey. The
recipe is that of `cv2.calcOpticalFlowPyrLK` (Bouguet 2000) with the forward-backward check of
Kalal et al. (2010) and RANSAC (Fischler and Bolles 1981): unchecked, a third of the points have
left their object after 44 frames.
"""

from functools import partial
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from masking.images.arrays import Bools, Pixels, Points

Matrix = NDArray[np.float64]

WINDOW, LEVELS = 21, 4
THERE_AND_BACK = 1.0
"""Pixels by which a point may miss its start when it is followed backward again."""
AGREE = 3.0
"""Pixels by which a point may deviate from the common motion."""
FEWEST = 4
"""Points that a common motion needs at least."""


def follow(before: Pixels, after: Pixels, points: Points) -> tuple[Points, Bools]:
    """Follow points from one frame to the next.

    Returns:
        (P, 2) points in the next frame, and (P,) which of them to believe: those inside the frame
        that arrive where they started when they are followed backward again.
    """
    if not len(points):
        return points.copy(), np.zeros(0, dtype=np.bool_)
    # OpenCV's stubs do not accept None, although it is the default there.
    flow = partial(
        cast(Any, cv2.calcOpticalFlowPyrLK),
        winSize=(WINDOW, WINDOW),
        maxLevel=LEVELS - 1,
        criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.03),
    )
    start = np.ascontiguousarray(points, dtype=np.float32)[:, None]
    there, found, _ = flow(before, after, start, None)
    back, returned, _ = flow(after, before, there, None)
    there, missed = there[:, 0], np.linalg.norm(back[:, 0] - points, axis=1)
    inside = (there >= 0).all(axis=1) & (there <= np.array(after.shape[::-1]) - 1).all(axis=1)
    believed = (found[:, 0] > 0) & (returned[:, 0] > 0) & (missed < THERE_AND_BACK) & inside
    return there, believed


def common_motion(before: Points, after: Points) -> tuple[Matrix | None, Bools]:
    """Find the motion (rotation, scale, shift) that most points follow.

    Returns:
        A (2, 3) matrix from pixels before to pixels after, None if there are too few points or
        they do not agree; and (P,) which of them follow it.
    """
    if len(before) < FEWEST:
        return None, np.ones(len(before), dtype=np.bool_)
    matrix, inliers = cv2.estimateAffinePartial2D(
        before, after, method=cv2.RANSAC, ransacReprojThreshold=AGREE
    )
    if matrix is None or not np.isfinite(matrix).all():
        return None, np.ones(len(before), dtype=np.bool_)
    return np.asarray(matrix, np.float64), inliers[:, 0] > 0


def corners(grey: Pixels, mask: Bools, most: int) -> Points:
    """Return up to `most` points (P, 2) of a mask (H, W) that can be followed well (Shi and Tomasi
    1994), none at its edge."""
    area = np.count_nonzero(mask)
    radius = max(3, round(0.05 * area**0.5))
    inner = cv2.erode(mask.view(np.uint8), np.ones((2 * radius + 1, 2 * radius + 1), np.uint8))
    apart = max(3.0, area**0.5 / 12)
    found = cv2.goodFeaturesToTrack(grey, most, 0.01, apart, mask=inner)
    return np.zeros((0, 2), np.float32) if found is None else found[:, 0].astype(np.float32)


def spread(points: Points, most: int) -> Points:
    """Choose up to `most` points: the first one, then always the one farthest from those chosen
    (Gonzalez 1985)."""
    if len(points) <= most:
        return points
    chosen, distance = [0], np.linalg.norm(points - points[0], axis=1)
    while len(chosen) < most:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return points[chosen]


def warped(
    logits: NDArray[np.float32], matrix: Matrix, scale: float, outside: float
) -> NDArray[np.float32]:
    """Move low-resolution logits (h, w) as a frame moves.

    Args:
        logits: (h, w) float32.
        matrix: (2, 3), in pixels of the frame.
        scale: pixels of the logits per pixel of the frame.
        outside: the logit of cells that come into the frame.
    """
    moved = matrix.copy()
    moved[:, 2] *= scale
    # Pixel centres: (x + 0.5) * scale - 0.5 on either side.
    half = 0.5 * scale - 0.5
    moved[:, 2] += half - matrix[:, :2] @ np.full(2, half)
    size = (logits.shape[1], logits.shape[0])
    result: NDArray[np.float32] = cv2.warpAffine(
        logits, moved, size, borderMode=cv2.BORDER_CONSTANT, borderValue=[outside]
    ).astype(np.float32, copy=False)
    return result
