"""Tracking with a segmenter that has a part of its own for memory, and how objects compete."""

import numpy as np
import pytest
import torch
from PIL import Image

from masking.segmenter.matching import MAPS, distances, recalled, weights
from masking.segmenter.mini import Mini
from masking.segmenter.sam import Segmenter
from masking.tracking import memory as memories
from masking.tracking.expectation import Expectation
from masking.tracking.masking import mask_video
from masking.tracking.prompting import Prompter
from masking.tracking.state import Scene, Track, TrackConfig, Tracker

H, W = 60, 96


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    mini = Mini(remembers=True).eval()
    mini.memory.start_from(mini.encoder, mini.decoder, mini.config)
    return Segmenter(mini, torch.device("cpu"), "float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    picture = draw.integers(0, 90, (H, W, 3), np.uint8)
    for t in range(6):
        image = picture.copy()
        image[15:40, 10 + 4 * t : 30 + 4 * t] = (220, 40, 30)
        image[20:50, 60 - 2 * t : 75 - 2 * t] = (30, 40, 220)
        Image.fromarray(image).save(root / f"{t:03d}.png")
    return root


CLICKS = [
    {"object_id": 1, "frame": 0, "x": 20, "y": 27},
    {"object_id": 2, "frame": 0, "x": 67, "y": 35},
]


def test_a_video_that_is_resumed_has_the_same_masks(segmenter, folder):
    whole = list(mask_video(folder, CLICKS, segmenter))
    assert len(whole) == 6
    run = mask_video(folder, CLICKS, segmenter)
    for _ in range(3):
        next(run)
    state = run.state
    run.close()
    for one, again in zip(
        whole[3:], mask_video(folder, CLICKS, segmenter, state=state), strict=True
    ):
        assert (one.masks == again.masks).all()
        assert (one.states, one.scores) == (again.states, again.scores)


def test_objects_share_no_pixel_unless_they_may(segmenter, folder):
    apart = list(mask_video(folder, CLICKS, segmenter))
    assert not any(frame.masks.all(axis=0).any() for frame in apart)
    same = [CLICKS[0], CLICKS[0] | {"object_id": 2}]
    free = list(mask_video(folder, same, segmenter, config=TrackConfig(exclusive=False)))
    assert all((frame.masks[0] == frame.masks[1]).all() for frame in free)


def test_the_decoder_gets_the_maps_that_it_was_trained_on(segmenter, folder):
    """What tracking reads in tiles is what training reads of all pairs of cells."""
    frames = [np.asarray(Image.open(folder / f"{t:03d}.png")) for t in range(3)]
    embeddings = segmenter.encode(np.stack(frames))
    keys = segmenter.keys(embeddings)
    grid = (keys.shape[1], keys.shape[2])
    draw = torch.Generator().manual_seed(0)
    shares = torch.rand(3, 2, grid[0] * grid[1], generator=draw) * 0.4
    memory = memories.Memory(grid)
    known = torch.ones(2)
    for number in range(2):
        frame = memories.Remembered(keys[number].flatten(0, 1), shares[number], known, (True, True))
        memory = memory.keep(frame) if number == 0 else memory.add(frame, 5)
    tracker = Tracker((Track("tracked"), Track("tracked")), memory)
    scene = Scene(embeddings[2:3], keys[2])
    prompter = Prompter(segmenter, scene.embeddings)
    maps = Expectation(prompter, TrackConfig(), tracker, scene, {})._near_maps[0]
    new, bias = keys[2].flatten(0, 1), distances(grid, torch.device("cpu"))
    pairs = [weights(keys[number].flatten(0, 1), new, bias) for number in range(2)]
    sums = [share @ pair for share, pair in zip(shares, pairs, strict=False)]
    total = [pair.sum(dim=0).expand(2, -1) for pair in pairs]
    mean = (sums[0] + sums[1]) / (total[0] + total[1])
    parts = (mean, total[0] + total[1], sums[0] / total[0], total[0], mean.flip(0))
    expected = recalled(*(part.unflatten(1, grid) for part in parts))
    assert maps.shape == (2, MAPS, *grid)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-3)
