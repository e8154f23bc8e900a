"""Objects through made clips with a segmenter that sees right: states, points, and one value."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from masking.manifest.prompt import FramePrompt
from masking.tracking import memory as memories
from masking.tracking import snapshot, step
from masking.tracking import state as track
from masking.tracking.state import Scene, TrackConfig
from masking.tracking.trust import TRACKED
from tests.moving import SIZE, Seeing, picture, segmenter


def follow(clip, prompts, config=None, tracker=None, start=0, seeing=None):
    """States and masks (K, H, W) of every frame of [(image, labels)], and the last tracker."""
    seeing = seeing or segmenter()
    count = 1 + max((row for given in prompts.values() for row in given), default=0)
    tracker = tracker or track.begin(count)
    states, masks = [], []
    for index, (image, _) in enumerate(clip[start:], start):
        embeddings = seeing.encode(image[None])
        scene = Scene(embeddings, seeing.keys(embeddings)[0])
        tracker, found = step.advance(
            seeing, config or TrackConfig(), tracker, scene, prompts.get(index, {})
        )
        states.append(found.states)
        masks.append((seeing.upsample(found.logits, SIZE) > 0).numpy())
    return states, np.stack(masks), tracker


def click(x, y, label=1):
    return FramePrompt(np.array([[x, y]], np.float32), np.array([label]))


def agreement(clip, masks, number, row=0):
    truth = np.stack([labels == number for _, labels in clip])
    both, either = (truth & masks[:, row]).sum((1, 2)), (truth | masks[:, row]).sum((1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def test_a_moving_object_is_followed():
    clip = [picture({1: (30 + 2 * t, 40 + t, 14)}) for t in range(20)]
    states, masks, _ = follow(clip, {0: {0: click(30, 40)}})
    assert states[0] == ("prompted",)
    assert {state for (state,) in states[1:]} == {"tracked"}
    assert agreement(clip, masks, 1).min() > 0.8


def test_objects_that_cross_keep_their_names():
    clip = [picture({1: (20 + 5 * t, 40, 12), 2: (140 - 5 * t, 56, 12)}) for t in range(25)]
    _, masks, _ = follow(clip, {0: {0: click(20, 40), 1: click(140, 56)}})
    assert agreement(clip, masks, 1, 0)[-1] > 0.8
    assert agreement(clip, masks, 2, 1)[-1] > 0.8


def test_what_goes_is_lost_and_found_again_on_the_second_frame():
    places = [(30 + 4 * t, 40, 12) for t in range(8)] + [None] * 10
    places += [(100, 60, 12)] * 6
    clip = [picture({1: place}) for place in places]
    states, masks, _ = follow(clip, {0: {0: click(30, 40)}})
    flat = [state for (state,) in states]
    assert "lost" in flat[8:14]
    assert flat[17] == "lost"
    assert flat[18:21] == ["lost", "recovered", "tracked"]
    assert not masks[14:18].any()
    assert agreement(clip, masks, 1)[20:].min() > 0.8


def test_without_redetection_it_stays_lost():
    clip = [picture({1: place}) for place in [(30, 40, 12)] * 3 + [None] * 8 + [(90, 60, 12)] * 5]
    states, masks, _ = follow(clip, {0: {0: click(30, 40)}}, TrackConfig(redetect=False))
    assert states[-1] == ("lost",)
    assert not masks[-1].any()


def test_absent_and_end_are_a_persons_word():
    clip = [picture({1: (40, 40, 12)})] * 9
    words = {0: {0: click(40, 40)}, 3: {0: FramePrompt(role="absent")}, 5: {0: click(40, 40)}}
    words[7] = {0: FramePrompt(role="end")}
    states, masks, _ = follow(clip, words)
    flat = [state for (state,) in states]
    assert flat[3:5] == ["absent", "absent"]
    assert flat[5:7] == ["prompted", "tracked"]
    assert flat[7:] == [None, None]
    assert not masks[3:5].any()


def test_a_correction_takes_hold():
    """The first click is on the wrong thing; from the correction on the right one is followed."""
    clip = [picture({1: (30 + t, 40, 12), 2: (110 - t, 60, 12)}) for t in range(12)]
    wrong = {0: {0: click(110, 60)}}
    right = FramePrompt(np.array([[36, 40]], np.float32), np.array([1]), role="correct")
    states, masks, _ = follow(clip, wrong | {6: {0: right}})
    assert agreement(clip, masks, 2)[:6].min() > 0.8
    assert agreement(clip, masks, 1)[6:].min() > 0.8
    assert states[6] == ("prompted",)


class Jumping(Seeing):
    """Looks for something blue where it is told that the object is not."""

    def decode(self, features, frames, points, labels, boxes, mask_input):
        told = (labels == 0).any(dim=1)
        points = torch.where(told[:, None, None], torch.tensor([110.0, 60.0]), points)
        labels = torch.where(told[:, None], 1, labels)
        return super().decode(features, frames, points, labels, boxes, mask_input)


def test_what_is_not_here_is_not_sought_elsewhere_on_the_frame():
    clip = [picture({1: (30, 40, 12), 2: (110, 60, 12)})] * 4
    words = {0: {0: click(30, 40)}, 3: {0: replace(click(30, 40, 0), role="correct")}}
    states, masks, tracker = follow(clip, words, seeing=segmenter(Jumping()))
    assert states == [("prompted",), ("tracked",), ("tracked",), ("lost",)]
    assert masks[2, 0, 40, 30]
    assert not masks[3].any()
    # What is remembered of the last frame is the disc, which is not the object; and nothing else.
    denial = tracker.memory.prompted[-1]
    assert not denial.shares.any()
    cells = denial.keys.any(dim=1).view(tracker.memory.grid)
    assert cells[10, 7]
    assert 12 < cells.sum() < 40


class Wavering(Seeing):
    """Predicts hardly any IoU for one call."""

    is_sure = True

    def decode(self, *arguments):
        logits, scores = super().decode(*arguments)
        return logits, scores if self.is_sure else torch.full_like(scores, 0.02)


def test_a_mask_that_is_hardly_right_is_not_drawn_and_the_object_stays_where_it_was():
    network = Wavering()
    seeing, tracker, states, drawn = segmenter(network), track.begin(1), [], []
    for index in range(5):
        image, _ = picture({1: (30, 40, 12)})
        embeddings = seeing.encode(image[None])
        scene = Scene(embeddings, seeing.keys(embeddings)[0])
        network.is_sure = index != 3
        prompts = {} if index else {0: click(30, 40)}
        tracker, found = step.advance(seeing, TrackConfig(), tracker, scene, prompts)
        states.append(found.states[0])
        drawn.append(bool((found.logits > 0).any()))
    assert states == ["prompted", "tracked", "tracked", "lost", "tracked"]
    assert drawn == [True, True, True, False, True]


def test_a_prompted_mask_counts_in_memory_as_far_as_it_is_sure():
    """A segmenter that sees right does not take a disc apart."""
    image, _ = picture({1: (40, 40, 12)})
    seeing = segmenter()
    embeddings = seeing.encode(image[None])
    scene = Scene(embeddings, seeing.keys(embeddings)[0])
    cut = FramePrompt(np.array([[40, 40], [46, 40]], np.float32), np.array([1, 0]))
    for prompt, is_sure in ((click(40, 40), True), (cut, False)):
        tracker, found = step.advance(seeing, TrackConfig(), track.begin(1), scene, {0: prompt})
        known = float(tracker.memory.prompted[0].known[0])
        assert known == pytest.approx(min(1, found.quality[0] / TRACKED))
        assert (known == 1) == is_sure


class Greedy(Seeing):
    """Takes everything for one object, unless it starts from a mask or is told what is not."""

    def decode(self, features, frames, points, labels, boxes, mask_input):
        logits, scores = super().decode(features, frames, points, labels, boxes, mask_input)
        everything = 16 * torch.nn.functional.avg_pool2d((features[0] > 0).float(), 4) - 8
        for row in range(len(points)):
            if mask_input is None and not (labels[row] == 0).any():
                logits = logits.clone()
                logits[row] = everything[0]
        return logits, scores


def test_a_click_takes_nothing_from_an_object_that_is_followed():
    places = [(40, 30, 12)] * 3 + [None] * 8 + [(60, 40, 12)]
    clip = [picture({1: place, 2: (110, 60, 12)}) for place in places]
    words = {0: {0: click(40, 30), 1: click(110, 60)}}
    words[11] = {0: replace(click(60, 40), role="correct")}
    states, masks, _ = follow(clip, words, TrackConfig(redetect=False), seeing=segmenter(Greedy()))
    assert states[-2:] == [("lost", "tracked"), ("prompted", "tracked")]
    assert agreement(clip[-1:], masks[-1:], 1, 0) > 0.8
    assert agreement(clip[-1:], masks[-1:], 2, 1) > 0.8


def test_all_objects_of_a_frame_are_decoded_in_one_call():
    clip = [picture({1: (30, 40, 12), 2: (110, 60, 12), 3: (70, 20, 10)})] * 4
    seeing = segmenter()
    tracker = track.begin(3)
    for index, (image, _) in enumerate(clip):
        embeddings = seeing.encode(image[None])
        scene = Scene(embeddings, seeing.keys(embeddings)[0])
        words = {0: click(30, 40), 1: click(110, 60), 2: click(70, 20)} if index == 0 else {}
        seeing.network.calls.clear()
        tracker, _ = step.advance(seeing, TrackConfig(), tracker, scene, words)
        assert seeing.network.calls == ([3, 3] if index == 0 else [3])  # a click has two passes


def prompts_given(prompts, config=None):
    """Prompts of each object in each round of the network: [(points, labels, with a mask)]."""
    seeing, rounds = segmenter(), []
    decode = seeing.network.decode

    def listen(features, frames, points, labels, boxes, mask_input):
        given = [None] * len(points) if mask_input is None else mask_input
        rounds.append(
            [
                (
                    place[kind >= 0].tolist(),
                    kind[kind >= 0].tolist(),
                    mask is not None and bool(mask.isfinite().all()),
                )
                for place, kind, mask in zip(points, labels, given, strict=True)
            ]
        )
        return decode(features, frames, points, labels, boxes, mask_input)

    seeing.network.decode = listen
    image, _ = picture({1: (40, 40, 14), 2: (110, 60, 14)})
    embeddings = seeing.encode(image[None])
    scene = Scene(embeddings, seeing.keys(embeddings)[0])
    step.advance(seeing, config or TrackConfig(), track.begin(len(prompts)), scene, prompts)
    return rounds


def test_only_clicks_that_correct_the_mask_are_given():
    places = np.array([[60, 20], [40, 40], [44, 44], [110, 60], [36, 36]], np.float32)
    rounds = prompts_given({0: FramePrompt(places, np.array([0, 1, 1, 1, 0]))})
    assert rounds[:3] == [
        [([[40, 40]], [1], False)],
        [([[40, 40], [110, 60]], [1, 1], True)],
        [([[40, 40], [110, 60], [36, 36]], [1, 1, 0], True)],
    ]
    assert rounds[3] == rounds[2]  # once more, with its own mask
    clicks = places[[0, 1, 2, 3, 4]].tolist(), [0, 1, 1, 1, 0]
    assert rounds[4:] == [[(*clicks, True), (*clicks, False)]]  # it obeyed not all of them


def test_a_box_is_given_before_the_clicks():
    box = np.array([26, 26, 55, 55], np.float32)
    rounds = prompts_given(
        {0: FramePrompt(np.array([[42, 42], [110, 60]], np.float32), np.ones(2, int), box)}
    )
    assert rounds[:2] == [[([], [], False)], [([[110, 60]], [1], True)]]


def test_clicks_on_other_objects_are_negatives_where_the_mask_holds_them():
    prompts = {0: click(40, 40), 1: click(44, 44), 2: click(110, 60)}
    first = [([[x, y]], [1], False) for x, y in ((40, 40), (44, 44), (110, 60))]
    second = [([[40, 40], [44, 44]], [1, 0], True), ([[44, 44], [40, 40]], [1, 0], True)]
    assert prompts_given(prompts)[:2] == [first, second]
    shared = prompts_given(prompts, TrackConfig(exclusive=False))
    assert all(labels == [1] for rounds in shared for _, labels, _ in rounds)


def test_settings_are_accepted_under_their_former_names_with_a_warning():
    with pytest.warns(DeprecationWarning, match="rivals has been renamed; use exclusive"):
        config = TrackConfig(rivals=False, patience=2)
    assert config == TrackConfig(exclusive=False, patience=2)
    with pytest.raises(TypeError, match="likeness"):
        TrackConfig(likeness=0.4, similarity=0.4)
    with pytest.warns(DeprecationWarning, match="corners has no effect any more"):
        assert TrackConfig(corners=3) == TrackConfig()


def test_a_step_changes_nothing_that_it_was_given_and_resumes_from_a_file(tmp_path):
    clip = [picture({1: (30 + 2 * t, 40 + t, 14)}) for t in range(14)]
    prompts = {0: {0: click(30, 40)}}
    _, whole, _ = follow(clip, prompts)
    _, _, half = follow(clip[:7], prompts)
    torch.save(snapshot.plain(half), tmp_path / "state")
    loaded = torch.load(tmp_path / "state", weights_only=True)
    restored = snapshot.restored(loaded)
    for tracker in (half, half, restored):
        _, rest, _ = follow(clip, prompts, tracker=tracker, start=7)
        assert np.array_equal(rest, whole[7:])


def test_a_state_of_another_version_is_refused():
    with pytest.raises(ValueError, match="not a state of this version"):
        snapshot.restored({"class": "Tracker", "wheels": 4})


def test_memory_knows_again_and_says_nothing_of_what_it_does_not_know():
    keys = torch.eye(4)[torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])]
    shares = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0], [0] * 8])
    frame = memories.Remembered(keys, shares, torch.tensor([1.0, 0]), (True, False))
    memory = memories.Memory((2, 4)).keep(frame)
    read = memory.read(keys.flip(0), anywhere=True).shares
    assert read[0] == pytest.approx([0, 0, 0, 0, 0, 0, 1, 1], abs=1e-5)
    assert not read[1].any()


@pytest.mark.parametrize("grid", [(5, 4), (13, 21), (21, 13)])
def test_memory_in_tiles_reads_what_all_pairs_of_cells_give(grid):
    """Against every cell beside every other of every frame, in float64."""
    random = torch.Generator().manual_seed(0)
    h, w = grid
    memory, objects, every = memories.Memory(grid), 3, []
    for index in range(4):
        keys = F.normalize(torch.randn(h * w, 8, generator=random), dim=1)
        shares = torch.zeros(objects, h, w)
        shares[0, h // 3 : h // 2, : w // 4] = torch.rand((), generator=random)
        shares[1, :, w // 2] = 1
        known = torch.tensor([1.0, float(index != 2), 0.0])
        frame = memories.Remembered(keys, shares.flatten(1), known, (True,) * objects)
        memory = memory.keep(frame) if index == 0 else memory.add(frame, 3)
        every.append(frame)
    keys = F.normalize(torch.randn(h * w, 8, generator=random), dim=1)
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(h), torch.arange(w)))
    near = torch.hypot(y[:, None] - y.double(), x[:, None] - x.double()) <= memories.RADIUS * max(
        h, w
    )
    total, weight = torch.zeros(2, objects, h * w, dtype=torch.float64)
    for number, frame in enumerate(every):
        alike = (frame.keys.double() @ keys.double().T / memories.TEMPERATURE).exp() * near
        total += (frame.shares * frame.known[:, None]).double() @ alike
        weight += frame.known[:, None].double() * alike.sum(0)
        if number == 0:
            prompted = total / weight.clamp(min=1e-9)
    expected = torch.where(weight > 0, total / weight.clamp(min=1e-9), 0)
    read = memory.read(keys)
    assert (read.shares - expected).abs().max() < memories.FAINT
    clear = expected > memories.FAINT
    assert clear.any()
    assert read.shares[clear] == pytest.approx(expected[clear], abs=1e-5)
    assert (read.prompted_shares[clear] - prompted[clear]).abs().max() < 1e-5
    of_equal_vectors = (weight * float(torch.tensor(-1 / memories.TEMPERATURE).exp()))[clear]
    assert read.weight[clear] == pytest.approx(of_equal_vectors, rel=1e-3)


def test_of_frames_with_prompts_each_objects_first_and_last_stay():
    memory = memories.Memory((1, 1))
    for index in range(40):
        prompted = (index % 2 == 0, index == 3)
        known = torch.tensor(prompted, dtype=torch.float32)
        keys, shares = torch.full((1, 1), float(index)), torch.zeros(2, 1)
        memory = memory.keep(memories.Remembered(keys, shares, known, prompted))
    assert [int(frame.keys) for frame in memory.prompted] == [0, 3, *range(26, 40, 2)]


def test_memory_keeps_the_last_frames_only():
    frame = memories.Remembered(torch.eye(4), torch.zeros(1, 4), torch.ones(1), (True,))
    memory = memories.Memory((2, 2))
    for _ in range(5):
        memory = memory.add(frame, 3)
    assert len(memory.recent) == 3
    assert len(memory.add(frame, 0).recent) == 0
    lost = memory.lose(0)
    assert list(lost.last_seen) == [0]
