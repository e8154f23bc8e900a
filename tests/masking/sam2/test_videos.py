"""`mask_video` with a network that has a memory of its own: small ones with random weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import masking
from masking.manifest.prompt import FramePrompt
from masking.sam2 import step
from masking.sam2.network import Decoded
from masking.segmenter.sam import Segmenter
from masking.tracking.by_video import SURE_IOU, VideoTracking
from masking.tracking.kinds import tracking_of
from tests.masking.sam2.tiny import tiny
from tests.masking.tracking.test_masking import film, row
from tests.moving import picture

FRAMES = 14
FAR = 40.0
"""What is added to the object score so that an object is always to be seen, or never."""


def make(kind="sam2_video", visible=FAR):
    network = tiny(kind)
    network.model.mask_decoder.pred_obj_score_head.proj_out.bias.data += visible
    return Segmenter(network, torch.device("cpu"), "float32")


@pytest.fixture(scope="module")
def segmenter():
    return make()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    clip = [picture({1: (30 + 2 * t, 40, 13), 2: (130 - 2 * t, 70, 13)}) for t in range(FRAMES)]
    return film(tmp_path_factory.mktemp("film") / "clip.mp4", clip)


CORRECTED = [
    row(4, 38, 40), row(9, 48, 40), row(9, 60, 60, label=0, role="correct"),
    row(6, 118, 70, 2), row(2, 60, 20, 3),
]  # fmt: skip
CORRECTED[1]["role"] = "correct"


def same(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.states == other.states
        assert one.scores == other.scores
        assert np.array_equal(one.logits, other.logits)
        assert np.array_equal(one.masks, other.masks)


@pytest.mark.parametrize("kind", ["sam2_video", "edgetam_video", "sam3_tracker_video"])
def test_a_video_that_was_stopped_resumes_bit_for_bit(kind, path, tmp_path):
    """With objects of several prompts, backward masks, and a correction."""
    segmenter = make(kind, visible=0.0)
    whole = list(masking.mask_video(path, CORRECTED, segmenter))
    assert [frame.index for frame in whole] == list(range(FRAMES))
    for stop in (1, 9) if kind == "sam2_video" else (5,):
        run = masking.mask_video(path, CORRECTED, segmenter)
        begun = [next(run) for _ in range(stop)]
        run.state.save(tmp_path / "state")
        run.close()
        state = masking.MaskingState.load(tmp_path / "state")
        same(whole, begun + list(masking.mask_video(path, CORRECTED, segmenter, state=state)))
    with pytest.raises(ValueError, match="another segmenter"):
        masking.mask_video(path, CORRECTED, make("sam2_video"), state=replace(state, made_of="x"))


def test_prompts_on_any_frame(segmenter, path):
    found = list(masking.mask_video(path, CORRECTED, segmenter))
    assert found[4].states[0] == found[9].states[0] == found[6].states[1] == "prompted"
    assert found[0].found[0].direction == "backward"
    assert found[6].found[0].direction in ("both", "forward", "backward")
    assert found[12].found[0].direction == "forward"
    assert all(state is not None for frame in found for state in frame.states)
    for frame, (x, y), label in ((4, (38, 40), True), (9, (48, 40), True), (9, (60, 60), False)):
        assert found[frame].masks[0, y, x] == label


def test_spans_ends_absence_and_accept(segmenter, path):
    rows = [
        row(2, 34, 40, start_frame=1, end_frame=11),
        {"object_id": 1, "frame": 3, "role": "accept"},
        {"object_id": 1, "frame": 5, "role": "absent"},
        row(8, 46, 40),
        {"object_id": 1, "frame": 10, "role": "end"},
    ]
    states = [frame.states[0] for frame in masking.mask_video(path, rows, segmenter)]
    seen = {"tracked", "uncertain"}
    assert states[0] is None
    assert {states[1], *states[3:5]} <= seen
    assert states[5:8] == ["absent"] * 3
    assert states[2] == states[8] == "prompted"
    assert states[9] in seen
    assert states[10:] == [None] * 4


def test_a_mask_of_nothing_is_empty_and_lost(path):
    found = list(masking.mask_video(path, [row(0, 30, 40)], make(visible=-FAR)))
    assert [frame.states for frame in found] == [("prompted",)] + [("lost",)] * (FRAMES - 1)
    assert found[0].masks[0, 40, 30]  # a click is obeyed, whatever the network says
    assert not any(frame.masks.any() for frame in found[1:])
    assert {frame.scores for frame in found[1:]} == {(0.0,)}


def test_a_mask_as_a_prompt_is_the_mask_of_its_frame(segmenter, path):
    truth = picture({1: (30, 40, 13)})[1] == 1
    tracking, image = tracking_of(segmenter), picture({1: (30, 40, 13)})[0]
    assert isinstance(tracking, VideoTracking)
    scene = tracking.scenes(tracking.prepare({0: image}))[0]
    prompt = FramePrompt(mask=truth)
    tracker, masks = tracking.advance(tracking.begin(1), scene, {0: prompt}, {})
    assert masks.states == ("prompted",)
    full = segmenter.upsample(masks.logits, truth.shape)[0] > 0
    assert (full.numpy() ^ truth).sum() < 0.05 * truth.sum() + 40
    assert tracking.knows_prompts(tracker)
    answer = tracking.answer(scene.embeddings, prompt)
    assert torch.equal(answer.logits.clamp(min=-8), masks.logits[0].clamp(min=-8))


def test_previews_are_what_a_video_has(segmenter, path):
    """On frames with a prompt of nothing else; a correction starts from the mask before."""
    found = next(
        iter(masking.mask_video(path, [row(0, 30, 40), row(0, 90, 20, label=0)], segmenter))
    )
    tracking = tracking_of(segmenter)
    embeddings = segmenter.encode(found.image[None])
    prompt = FramePrompt(np.array([[30, 40], [90, 20]], np.float32), np.array([1, 0]))
    answer = tracking.answer(embeddings, prompt)
    full = segmenter.upsample(answer.logits, found.image.shape[:2])
    assert np.array_equal(full.numpy() > 0, found.logits[0] > 0) or not found.masks[0, 20, 90]
    assert answer.predicted == pytest.approx(found.scores[0])
    negative = FramePrompt(np.array([[30, 40]], np.float32), np.array([0]))
    assert tracking.answer(embeddings, negative) is None
    assert tracking.answer(embeddings, negative, found.masks[0]) is not None


def test_states_follow_the_object_score_and_the_predicted_iou(segmenter, monkeypatch):
    tracking = tracking_of(segmenter)
    image = picture({1: (30, 40, 13)})[0]
    scene = tracking.scenes(tracking.prepare({0: image}))[0]
    high, low = SURE_IOU + 0.1, SURE_IOU - 0.1
    script = [(5, high), (5, high), (5, low), (-5, high), (5, high), (5, high), (5, high)]
    script += [(-5, high), (5, low), (-5, high), (5, high), (5, low), (5, high)]

    def scripted(network, memory, features, frame, tracked, prompts):
        visible, score = script.pop(0)
        logits = torch.full((1, *network.mask_size), 9.0 if visible > 0 else -1024.0)
        one = Decoded(logits, torch.tensor([score]), torch.tensor([float(visible)]), logits[:, 0])
        return memory, {0: 0}, one

    monkeypatch.setattr(step, "advance", scripted)
    tracker, states = tracking.begin(1), []
    for number in range(len(script)):
        click = FramePrompt(np.array([[3, 4]], np.float32), np.array([1]))
        prompts = {0: click} if number == 0 else {}
        tracker, masks = tracking.advance(tracker, scene, prompts, {})
        states += masks.states
        assert (masks.logits > 0).any() == (masks.states != ("lost",))
    assert states == [
        "prompted", "tracked", "uncertain", "lost", "uncertain", "recovered", "tracked",
        "lost", "uncertain", "lost", "uncertain", "uncertain", "tracked",
    ]  # fmt: skip
