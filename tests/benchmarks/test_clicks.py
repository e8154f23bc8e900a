"""GrabCut as `benchmarks.masking.clicks` asks it, and whose masks it takes."""

import numpy as np
import torch
from PIL import Image

from benchmarks.masking import clicks
from masking.segmenter.mini import Mini, MiniConfig
from masking.training.pair import Pair
from masking.training.pairs import PairsConfig, survey

ALL = PairsConfig(longest=0, smallest=0, largest=1)


def pair(objects=1):
    """Bright discs on dark noise."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:60, :90]
    masks = np.stack(
        [(y - 30) ** 2 + (x - 20 - 45 * k) ** 2 < (15 - 5 * k) ** 2 for k in range(objects)]
    )
    image = rng.integers(0, 40, (60, 90, 3), dtype=np.uint8)
    image[masks.any(axis=0)] += 180
    return Pair(image, masks, np.zeros((60, 90), bool), "pair", False)


def test_grabcut_finds_what_is_easy():
    assert min(clicks.by_grabcut(pair())) > 0.95
    assert min(clicks.by_grabcut(pair(), [(20, 30, 1)])) > 0.95


def test_a_negative_click_takes_away():
    both = pair(2)
    mask = clicks.grabcut(both.image, [(20, 30, 1), (65, 30, 1)])
    assert mask[30, 65]
    assert not clicks.grabcut(both.image, [(20, 30, 1), (65, 30, 0)])[30, 65]


def test_first_objects_of_all_images_come_first_and_of_sequences_the_first_frame(tmp_path):
    for sequence, frames in (("a", 3), ("b", 2)):
        for kind, end in (("JPEGImages", "jpg"), ("Annotations", "png")):
            (tmp_path / kind / sequence).mkdir(parents=True)
            for number in range(frames):
                labels = np.zeros((20, 30), np.uint8)
                labels[2:8, 2:8], labels[10:18, 10:25] = 1, 2
                picture = Image.fromarray(labels * 100 if end == "jpg" else labels)
                picture.save(tmp_path / kind / sequence / f"{number:05}.{end}")
    first = clicks.first_frames(survey([tmp_path], ALL))
    assert [entry.name[-11:] for entry in first.entries] == ["a/00000.png", "b/00000.png"]
    found = list(clicks.chosen(first, 3))
    assert [each.name[-11] for each in found] == ["a", "b", "a"]
    assert [int(each.masks.sum()) for each in found] == [36, 36, 120]


def test_all_sides_are_measured_on_the_same_objects(tmp_path):
    torch.manual_seed(0)
    segmenter = clicks.Recorder(Mini(MiniConfig(side=64)), torch.device("cpu"), "float32")

    class One:
        """A set of one pair."""

        def __len__(self):
            return 1

        def __getitem__(self, row):
            return pair()

    found = clicks.compare(segmenter, One(), 0)
    assert found.keys() == {"segmenter", "grabcut", "grabcut_same_clicks"}
    assert [np.shape(rows) for rows in found.values()] == [(1, 3)] * 3
    assert found["grabcut"][0][0] == found["grabcut_same_clicks"][0][0]  # the first click is one
