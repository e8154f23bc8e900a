"""Masks polished before they are written: smoother, without specks, holes and masks too small.

Nothing is polished by default. Tracking does not see polished masks, so that memory learns what the
segmenter saw; masks of frames with a prompt stay as they are, so that they obey the person.

Masks are (H, W) bool, origin top left.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from masking.images.arrays import Bools
from masking.tracking.masks import FrameMasks, Mask


@dataclass(frozen=True, kw_only=True)
class PolishConfig:
    """How masks are polished before they are written, in the order smooth, drop_specks, fill_holes,
    min_area. Masks of frames with a prompt stay as they are, and tracking sees none of it."""

    fill_holes: float = 0.0
    """Fill holes in a mask of up to this share of its area, except where another object is. 0: off.
    """
    drop_specks: float = 0.0
    """Drop parts of a mask of up to this share of its area; the largest part stays. 0: off."""
    smooth: float = 0.0
    """Smooth outlines by a Gaussian with this standard deviation in pixels, 0 to 100; details that
    are much smaller are lost. 0: off."""
    min_area: int = 0
    """Empty masks of fewer pixels; the object is then lost on the frame. 0: off."""


OFF = PolishConfig()
"""The settings that change nothing."""


def polish(frame: FrameMasks, config: PolishConfig, exclusive: bool) -> FrameMasks:
    """Return a frame with polished masks; the one given is not changed.

    A mask that is emptied is that of a lost object: the probability that it was right counts
    against it, and what depends on states (review, redaction) does not take it for an answer.

    Args:
        frame: the masks of all objects.
        config: how to polish.
        exclusive: whether no object takes pixels of another one.
    """
    if config == OFF:
        return frame
    found = list(frame.found)
    for place, one in enumerate(found):
        if one is None or one.state == "prompted" or not one.mask.any():
            continue
        mask = polished(one.mask, config)
        if exclusive:
            added = mask & ~one.mask
            for other in (*found[:place], *found[place + 1 :]):
                if other is not None:
                    added &= ~other.mask
            mask = mask & one.mask | added
        is_small = np.count_nonzero(mask) < config.min_area
        found[place] = _emptied(one) if is_small else replace(one, mask=mask)
    return replace(frame, found=tuple(found))


def polished(mask: Bools, config: PolishConfig) -> Bools:
    """Return a mask with a smooth outline, without specks and without holes; `min_area` is not
    applied, and a mask that is not empty stays so.

    Parts are connected at corners, too (8 neighbours); holes are not (4 neighbours), and do not
    reach the edge of the frame.
    """
    if not mask.any():
        return mask
    margin = int(4 * config.smooth) + 2  # as far as the Gaussian reaches
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    top, left = max(rows[0] - margin, 0), max(columns[0] - margin, 0)
    inside = np.s_[top : rows[-1] + margin + 1, left : columns[-1] + margin + 1]
    part = mask[inside]
    if config.smooth:
        part = _smoothed(part, config.smooth)
    if config.drop_specks:
        part = _without_specks(part, config.drop_specks)
    if config.fill_holes:
        part = _without_holes(part, config.fill_holes)
    found = np.zeros_like(mask)
    found[inside] = part
    return found


def _emptied(one: Mask) -> Mask:
    empty = np.zeros_like(one.mask)
    return replace(one, state="lost", mask=empty, score=0.0, quality=1 - one.quality)


def _smoothed(mask: Bools, sigma: float) -> Bools:
    """Return the pixels most of whose neighbours are in a mask; all as they were if none is."""
    blurred = cv2.GaussianBlur(
        mask.astype(np.float32), (0, 0), sigmaX=sigma, borderType=cv2.BORDER_REPLICATE
    )
    found: Bools = np.asarray(blurred) > 0.5
    return found if found.any() else mask


def _without_specks(mask: Bools, share: float) -> Bools:
    """Return a mask without parts of up to a share of its area."""
    parts, areas = _parts(mask, connectivity=8)
    areas[0] = 0  # what is not the mask
    stays = areas > share * areas.sum()
    stays[areas.argmax()] = True
    found: Bools = stays[parts]
    return found


def _without_holes(mask: Bools, share: float) -> Bools:
    """Return a mask without holes of up to a share of its area."""
    parts, areas = _parts(np.pad(~mask, 1, constant_values=True), connectivity=4)
    filled = areas <= share * np.count_nonzero(mask)
    filled[[0, parts[0, 0]]] = False  # the mask itself; what is around it is no hole
    found: Bools = mask | filled[parts][1:-1, 1:-1]
    return found


def _parts(mask: Bools, connectivity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of the part that each pixel (H, W) is of, 0 beside the mask, and the areas
    of the parts by number."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=connectivity
    )
    return np.asarray(parts, np.int64), np.asarray(stats[:, cv2.CC_STAT_AREA], np.int64)
