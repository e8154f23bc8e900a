"""Outlines give masks back to the pixel, in the readers of COCO and of OpenCV."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from masking.images.outlines import edge_parts, joined, one_ring, pixel_parts


def masks():
    rng = np.random.default_rng(3)
    for _ in range(60):
        mask = rng.random(rng.integers(1, 20, 2)) < rng.choice([0.2, 0.5, 0.8])
        if mask.any():
            yield mask
    for _ in range(6):
        canvas = np.zeros((90, 120), np.uint8)
        for _ in range(7):
            centre = tuple(int(v) for v in rng.integers([120, 90]))
            cv2.circle(canvas, centre, int(rng.integers(3, 40)), int(rng.integers(2)), -1)
        canvas[5, 5] = 1
        yield canvas > 0


def area(ring):
    x, y = ring.T
    return abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def test_edges_of_pixels_enclose_the_mask():
    for mask in masks():
        parts = edge_parts(mask)
        assert len(parts) == cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
        enclosed = sum(area(p.outer) - sum(map(area, p.holes)) for p in parts)
        assert enclosed == np.count_nonzero(mask)
        assert [area(p.outer) for p in parts] == sorted(area(p.outer) for p in parts)[::-1]


@pytest.mark.parametrize("together", [False, True])
def test_coco_draws_the_mask_that_was_outlined(together):
    for mask in masks():
        rings = [one_ring(part) for part in edge_parts(mask)]
        rings = [joined(rings)] if together else rings
        drawn = coco.frPyObjects([ring.ravel().tolist() for ring in rings], *mask.shape)
        assert np.array_equal(coco.decode(coco.merge(drawn)) > 0, mask)


def test_opencv_fills_the_mask_that_was_outlined():
    for mask in masks():
        canvas = np.zeros(mask.shape, np.uint8)
        for part in pixel_parts(mask):
            one = np.zeros(mask.shape, np.uint8)
            cv2.fillPoly(one, [one_ring(part).astype(np.int32)], 1)
            canvas |= one
        assert np.array_equal(canvas > 0, mask)


def test_an_empty_mask_has_no_parts():
    empty = np.zeros((3, 4), bool)
    assert edge_parts(empty) == []
    assert pixel_parts(empty) == []
