"""Composed samples: masks lie where their objects are, and nothing but the arguments decides."""

import multiprocessing
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest

from masking.training.compose import ComposeConfig, joined, sample
from masking.training.draw import affine, outline, resample, stroke
from masking.training.pairs import Pair

PLAIN = ComposeConfig(
    size=96, join=0, paste=0, drawn=0, occlude=0, colour=0, blur=0, noise=0, jpeg=0
)
COLOURS = [(250, 40, 40), (40, 250, 40), (40, 40, 250), (240, 240, 30)]


def picture(number, height=120, width=160, regions=False):
    """Squares of one colour each on grey; their places depend on `number`."""
    rng = np.random.default_rng(number)
    image = np.full((height, width, 3), 60 + 10 * (number % 5), np.uint8)
    masks = np.zeros((4, height, width), bool)
    for k, colour in enumerate(COLOURS):
        side = rng.integers(14, min(height, width, 80) // 2)
        y, x = rng.integers(0, height // 2 - side), rng.integers(0, width // 2 - side)
        y, x = y + (k // 2) * (height // 2), x + (k % 2) * (width // 2)
        masks[k, y : y + side, x : x + side] = True
        image[masks[k]] = colour
    return Pair(image, masks, np.zeros((height, width), bool), f"picture {number}", regions)


PAIRS = [picture(n) for n in range(8)]


def grown(mask, by=2):
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1,) * 2)) > 0


def shrunk(mask, by=2):
    return ~grown(~mask, by)


@pytest.mark.parametrize("index", range(12))
def test_masks_lie_on_their_objects(index):
    made = sample(PAIRS, replace(PLAIN, rotation=45), 0, 0, index)
    for mask in made.masks:
        inner = made.image[shrunk(mask)].reshape(-1, 3).astype(int)
        colour = COLOURS[np.abs(np.array(COLOURS) - inner.mean(axis=0)).sum(axis=1).argmin()]
        assert np.abs(inner - colour).max() < 12
        alike = np.abs(made.image.astype(int) - colour).max(axis=2) < 12
        assert not (alike & ~grown(mask) & ~made.ignore).any()


@pytest.mark.parametrize("occlude", [0.0, 0.5])
def test_no_mask_is_empty_however_small_objects_may_be(occlude):
    tiny = PAIRS[0].masks[:2] & False
    tiny[0, 20, 20] = tiny[1, 90, 130] = True
    pair = replace(PAIRS[0], masks=tiny)
    config = replace(PLAIN, smallest=0, objects=1, occlude=occlude)
    for index in range(60):
        assert sample([pair], config, 0, index, 0).masks.any(axis=(1, 2)).all()


def test_warped_masks_fit_warped_pictures_to_half_a_pixel():
    made = [sample(PAIRS, PLAIN, 0, 0, i) for i in range(20)]
    off = []
    for one in made:
        for mask in one.masks:
            inner = one.image[shrunk(mask)].astype(float)
            near = grown(mask, 1) & ~shrunk(mask, 1)  # where picture and mask may disagree
            background = np.median(one.image[grown(mask, 4) & ~grown(mask) & ~one.ignore], axis=0)
            if near.any() and len(inner) and np.isfinite(background).all():
                share = (one.image[near] - background) @ (inner.mean(axis=0) - background)
                share /= np.square(inner.mean(axis=0) - background).sum()
                off.append(np.mean((share > 0.5) == mask[near]))
    assert np.mean(off) > 0.93


@pytest.mark.parametrize("index", range(12))
def test_pasted_objects_are_objects_and_hide_what_they_cover(index):
    config = replace(PLAIN, paste=1, occlude=1, objects=20)
    made = sample(PAIRS, config, 0, 0, index)
    different = np.unique(made.masks, axis=0)
    assert (different.sum(axis=0) <= 1).all()
    for mask in different:
        inner = made.image[shrunk(mask)].reshape(-1, 3)
        assert not len(inner) or inner.std(axis=0).max() < 12  # one object, nothing of another
        assert not (mask & made.ignore & ~grown(mask)).any()


@pytest.mark.parametrize("settings", [{"drawn": 1}, {"paste": 1}, {"occlude": 1}])
def test_nothing_changes_but_under_the_new_masks(settings):
    changed = 0
    for index in range(10):
        before = sample(PAIRS, replace(PLAIN, objects=20), 0, 0, index)
        after = sample(PAIRS, replace(PLAIN, objects=20, smallest=0.003, **settings), 0, 0, index)
        old = {mask.tobytes() for mask in before.masks}
        new = [mask for mask in after.masks if mask.tobytes() not in old]
        different = (before.image != after.image).any(axis=2)
        changed += different.sum()
        if new:
            different &= ~grown(np.any(new, axis=0), 1)
        # What was covered in turn by a later layer is in no mask, so a rest may remain.
        assert different.mean() < 0.02
    assert changed > 1000


REAL = ComposeConfig(size=64, paste=0.7, drawn=0.5, occlude=0.5, join=0.5, blur=0.5, noise=0.5)


@pytest.mark.parametrize(("objects", "regions"), [(1, False), (3, False), (3, True), (9, False)])
def test_always_as_many_masks_and_none_empty(objects, regions):
    pairs = [picture(n, 40 + 30 * n, 150 - 20 * n, regions) for n in range(2, 5)]
    config = replace(REAL, objects=objects)
    for index in range(60):
        made = sample(pairs, config, 3, 1, index)
        assert made.image.shape == (64, 64, 3)
        assert made.image.dtype == np.uint8
        assert made.masks.shape == (objects, 64, 64)
        assert made.ignore.shape == (64, 64)
        assert made.masks.dtype == made.ignore.dtype == np.bool_
        assert made.masks.sum(axis=(1, 2)).min() >= 0.003 * 64**2
        assert not (made.masks & made.ignore).any()


