"""`mask_video` with a network that has a memory of its own: small ones with random weights."""

import gc
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch

import masking
from masking.manifest.prompt import FramePrompt
from masking.manifest.shapes import text_of_mask
from masking.sam2 import step
from masking.sam2.network import Decoded
from masking.segmenter.sam import Segmenter
from masking.tracking.by_video import VideoTracking
from masking.tracking.kinds import tracking_of
from masking.tracking.trust import TRACKED
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


def stopped(path, rows, segmenter, stop, file):
    """Mask a video in two runs, the second from a saved state; return all frames and the state."""
    run = masking.mask_video(path, rows, segmenter)
    begun = [next(run) for _ in range(stop)]
    run.state.save(file)
    run.close()
    state = masking.MaskingState.load(file)
    return begun + list(masking.mask_video(path, rows, segmenter, state=state)), state


@pytest.mark.parametrize("kind", ["sam2_video", "edgetam_video", "sam3_tracker_video"])
def test_a_video_that_was_stopped_resumes_bit_for_bit(kind, path, tmp_path):
    """With objects of several prompts, backward masks, and a correction."""
    segmenter = make(kind, visible=0.0)
    whole = list(masking.mask_video(path, CORRECTED, segmenter))
    assert [frame.index for frame in whole] == list(range(FRAMES))
    for stop in (1, 9) if kind == "sam2_video" else (5,):
        found, state = stopped(path, CORRECTED, segmenter, stop, tmp_path / "state")
        same(whole, found)
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


def test_boxes_masks_and_polygons_on_later_frames(segmenter, path, tmp_path):
    """Each is obeyed on its frame, and carried both ways; stopping anywhere changes nothing."""
    shown = {t: picture({2: (130 - 2 * t, 70, 13)})[1] == 2 for t in (0, 8)}
    rows = [
        row(5, 27, 27, x2=53, y2=53),
        row(10, 50, 40, label=0, role="correct"),
        {"object_id": 2, "frame": 0, "mask": text_of_mask(shown[0])},
        {"object_id": 2, "frame": 8, "mask": text_of_mask(shown[8]), "role": "correct"},
        {"object_id": 3, "frame": 6, "polygon": "20,70 40,70 40,90 20,90"},
    ]
    whole = list(masking.mask_video(path, rows, segmenter))
    for frame, place in ((5, 0), (10, 0), (0, 1), (8, 1), (6, 2)):
        assert whole[frame].states[place] == "prompted"
    assert not whole[10].masks[0, 40, 50]
    for frame, mask in shown.items():
        assert np.array_equal(whole[frame].masks[1], mask)
        assert whole[frame].scores[1] == 1
    corners = np.zeros(shown[0].shape, bool)
    corners[70:90, 20:40] = True
    assert np.array_equal(whole[6].masks[2], corners)
    sources = [[one.direction for one in frame.found] for frame in whole]
    assert [sources[3][0], sources[13][0], sources[2][2], sources[9][2]] == [
        "backward", "forward", "backward", "forward",
    ]  # fmt: skip
    for stop in (4, 7):
        same(whole, stopped(path, rows, segmenter, stop, tmp_path / "state")[0])


@pytest.mark.parametrize("objects", [1, 8])
def test_what_a_video_holds_does_not_grow(segmenter, tmp_path, objects):
    """Neither its state nor the tensors of the process; frames that wait are a few at most."""
    clip = [picture({1: (30 + 2 * t, 40, 13)}) for t in range(44)]
    clip = film(tmp_path / "clip.mp4", clip)
    rows = [row(0, 15 + 16 * i, 40, i + 1) for i in range(objects)]
    sizes, alive = [], []
    run = masking.mask_video(clip, rows, segmenter)
    for frame in run:
        if frame.index in (12, 36):  # some frames wait at both
            sizes.append(size_of(tensors_of(run.state)))
            alive.append(size_of(x for x in gc.get_objects() if type(x) is torch.Tensor))
    assert sizes[0] == sizes[1]
    config = segmenter.network.config
    tokens = 64 * 64 * 2  # of a frame: 8 x 8 cells of 64 channels in bfloat16
    pointers = 4 * 128 * config.max_object_pointers_in_encoder
    assert sizes[0] <= objects * (config.num_maskmem * tokens + pointers)
    encoded = segmenter.encode(picture({})[0][None])
    assert alive[1] <= alive[0] + 8 * size_of(encoded.features)


def tensors_of(value):
    """Return all tensors in a value."""
    if isinstance(value, torch.Tensor):
        return [value]
    if is_dataclass(value):
        value = [getattr(value, item.name) for item in fields(value)]
    elif isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for item in value for tensor in tensors_of(item)]


def size_of(tensors):
    """Return the bytes of tensors, each storage once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


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
    high, low = TRACKED + 0.1, TRACKED - 0.1
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
