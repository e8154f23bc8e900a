"""Masks on disk against pycocotools; J and F against distances, and by hand at their edges."""

import math

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco
from scipy.ndimage import distance_transform_edt

from masking.images.decode import ImageError
from masking.images.masks import (
    area,
    box,
    contour_accuracy,
    davis,
    decode_rle,
    encode_rle,
    refuse_soft_edges,
    region_similarity,
)
from masking.images.runs import Runs


def random_mask(seed):
    rng = np.random.default_rng(seed)
    return rng.random(rng.integers(1, 60, 2)) < rng.choice([0.0, 0.02, 0.5, 1.0])


def blob(seed, size=(60, 80)):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    cy, cx, ry, rx = rng.uniform((10, 10, 5, 5), (50, 70, 40, 40))
    return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1


def theirs(mask):
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


def full(height, width):
    return np.ones((height, width), bool)


EDGES = [
    full(1, 1), ~full(1, 1), full(5, 7), ~full(5, 7), np.eye(6, dtype=bool), full(1, 9), full(9, 1),
    np.arange(700 * 900).reshape(700, 900) > 300_000,
]  # fmt: skip


@pytest.mark.parametrize("mask", [*map(random_mask, range(30)), *map(blob, range(5)), *EDGES])
def test_rle_areas_and_boxes_are_pycocotools(mask):
    code = theirs(mask)
    assert encode_rle(mask) == code["counts"]
    np.testing.assert_array_equal(decode_rle(code["counts"], mask.shape), mask)
    np.testing.assert_array_equal(decode_rle(code["counts"].decode(), mask.shape), mask)
    assert area(mask) == coco.area(code)
    assert list(box(mask)) == coco.toBbox(code).tolist()
    for stored in (mask, np.asfortranarray(mask)):  # by rows, and by columns
        runs = Runs.of(stored)
        assert (runs.counts, runs.area, runs.box) == (code["counts"], area(mask), box(mask))


def test_plain_runs():
    mask = np.array([[False, True], [True, True]])
    np.testing.assert_array_equal(decode_rle([1, 3], (2, 2)), mask)
    np.testing.assert_array_equal(decode_rle([0, 4], (2, 2)), full(2, 2))


@pytest.mark.parametrize("counts", [[3, 2], "52", [-1, 7]])
def test_rle_of_another_size(counts):
    with pytest.raises(ImageError, match="expected 3x2"):
        decode_rle(counts, (2, 3))


def contour(mask):
    """Pixel by pixel: it differs from its right, lower or lower right neighbour."""
    h, w = mask.shape
    found = np.zeros_like(mask)
    for y in range(h):
        for x in range(w):
            near = [
                mask[b, a] for b, a in ((y, x + 1), (y + 1, x), (y + 1, x + 1)) if b < h and a < w
            ]
            found[y, x] = any(other != mask[y, x] for other in near)
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("bound", [0.008, 0.05])
def test_f_is_what_distances_say(seed, bound):
    truth, found = blob(seed), blob(seed) ^ (blob(seed + 100) & blob(seed + 200))
    reach = math.ceil(bound * math.hypot(*truth.shape))
    lines = contour(truth), contour(found)
    near = [distance_transform_edt(~line) <= reach for line in lines]
    recall, precision = (near[1][lines[0]].mean(), near[0][lines[1]].mean())
    expected = 2 * precision * recall / (precision + recall)
    assert contour_accuracy(truth, found, bound) == pytest.approx(expected)


def test_f_allows_what_davis_allows():
    """ceil(0.008 * diagonal) is 8 pixels at 480p: a square moved by 8 is right, by 9 is not."""
    truth = np.zeros((480, 854), bool)
    truth[100:300, 100:400] = True
    moved = [np.roll(truth, shift, axis=(0, 1)) for shift in ((8, 0), (9, 0))]
    assert contour_accuracy(truth, moved[0]) == 1
    assert contour_accuracy(truth, moved[1]) < 1


@pytest.mark.parametrize("measure", [region_similarity, contour_accuracy])
def test_empty_masks(measure):
    some, none = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    some[5:9, 5:9] = True
    assert measure(none, none) == 1
    assert measure(some, none) == 0
    assert measure(none, some) == 0
    assert measure(some, some) == 1


def test_j_by_hand():
    one, other = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    one[:, :2], other[:, 1:3] = True, True
    assert region_similarity(one, other) == pytest.approx(2 / 6)


def test_a_sequence_without_its_ends():
    some, none = full(4, 4), ~full(4, 4)
    some[0] = False
    assert davis([some] * 4, [none, some, none, none]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="2 frames"):
        davis([some] * 2, [some] * 2)


SOFTENED = {
    "smaller": lambda m: cv2.resize(m, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA),
    "half": lambda m: cv2.resize(m, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_LINEAR),
    "larger": lambda m: cv2.resize(m, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC),
    "smoothed": lambda m: cv2.GaussianBlur(m, (0, 0), 1.5),
    "much smoothed": lambda m: cv2.GaussianBlur(m, (0, 0), 8),
    "was a JPEG": lambda m: cv2.imdecode(cv2.imencode(".jpg", m)[1], cv2.IMREAD_GRAYSCALE),
}


@pytest.mark.parametrize("soften", SOFTENED.values(), ids=SOFTENED)
@pytest.mark.parametrize("numbers", [(255,), (200,), (100, 200), (0, 9)])
def test_label_maps_with_soft_edges_are_refused(soften, numbers):
    labels = np.zeros((120, 160), np.uint8)
    for number, seed in zip(numbers, (1, 3), strict=False):
        labels[30:90, 40:120][blob(seed)] = number
    if numbers == (0, 9) and soften in (SOFTENED["was a JPEG"], SOFTENED["much smoothed"]):
        pytest.skip("of so small numbers these leave bands as wide as objects")
    refuse_soft_edges(labels, "it")  # as it was before
    with pytest.raises(ImageError, match=r"it has soft edges: of its \d+ numbers, \d+ lie between"):
        refuse_soft_edges(soften(labels), "it")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, bool])
def test_label_maps_of_touching_and_thin_objects_are_not_soft(dtype):
    labels = np.zeros((60, 80), int)
    labels[blob(0)] = 1
    labels[10:50, 20:60] = 2
    labels[20:40, 30:50] = 3  # within another
    labels[4:6, :] = 4  # two pixels thick
    labels[6:9, :] = 5  # wholly beside it
    labels[58, 70] = 6  # a single pixel
    refuse_soft_edges(labels.astype(dtype), "it")
    refuse_soft_edges(np.zeros((4, 5), dtype), "it")