@pytest.mark.parametrize("place", [(0, 0), (119, 159), (60, 80)])
def test_an_object_of_one_pixel_is_not_lost(place):
    masks = np.zeros((1, 120, 160), bool)
    masks[0][place] = True
    one = replace(PAIRS[0], masks=masks)
    for index in range(5):
        assert sample([one], REAL, 0, 0, index).masks.any(axis=(1, 2)).all()


def digest(made):
    return zlib.crc32(made.image.tobytes() + made.masks.tobytes() + made.ignore.tobytes())


def digest_of(index):
    return digest(sample(PAIRS, REAL, 5, 2, index))


@pytest.mark.parametrize("kind", ["threads", "process"])
def test_the_same_in_threads_and_processes(kind):
    here = [digest_of(index) for index in range(12)]
    pool = ThreadPoolExecutor(3)
    if kind == "process":
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with pool:
        assert list(pool.map(digest_of, reversed(range(12)))) == here[::-1]


def test_no_global_generator_is_touched():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    digest_of(3)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize("changed", [(6, 2, 0), (5, 3, 0), (5, 2, 8)])
def test_every_argument_matters(changed):
    assert digest(sample(PAIRS, REAL, *changed)) != digest(sample(PAIRS, REAL, 5, 2, 0))


def stripes(*columns, gap=0):
    """Upright parts of a thing, `gap` pixels of nothing between them."""
    masks, x = np.zeros((len(columns), 60, 120), bool), 10
    for k, width in enumerate(columns):
        masks[k, 10:50, x : x + width] = True
        x += width + gap
    return masks


def joins(masks, regions=False, tries=40):
    found = [joined(np.random.default_rng(n), masks, regions) for n in range(tries)]
    return [union for union in found if union is not None]


def test_parts_that_adjoin_are_joined():
    masks = stripes(20, 12, 24)
    unions = joins(masks)
    assert len(unions) == 40
    whole = sum((union == masks.any(axis=0)).all() for union in unions)
    assert 25 < whole < 40
    assert all(
        (union & masks[k]).sum() in (0, masks[k].sum()) for union in unions for k in range(3)
    )


def test_a_joined_object_is_asked_for():
    masks = stripes(20, 12, 24)
    things = Pair(np.zeros((60, 120, 3), np.uint8), masks, ~masks.any(axis=0), "thing", False)
    for index in range(10):
        made = sample([things], replace(PLAIN, join=1, objects=2, scale=(1, 1)), 0, 0, index)
        inner = cv2.connectedComponents(made.masks[0].astype(np.uint8))[0]
        assert inner == 2  # background and one piece
        assert made.masks[0].sum() > 1.4 * 20 * 40 * (96 / 120) ** 2


def test_parts_that_do_not_adjoin_are_not_joined():
    assert joins(stripes(20, 12, 24, gap=9)) == []
    touching_at_a_corner = np.zeros((2, 60, 120), bool)
    touching_at_a_corner[0, 0:30, 0:60] = touching_at_a_corner[1, 30:60, 60:120] = True
    assert joins(touching_at_a_corner) == []


def test_of_regions_a_few_are_joined_and_never_the_whole_picture():
    masks = np.zeros((12, 60, 120), bool)
    for k in range(12):
        masks[k, :, 10 * k : 10 * k + 10] = True
    unions = joins(masks, regions=True)
    assert len(unions) == 40
    assert {int(union.sum() / 600) for union in unions} == {2, 3, 4}


@pytest.mark.parametrize(("draw", "variety"), [(outline, 8), (stroke, 3)])
def test_drawn_shapes_lie_about_their_place(draw, variety):
    areas = []
    for seed in range(50):
        mask = draw(np.random.default_rng(seed), 200, np.array([80.0, 120.0]), 60.0)
        y, x = np.nonzero(mask)
        assert 40 < x.min() <= x.max() < 120
        assert 80 < y.min() <= y.max() < 160
        areas.append(mask.sum())
    assert max(areas) > variety * min(areas)  # thin ones and wide ones


@pytest.mark.parametrize("zoom", [0.2, 0.45, 1.0, 1.7])
def test_resample_keeps_places(zoom):
    """A ramp stays a ramp, also where the picture is shrunk first."""
    ramp = np.tile(np.arange(0, 240, dtype=np.uint8)[None, :, None], (240, 1, 3))
    middle, to = np.array([119.5, 119.5]), np.array([20.0, 20.0])
    warped = resample(ramp, affine(zoom, 0, False, middle, to), (41, 41), cv2.BORDER_REPLICATE, [0])
    expected = np.clip(119.5 + (np.arange(41) - 20) / zoom, 0, 239)
    inner = slice(4, -4)
    assert np.abs(warped[20, inner, 0] - expected[inner]).max() < 1.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 8}, "size is 8"),
        ({"objects": 0}, "objects 0"),
        ({"scale": (2.0, 1.0)}, "scale is"),
        ({"rotation": 200.0}, "rotation is 200"),
        ({"jpeg": 1.5}, "jpeg is 1.5; expected 0 to 1"),
        ({"smallest": -0.1}, "smallest is -0.1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ComposeConfig(**settings)
