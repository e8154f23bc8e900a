"""Votes of tracks, against a count in plain Python."""

from collections import Counter

import numpy as np
import torch

from vit.data.sets import Images
from vit.votes import votes_of


def images(tracks, labels, rows=None):
    pixels = np.zeros((len(labels), 3, 2, 2), np.uint8)
    rows = np.arange(len(labels)) if rows is None else np.array(rows)
    numbers = None if tracks is None else np.array(tracks)
    return Images(pixels, np.array(labels), rows, numbers)


def test_the_class_of_most_images_wins():
    rng = np.random.default_rng(0)
    tracks, labels = rng.integers(0, 9, 200), np.zeros(200, np.int64)
    votes = votes_of(images(tracks, labels), 4)
    logits = torch.from_numpy(rng.normal(size=(200, 4)))
    total = votes.zeros(torch.device("cpu"))
    for part in torch.randperm(200).split(33):
        votes.count(total, part, logits[part])
    sums = logits.softmax(dim=1).numpy()
    for track in range(9):
        mine = tracks == track
        polls = Counter(logits.argmax(dim=1).numpy()[mine].tolist())
        means = sums[mine].mean(axis=0)
        best = max(range(4), key=lambda c: (polls[c], means[c]))
        assert int(total[track].argmax()) == best
        assert int(total[track].max()) == polls[best]
        assert int(votes.frames[track]) == mine.sum()


def test_equal_votes_are_decided_by_probability():
    votes = votes_of(images([0, 0], [0, 0]), 3)
    total = votes.zeros(torch.device("cpu"))
    votes.count(total, torch.arange(2), torch.tensor([[1.0, 0.9, 0.0], [0.0, 5.0, 0.0]]))
    assert int(total.argmax()) == 1


def test_tracks_of_a_part_of_the_images():
    """Rows of other sets do not count; an object with two labels is two tracks."""
    part = images([5, 5, 8, 8, 9], [0, 1, 0, 0, 1], rows=[1, 0, 3])
    votes = votes_of(part, 2)
    assert votes.names == (5, 5, 8)
    assert votes.labels.tolist() == [0, 1, 0]
    assert votes.tracks.tolist() == [1, 0, 2]
    assert votes_of(images(None, [0, 1]), 2) is None
