"""Made clips: where their actors are, and what hides them."""

import numpy as np
import pytest

from masking.training.staged import Actor, Pose, Stage, panned


def stage(*actors, frames=3):
    return Stage((40, 60), frames, lambda index: np.full((40, 60, 3), 90, np.uint8), actors)


def square(path, number, colour):
    picture = np.full((30, 30, 3), colour, np.uint8)
    mask = np.zeros((30, 30), bool)
    mask[5:15, 10:20] = True
    return Actor(picture, mask, path, number)


def test_an_actor_is_where_its_path_says():
    clip = list(stage(square(lambda t: Pose(20.5 + 10 * t, 15.5), 1, (200, 0, 0))))
    for index, (image, labels) in enumerate(clip):
        rows, columns = np.nonzero(labels)
        assert (columns.min(), columns.max()) == (16 + 10 * index, 25 + 10 * index)
        assert (rows.min(), rows.max()) == (11, 20)
        assert image[15, 20 + 10 * index].tolist() == [200, 0, 0]
        assert image[35, 5].tolist() == [90, 90, 90]


def test_it_grows_and_turns():
    _, labels = stage(square(lambda t: Pose(30, 20, 45, 2), 1, 200)).frame(0)
    assert int(labels.sum()) == pytest.approx(400, rel=0.08)
    assert labels[20 - 12, 30] == 1  # a corner of the square on its tip
    assert labels[20 - 12, 30 - 8] == 0


def test_the_last_is_in_front_and_what_is_no_object_hides():
    one, two = square(lambda t: Pose(25, 20), 1, 200), square(lambda t: Pose(30, 20), 2, 50)
    screen = square(lambda t: Pose(35, 20) if t else None, 0, 10)
    clip = stage(one, two, screen)
    _, labels = clip.frame(0)
    assert labels[20, 22] == 1
    assert labels[20, 27] == 2
    _, labels = clip.frame(1)
    assert labels[20, 33] == 0
    assert labels[20, 28] == 2


def test_a_backdrop_is_panned_over():
    picture = np.arange(60 * 80 * 3, dtype=np.uint64).reshape(60, 80, 3).astype(np.uint8)
    cut = panned(picture, (20, 30), (3, 1))
    assert cut(0).shape == (20, 30, 3)
    assert not np.array_equal(cut(0), cut(1))
    assert np.array_equal(cut(0)[1:, 3:], cut(1)[:-1, :-3])
