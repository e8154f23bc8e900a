"""Simulated clicks against hand-made cases and brute force."""

import cv2
import numpy as np
import pytest
import torch

from masking.images.geometry import deepest, depth, iou
from masking.training import clicks

H, W = 12, 16


def box(top, left, bottom, right, height=H, width=W):
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def brute_force(truth, prediction, ignore):
    """Depth by its definition: distance to the nearest pixel outside, the border included."""
    best = (0.0, None)
    for label, region in ((1, truth & ~prediction), (0, prediction & ~truth)):
        padded = np.pad(region & ~ignore, 1)
        outside = np.argwhere(~padded)
        for y, x in np.argwhere(padded):
            depth = np.sqrt(((outside - (y, x)) ** 2).sum(axis=1).min())
            if depth > best[0] + 1e-6:
                best = (depth, (x - 1, y - 1, label))
    return best[1]


@pytest.mark.parametrize("seed", range(40))
def test_deepest_is_what_brute_force_finds(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 14, 2))
    density = rng.uniform(0.05, 0.95)
    truth, prediction = rng.random((2, *shape)) < density
    ignore = rng.random(shape) < rng.choice([0, 0.3])
    assert deepest(truth, prediction, ignore) == brute_force(truth, prediction, ignore)


RING = box(1, 1, 12, 12, 13, 13) & ~box(4, 4, 9, 9, 13, 13)
CASES = {
    "the middle of a square": (box(2, 3, 7, 8), None, None, (5, 4, 1)),
    "a thin bar: its first pixel in reading order": (box(5, 2, 6, 12), None, None, (2, 5, 1)),
    "a ring: not its hole, but its thick corner": (RING, None, None, (2, 2, 1)),
    "the border is an edge": (box(0, 0, H, W), None, None, (5, 5, 1)),
    "no error": (box(2, 2, 5, 5), box(2, 2, 5, 5), None, None),
    "nothing there, nothing said": (box(0, 0, 0, 0), None, None, None),
    "too much": (box(0, 0, 0, 0), box(1, 1, 6, 6), None, (3, 3, 0)),
    "deeper, not larger": (box(0, 0, 3, 3), box(6, 0, 8, W), None, (1, 1, 1)),
    "as deep: what is missing first": (box(6, 8, 9, 11), box(0, 0, 3, 3), None, (9, 7, 1)),
    "ignored errors are none": (box(2, 2, 7, 7), None, box(2, 2, 7, 7), None),
    "ignored pixels are an edge": (box(2, 2, 7, 13), None, box(2, 2, 7, 8), (10, 4, 1)),
    "one pixel": (box(11, 15, 12, 16), None, None, (15, 11, 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_deepest(case):
    truth, prediction, ignore, expected = CASES[case]
    assert deepest(truth, prediction, ignore) == expected


def torch_masks(*masks):
    return torch.from_numpy(np.stack(masks))


@pytest.mark.parametrize(
    ("truth", "prediction", "ignore", "expected"),
    [
        (box(0, 0, 4, 4), box(0, 0, 4, 2), None, 0.5),
        (box(0, 0, 4, 4), box(0, 0, 4, 2), box(0, 2, 4, 4), 1.0),
        (box(0, 0, 0, 0), box(0, 0, 0, 0), None, 1.0),
        (box(0, 0, 0, 0), box(0, 0, 1, 1), None, 0.0),
        (box(0, 0, 4, 4), box(5, 5, 9, 9), None, 0.0),
    ],
)
def test_iou(truth, prediction, ignore, expected):
    parts = (truth, prediction) if ignore is None else (truth, prediction, ignore)
    assert iou(*(torch_masks(part) for part in parts)).tolist() == [expected]


def draws(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def hit(masks, points):
    x, y = points.long().unbind(dim=1)
    return masks[torch.arange(len(masks)), y, x]


@pytest.mark.parametrize("shape", [(72, 72), (48, 64), (31, 30), (1, 9)])
def test_depth_is_opencvs_exact_distance(shape):
    rng = np.random.default_rng(0)
    blobs = [cv2.GaussianBlur(rng.random(shape), (0, 0), s) > 0.48 for s in (1, 3, 6)]
    regions = [*blobs, np.ones(shape, bool), np.zeros(shape, bool)]
    expected = [
        cv2.distanceTransform(
            np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
        )[1:-1, 1:-1]
        for region in regions
    ]
    np.testing.assert_allclose(depth(torch_masks(*regions)), np.stack(expected), atol=1e-4)


def everywhere(n):
    return torch.zeros(n, dtype=torch.bool)


def middle(n):
    return torch.ones(n, dtype=torch.bool)


def test_random_clicks_lie_in_their_region_and_rather_inside():
    n = 400
    region = torch_masks(box(8, 8, 24, 40, 48, 64)).expand(n, -1, -1)
    points = clicks.random_clicks(region, draws(n, 48, 64), everywhere(n))
    assert hit(region, points).all()
    inner = torch_masks(box(11, 11, 21, 37, 48, 64)).expand(n, -1, -1)
    uniform = inner[0].sum() / region[0].sum()
    assert hit(inner, points).float().mean() > uniform + 0.1
    assert points.unique(dim=0).shape[0] > n / 3  # all over it, not one favourite


def test_random_clicks_of_a_single_pixel_and_of_every_pixel():
    region = torch_masks(box(11, 15, 12, 16), box(0, 0, H, W))
    points = clicks.random_clicks(region, torch.zeros(2, H, W), everywhere(2))
    assert points[0].tolist() == [15, 11]
    assert hit(region, points).all()


def test_centred_clicks_lie_round_the_middle():
    n = 400
    region = shapes(n)  # an ellipse of 16 x 10 cells round (30, 36)
    points = clicks.random_clicks(region, draws(n, 64, 64), middle(n))
    assert hit(region, points).all()
    off = (points - torch.tensor([30.0, 36])).abs()
    assert off[:, 1].mean() < 2  # of 10: of all places of the ellipse 4.2
    assert off[:, 0].mean() < 5  # of 16, along which it is about as deep: 6.8
    assert points.unique(dim=0).shape[0] > 10


def test_centred_corrections_go_to_the_deepest_error():
    n = 200
    truth, prediction = box(0, 0, 3, W), box(5, 0, H, 7)  # 48 missing, 2 deep; 49 too much, 4 deep
    masks = torch_masks(truth, prediction, box(0, 0, 0, 0))[:, None].expand(-1, n, -1, -1)
    points, labels = clicks.corrective(*masks, draws(n, H, W), middle(n))
    assert labels.float().mean() < 0.05
    deep = torch_masks(box(7, 2, 10, 5)).expand(n, -1, -1)
    assert hit(deep, points).float().mean() > 0.9


@pytest.mark.parametrize("centred", [everywhere, middle])
@pytest.mark.parametrize(
    ("prediction", "ignore", "where", "label"),
    [
        (box(0, 0, 0, 0), box(0, 0, 0, 0), box(2, 2, 8, 8), 1),
        (box(2, 2, 8, 14), box(0, 0, 0, 0), box(2, 8, 8, 14), 0),
        (box(2, 2, 8, 8), box(0, 0, 0, 0), box(2, 2, 8, 8), 1),
        (box(2, 2, 8, 14), box(0, 8, H, W), box(2, 2, 8, 8), 1),
        (box(2, 5, 8, 8), box(0, 0, 4, W), box(4, 2, 8, 5), 1),
    ],
    ids=["missing", "too much", "right", "wrong only where ignored", "missing, in part ignored"],
)
def test_corrective(prediction, ignore, where, label, centred):
    n = 30
    masks = torch_masks(box(2, 2, 8, 8), prediction, ignore)[:, None].expand(-1, n, -1, -1)
    points, labels = clicks.corrective(*masks, draws(n, H, W), centred(n))
    assert hit(torch_masks(where).expand(n, -1, -1), points).all()
    assert labels.tolist() == [label] * n


def test_corrective_prefers_the_larger_error():
    n = 500
    truth, prediction = box(0, 0, 3, W), box(9, 0, H, 4)  # 48 missing, 12 too much
    masks = torch_masks(truth, prediction, box(0, 0, 0, 0))[:, None].expand(-1, n, -1, -1)
    _, labels = clicks.corrective(*masks, draws(n, H, W), everywhere(n))
    assert 0.7 < labels.float().mean() < 0.95


def test_box_without_noise_and_with():
    masks = torch_masks(box(2, 3, 8, 13), box(11, 15, 12, 16), box(0, 0, H, W))
    middle = torch.full((3, 4), 0.5)
    exact = [[3, 2, 12, 7], [15, 11, 15, 11], [0, 0, 15, 11]]
    assert clicks.noisy_box(masks, middle).tolist() == exact
    n = 4000
    large = torch_masks(box(100, 100, 200, 400, 300, 500)).expand(n, -1, -1)
    noise = clicks.noisy_box(large, draws(n, 4)) - torch.tensor([100.0, 100, 399, 199])
    assert noise.abs().max() <= 20
    assert noise[:, 1].std() == pytest.approx(9.5, abs=0.6)  # 10 of 100 pixels, cut at 20
    assert noise[:, 0].std() == pytest.approx(15.9, abs=0.8)  # 30 of 300, cut at 20
    for extreme in (0.0, 1 - 2.0**-24):
        ends = clicks.noisy_box(masks, torch.full((3, 4), extreme))
        assert (ends[:, :2] <= ends[:, 2:]).all()
        assert ends.min() >= 0
        assert (ends.amax(dim=0) <= torch.tensor([W - 1, H - 1, W - 1, H - 1])).all()


def shapes(n, side=64):
    ellipse = np.zeros((side, side), dtype=bool)
    y, x = np.mgrid[:side, :side]
    ellipse[((x - 30) / 16) ** 2 + ((y - 36) / 10) ** 2 < 1] = True
    return torch_masks(ellipse).expand(n, -1, -1)


def test_perturbed_masks_are_near_the_truth_and_sometimes_wrong():
    truth = shapes(300)
    logits = clicks.perturb(truth, draws(300, clicks.PERTURB_DRAWS))
    assert logits.shape == truth.shape
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    overlap = iou(truth, logits > 0)
    assert 0.6 < overlap.median() < 0.95
    assert (overlap < 0.5).float().mean() > 0.03
    assert overlap.std() > 0.1


def test_perturbing_by_nothing_softens_only():
    calm = torch.full((1, clicks.PERTURB_DRAWS), 0.5)
    calm[0, 5] += 2048.0 / 4096 / 4096  # the low bits say: no part missing, none too much
    assert iou(shapes(1), clicks.perturb(shapes(1), calm) > 0) > 0.97


def test_a_row_does_not_depend_on_its_neighbours():
    truth, noise = shapes(6), draws(6, 64, 64)
    few = draws(6, clicks.PERTURB_DRAWS)
    some = torch.arange(6) % 2 == 0
    assert torch.equal(
        clicks.random_clicks(truth, noise, some)[2:4],
        clicks.random_clicks(truth[2:4], noise[2:4], some[2:4]),
    )
    torch.testing.assert_close(
        clicks.perturb(truth, few)[3:4], clicks.perturb(truth[3:4], few[3:4])
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nothing_waits_for_the_gpu():
    truth = shapes(8).cuda()
    noise, few = draws(8, 64, 64).cuda(), draws(8, clicks.PERTURB_DRAWS).cuda()
    centred = middle(8).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        clicks.corrective(truth, truth.flip(1), truth & ~truth, noise, centred)
        clicks.noisy_box(truth, few[:, :4])
        iou(truth, clicks.perturb(truth, few) > 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
