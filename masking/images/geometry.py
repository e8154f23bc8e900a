"""Geometry of masks: the deepest point, the depth of points, the IoU of two masks."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masking.images.arrays import Bools


def deepest(
    truth: Bools, prediction: Bools | None = None, ignore: Bools | None = None
) -> tuple[int, int, int] | None:
    """Return where a person who corrects a mask would click: the deepest point of what is wrong.

    Depth is the exact Euclidean distance to the nearest pixel that is not wrong in the same way,
    or beyond the image's border. The deepest point of the false negatives or of the false
    positives is taken, whichever is deeper; of equal ones a false negative, then the first in
    reading order.

    Args:
        truth: (H, W) bool, the right mask.
        prediction: (H, W) bool, the mask so far; None: an empty one.
        ignore: (H, W) bool, pixels that do not count; None: all count.

    Returns:
        (x, y, label) in pixels, origin top left; label is 1 to add to the mask, 0 to take away from
        it. None if nothing is wrong.
    """
    prediction = np.zeros_like(truth) if prediction is None else prediction
    counts = True if ignore is None else ~ignore
    kinds = ((1, truth & ~prediction & counts), (0, prediction & ~truth & counts))
    found = [(*_deepest(wrong), label) for label, wrong in kinds]
    depth, x, y, label = max(found, key=lambda place: place[0])  # the first of equal ones
    return (x, y, label) if depth > 0 else None


def _deepest(region: Bools) -> tuple[float, int, int]:
    """Return the largest depth in a region, and the x and y of the first pixel that has it."""
    padded = np.pad(region.astype(np.uint8), 1)  # the border counts as an edge
    depths = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = divmod(int(depths.argmax()), region.shape[1])
    return float(depths[y, x]), x, y


def iou(truth: Tensor, prediction: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Return the intersection over union outside `ignore`; 1 if both masks are empty.

    Args:
        truth, prediction, ignore: (..., H, W) bool, broadcast against each other.

    Returns:
        (...) float32.
    """
    both, either = truth & prediction, truth | prediction
    if ignore is not None:
        both, either = both & ~ignore, either & ~ignore
    union = either.sum(dim=(-2, -1))
    return torch.where(union > 0, both.sum(dim=(-2, -1)) / union.clamp(min=1), 1.0)


def depth(region: Tensor) -> Tensor:
    """Return the exact Euclidean distance to the nearest pixel outside a region or the image.

    By columns, then by rows (Felzenszwalb and Huttenlocher 2012); `deepest` takes it from OpenCV.

    Args:
        region: (N, H, W) bool.

    Returns:
        (N, H, W) float32 in pixels; 0 outside of the region.
    """
    height, width = region.shape[1:]
    rows = torch.arange(height, device=region.device)[:, None]
    before = torch.where(region, -1, rows).cummax(dim=1).values
    after = torch.where(region, height, rows).flip(1).cummin(dim=1).values.flip(1)
    column = torch.minimum(rows - before, after - rows).float().square()
    # No pixel is deeper than half of the shorter side: farther ones cannot be the nearest.
    reach = (min(height, width) + 1) // 2
    padded, squared = F.pad(column, (reach, reach)), column
    for shift in range(1, reach + 1):
        left, right = (padded[:, :, reach + s : reach + s + width] for s in (-shift, shift))
        squared = torch.minimum(squared, torch.minimum(left, right) + shift**2)
    return squared.sqrt()
