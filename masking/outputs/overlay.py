"""Masks and clicks drawn on an image."""

from collections.abc import Sequence

import cv2
import numpy as np

from masking.images.arrays import Bools, Pixels

COLOURS = (
    (0, 158, 255), (255, 94, 58), (46, 204, 113), (255, 200, 0), (171, 71, 255), (0, 200, 200),
)  # fmt: skip
"""RGB colours of objects, in order; they repeat."""
_CLICKS = {1: (0, 220, 0), 0: (230, 0, 0)}


def draw_masks(
    image: Pixels,
    masks: Bools,
    points: Sequence[Sequence[tuple[float, float]]] = (),
    labels: Sequence[Sequence[int]] = (),
) -> Pixels:
    """Draw masks and their outlines over an image, and mark clicks.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (K, H, W) bool.
        points: the clicks (x, y) of each object, in pixels of the image, origin top left.
        labels: the label of each click, 1 (green) or 0 (red).

    Returns:
        (H, W, 3) uint8 RGB.
    """
    drawn, width = image.copy(), max(1, round(max(image.shape[:2]) / 320))
    for number, mask in enumerate(masks):
        colour = np.array(COLOURS[number % len(COLOURS)], dtype=np.float32)
        drawn[mask] = (0.5 * drawn[mask] + 0.5 * colour).astype(np.uint8)
        outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outlines, -1, colour.tolist(), width)
    for clicks, kinds in zip(points, labels, strict=True):
        for (x, y), kind in zip(clicks, kinds, strict=True):
            at = (round(x), round(y))
            cv2.circle(drawn, at, 4 * width, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(drawn, at, 3 * width, _CLICKS[kind], -1, cv2.LINE_AA)
    return drawn
