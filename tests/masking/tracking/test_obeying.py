"""Clicks are obeyed on their frame, at its full size, whatever the segmenter says."""

import numpy as np
import pytest
import torch

import masking
from masking.manifest.prompt import FramePrompt
from masking.segmenter.mini import Mini, MiniConfig
from masking.segmenter.sam import Segmenter
from masking.tracking import obeying
from masking.tracking.query import clicks_on_others
from masking.tracking.snapshot import MaskingState
from tests.moving import picture, segmenter


def clicks(points, labels, size=(40, 60)):
    return obeying.Clicks.at(np.array(points, np.float32), np.array(labels), size)


def test_random_clicks_are_obeyed_in_random_logits():
    rng = np.random.default_rng(0)
    for _ in range(200):
        h, w = rng.integers(3, 60, 2)
        count = rng.integers(1, 9)
        spread = rng.choice([2, 8, 60])  # also many clicks in a few pixels
        x, y = rng.integers(0, np.minimum([w, h], spread), (count, 2)).T
        _, first = np.unique(np.stack([x, y]), axis=1, return_index=True)
        points, labels = np.stack([x, y], axis=1)[first], rng.integers(0, 2, len(first))
        logits = rng.normal(size=(h, w)).astype(np.float32) - rng.choice([-3, 0, 3])
        before = logits.copy()
        found = obeying.obey_in_frame(logits, points.astype(np.float32), labels)
        assert ((found[points[:, 1], points[:, 0]] > 0) == (labels == 1)).all()
        assert np.array_equal(logits, before)


def test_a_mask_that_obeys_is_returned_as_it_is():
    logits = np.full((40, 60), -3, np.float32)
    logits[10:30, 10:40] = 3
    points, labels = np.array([[20, 20], [50, 20]], np.float32), np.array([1, 0])
    assert obeying.obey_in_frame(logits, points, labels) is logits


def test_a_click_changes_what_another_output_has_there_and_at_least_a_disc():
    logits = np.full((40, 60), -3, np.float32)
    logits[5:35, 5:55] = 3
    half = np.zeros((40, 60), np.bool_)
    half[:, 30:] = True
    elsewhere = np.zeros_like(half)
    found = obeying.obey(logits, clicks([(10, 20), (45, 20)], [1, 0]), 3.0, [[], [elsewhere, half]])
    assert (found[5:35, 30:55] < 0).all()
    assert (found[5:35, 5:27] > 0).all()
    small = obeying.obey(logits, clicks([(45, 20)], [0]), 3.0)
    assert 20 < (logits > 0).sum() - (small > 0).sum() < 36


def test_between_clicks_of_both_labels_each_pixel_follows_the_nearest():
    logits = np.full((40, 60), 3, np.float32)
    found = obeying.obey(logits, clicks([(20, 20), (22, 20)], [0, 1]), 8.0)
    assert (found[20, 13:21] < 0).all()
    assert (found[20, 21:] > 0).all()


def test_a_pinhole_grows_to_a_disc():
    logits = np.full((40, 60), 3, np.float32)
    logits[20, 30] = -3
    found = obeying.obey(logits, clicks([(30, 20)], [0]), 3.0)
    assert (found < 0).sum() > 20
    logits[:, 20:] = -3  # no pinhole
    assert obeying.obey(logits, clicks([(30, 20)], [0]), 3.0) is logits


def test_a_click_on_both_of_two_objects_takes_it_from_neither():
    both = FramePrompt(np.array([[5.2, 7.0], [20, 20]], np.float32), np.array([1, 1]))
    other = FramePrompt(np.array([[5.7, 7.3], [30, 30]], np.float32), np.array([1, 0]))
    assert clicks_on_others({0: both, 1: other}, 0).tolist() == []
    assert clicks_on_others({0: both, 1: other}, 1).tolist() == [[20, 20]]
    assert clicks_on_others({0: both}, 1).tolist() == both.points.tolist()


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return Segmenter(Mini(MiniConfig(side=96)), torch.device("cpu"), "float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("frames")
    for t in range(7):
        image, _ = picture({1: (40 + 3 * t, 40, 14), 2: (110 - 3 * t, 60, 14)}, seed=t)
        Image.fromarray(image).resize((96, 58) if t == 5 else (160, 96)).save(folder / f"{t}.png")
    return folder


def disobeyed(rows, frames, scales=None):
    """Return the clicks that the masks do not obey."""
    wrong = []
    for row in rows:
        frame = frames[row["frame"]]
        h, w = frame.image.shape[:2]
        y, x = int((row["y"] + 0.5) * h / 96), int((row["x"] + 0.5) * w / 160)
        mask = frame.masks[frame.objects.index(row["object_id"])]
        if mask[y, x] != bool(row["label"]):
            wrong.append(row)
    return wrong


def random_rows(rng):
    """Return clicks on two objects on several frames, at random: most contradict the picture."""
    rows, taken = [], set()
    for object_id in (1, 2):
        frames = [0, *sorted(rng.choice(np.arange(1, 7), rng.integers(1, 4), replace=False))]
        for frame in map(int, frames):
            near = rng.integers(0, [140, 76])
            for number in range(rng.integers(1, 5)):
                x, y = map(int, near + rng.integers(0, rng.choice([6, 20]), 2))
                label = 1 if frame == 0 and number == 0 else int(rng.integers(0, 2))
                if (frame, x // 2, y // 2) in taken:
                    continue
                taken.add((frame, x // 2, y // 2))
                role = "init" if frame == 0 else "correct"
                rows.append(
                    {"object_id": object_id, "frame": frame, "x": x, "y": y, "label": label}
                    | {"role": role}
                )
    return rows


@pytest.mark.parametrize("eyes", ["untrained", "seeing"])
def test_all_clicks_on_all_frames_are_obeyed_also_when_resumed(untrained, folder, tmp_path, eyes):
    rng = np.random.default_rng(1)
    for attempt in range(2):
        network = untrained if eyes == "untrained" else segmenter()
        rows = random_rows(rng)
        run = masking.mask_video(folder, rows, network)
        frames, stop = [], int(rng.integers(1, 7))
        for frame in run:
            frames.append(frame)
            if frame.index + 1 == stop:
                run.state.save(tmp_path / "state")
        assert disobeyed(rows, frames) == []
        state = MaskingState.load(tmp_path / "state")
        rest = list(masking.mask_video(folder, rows, network, state=state))
        for a, b in zip(rest, frames[stop:], strict=True):
            assert np.array_equal(a.masks, b.masks), attempt
            assert [one and (one.state, one.quality) for one in a.found] == [
                one and (one.state, one.quality) for one in b.found
            ]


def test_a_mask_that_was_cut_has_a_lower_quality(folder):
    """The segmenter that sees right does not take a disc apart; the state stays `prompted`."""
    rows = [
        {"object_id": 1, "frame": 0, "x": 40, "y": 40},
        {"object_id": 1, "frame": 0, "x": 46, "y": 40, "label": 0},
    ]
    frame = next(masking.mask_video(folder, rows, segmenter()))
    assert frame.states == ("prompted",)
    assert frame.masks[0, 40, 40]
    assert not frame.masks[0, 38:43, 44:49].any()
    rows.pop()
    whole = next(masking.mask_video(folder, rows, segmenter())).found[0]
    assert 0.3 < frame.found[0].quality < whole.quality
