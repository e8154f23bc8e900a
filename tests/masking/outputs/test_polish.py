"""Polished masks against scipy, and what polish must leave alone."""

import numpy as np
import pytest
from scipy import ndimage

from masking.outputs.polish import OFF, PolishConfig, polish, polished
from masking.tracking.masks import FrameMasks, Mask

EIGHT = np.ones((3, 3))


def ragged(seed, size=(60, 80)):
    """A mask with many holes and specks."""
    noise = np.random.default_rng(seed).standard_normal(size)
    return ndimage.gaussian_filter(noise, 1.5) > 0.02


def frame_of(*found):
    size = found[0].mask.shape
    image = np.zeros((*size, 3), np.uint8)
    logits = np.stack([np.where(one.mask, 4.0, -4.0).astype(np.float32) for one in found])
    return FrameMasks(3, 0.1, image, tuple(range(1, 1 + len(found))), found, logits)


def tracked(mask, state="tracked"):
    return Mask(state, mask, 0.9, 0.95, "forward")


@pytest.mark.parametrize("seed", range(4))
def test_holes_up_to_a_share_are_filled(seed):
    mask = ragged(seed)
    expected = mask.copy()
    labels, count = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
    for i in range(1, count + 1):
        if (labels == i).sum() <= 0.01 * mask.sum():
            expected |= labels == i
    assert (expected != mask).any()
    assert np.array_equal(polished(mask, PolishConfig(fill_holes=0.01)), expected)


@pytest.mark.parametrize("seed", range(4))
def test_specks_up_to_a_share_are_dropped(seed):
    mask = ragged(seed)
    labels, count = ndimage.label(mask, EIGHT)
    sizes = [(labels == i).sum() for i in range(1, count + 1)]
    kept = [i + 1 for i, n in enumerate(sizes) if n > 0.05 * mask.sum() or n == max(sizes)]
    expected = np.isin(labels, kept)
    assert (expected != mask).any()
    assert np.array_equal(polished(mask, PolishConfig(drop_specks=0.05)), expected)


@pytest.mark.parametrize("seed", range(4))
def test_outlines_are_smoothed_by_a_gaussian(seed):
    mask = ragged(seed)
    soft = ndimage.gaussian_filter(mask.astype(float), 2.0, mode="nearest", radius=8)
    sure = abs(soft - 0.5) > 1e-4
    assert sure.mean() > 0.99
    found = polished(mask, PolishConfig(smooth=2.0))
    assert np.array_equal(found[sure], soft[sure] > 0.5)
    assert (found != mask).any()


def test_what_the_edge_of_the_frame_closes_off_is_no_hole():
    mask = np.ones((20, 20), bool)
    mask[0:3, 5:8] = False
    mask[10, 10] = False
    found = polished(mask, PolishConfig(fill_holes=0.5))
    assert found[10, 10]
    assert not found[0:3, 5:8].any()


def test_the_largest_part_and_thin_masks_stay():
    mask = np.zeros((20, 30), bool)
    mask[10, 3:20] = True
    mask[2, 2] = True
    found = polished(mask, PolishConfig(drop_specks=0.99, smooth=5.0))
    assert np.array_equal(np.flatnonzero(found), np.flatnonzero(mask)[1:])
    assert not polished(np.zeros((4, 4), bool), PolishConfig(smooth=1.0, fill_holes=0.1)).any()


def test_masks_of_prompts_and_masks_without_polish_stay():
    frame = frame_of(tracked(ragged(1), "prompted"), tracked(ragged(2)))
    assert polish(frame, OFF, exclusive=True) is frame
    found = polish(frame, PolishConfig(fill_holes=0.1, drop_specks=0.1, smooth=1.0), True)
    assert found.found[0] is frame.found[0]
    assert (found.found[1].mask != frame.found[1].mask).any()


def test_an_object_in_a_hole_of_another_one_stays_what_it_is():
    ring, inner = np.zeros((2, 40, 40), bool)
    ring[5:35, 5:35] = True
    ring[15:20, 15:20] = False
    inner[16:19, 16:19] = True
    frame = frame_of(tracked(ring), tracked(inner))
    config = PolishConfig(fill_holes=0.1)
    found = polish(frame, config, exclusive=True)
    assert np.array_equal(found.found[0].mask, ~inner & (ring | frame_hole(ring)))
    assert (found.label_map() == 2).sum() == 9
    assert polish(frame, config, exclusive=False).found[0].mask[17, 17]


def frame_hole(ring):
    return ndimage.binary_fill_holes(ring) & ~ring


def test_a_mask_that_is_too_small_is_that_of_a_lost_object():
    mask = np.zeros((20, 20), bool)
    mask[3:5, 3:5] = True
    kept = polish(frame_of(tracked(mask)), PolishConfig(min_area=4), True).found[0]
    assert (kept.state, kept.mask.sum()) == ("tracked", 4)
    lost = polish(frame_of(tracked(mask)), PolishConfig(min_area=5), True).found[0]
    assert (lost.state, lost.mask.sum(), lost.score) == ("lost", 0, 0.0)
    assert lost.quality == pytest.approx(0.05)
