"""Our loop against the sessions of `transformers`, with random weights and in float32."""

import sys

import pytest
import torch

from masking.sam2 import network as sam2_network
from masking.sam2 import step
from masking.sam2.memory import VideoMemory
from masking.sam2.step import ObjectPrompt, advance
from tests.masking.sam2.reference import Reference
from tests.masking.sam2.tiny import KINDS, tiny

FRAMES = 24
NO_BOX = torch.full((4,), float("nan"))


@pytest.fixture(scope="module", params=KINDS)
def network(request):
    return tiny(request.param)


class Unrounded:
    """torch, but bfloat16 is float32."""

    bfloat16 = torch.float32

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def unrounded(network, monkeypatch):
    """Keep memories in float32 on both sides: rounded ones may differ in their last bit, and random
    weights make much of it."""
    monkeypatch.setattr(sys.modules[type(network.model).__module__], "torch", Unrounded())
    monkeypatch.setattr(sam2_network, "torch", Unrounded())


@pytest.fixture(scope="module")
def images(network):
    """Noise that is smooth and changes from frame to frame, in [0, 255]."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(FRAMES, 3, 9, 9, generator=generator)
    coarse = coarse + torch.rand(1, 3, 9, 9, generator=generator)
    side = (network.side, network.side)
    return 127 * torch.nn.functional.interpolate(coarse, side, mode="bicubic").clamp(0, 2)


@pytest.fixture(scope="module")
def features(network, images):
    with torch.no_grad():
        found = network.encode(images)
    return [tuple(part[i : i + 1] for part in found) for i in range(FRAMES)]


def points(*places):
    return torch.tensor(places, dtype=torch.float32)


def labels(*values):
    return torch.tensor(values)


ONE = ObjectPrompt(points((40, 50)), labels(1), NO_BOX)
SEVERAL = ObjectPrompt(
    points((28, 28), (29, 29), (60, 90), (100, 20)),  # the first two are in one cell
    labels(1, 0, 1, 0),
    NO_BOX,
)
BOX = ObjectPrompt(points((50, 50)), labels(1), torch.tensor([20.0, 25.0, 90.0, 80.0]))
LATE = ObjectPrompt(points((80, 70)), labels(1), NO_BOX)
FIX = ObjectPrompt(points((64, 20), (20, 64)), labels(1, 0), NO_BOX, corrects=True)
LATER, FIXED = 7, 12


@torch.no_grad()
def ours(network, features, prompts, order=range(FRAMES), memory=None, count=None):
    """Return by frame what we say of each object."""
    count = count or 1 + max(row for frame in prompts.values() for row in frame)
    memory = memory or VideoMemory.nothing(count)
    found = {}
    for frame in order:
        memory, rows, masks = advance(
            network, memory, features[frame], frame, range(count), prompts.get(frame, {})
        )
        found[frame] = {row: (masks[[place]]) for row, place in rows.items()}
    return found, memory


def same(mine, theirs):
    """Whether masks, predicted IoU and object score are equal to 1e-4."""
    torch.testing.assert_close(mine.logits[0], theirs.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(float(mine.visible[0]), theirs.visible, atol=1e-4, rtol=1e-4)
    if theirs.score == theirs.score:
        torch.testing.assert_close(float(mine.scores[0]), theirs.score, atol=1e-4, rtol=1e-4)


def rounds(reference, frame, prompt, network, start=None):
    """Give the clicks of a prompt one after another, as our loop says that it does."""
    has_box = not prompt.box.isnan().any()
    corners = (prompt.box.view(2, 2), labels(2, 3)) if has_box else (points(), labels())
    wrong = [] if start is None else step.disobeyed(network, prompt, start)
    given = [*wrong, 0][:1] if start is not None else [] if has_box else [0]
    first, mask = start is None, start
    while True:
        shown = reference.press(
            frame, torch.cat([corners[0].reshape(-1, 2), prompt.points[given]]),
            torch.cat([corners[1].long(), prompt.labels[given]]), mask, first,
        )  # fmt: skip
        mask = shown.logits
        wrong = [i for i in step.disobeyed(network, prompt, mask) if i not in given]
        if not wrong:
            return shown, len(given)
        given.append(wrong[0])


def test_objects_of_all_kinds_together_equal_sessions_of_their_own(
    network, images, features, unrounded
):
    """One click, clicks one after another, a box with a click, an object that comes later, and a
    correction on a later frame: five objects in one run, each as a session has it alone."""
    prompts = {0: {0: ONE, 1: SEVERAL, 2: BOX, 4: ONE}, LATER: {3: LATE}, FIXED: {4: FIX}}
    found, _ = ours(network, features, prompts)
    hidden = 0
    for row in range(5):
        reference, given = Reference(network, images), 0
        for frame in range(FRAMES):
            prompt = prompts.get(frame, {}).get(row)
            if frame < LATER and row == 3:
                assert 3 not in found[frame]
                continue
            if prompt is None:
                shown = reference.track(frame)
            else:
                start = reference.track(frame).logits if prompt.corrects else None
                shown, given = rounds(reference, frame, prompt, network, start)
            same(found[frame][row], shown)
            hidden += shown.visible <= 0
        assert row != 1 or given > 1
    assert 0 < hidden < 5 * FRAMES - LATER


def test_two_objects_clicked_at_once_equal_one_session_forward_and_backward(
    network, images, features, unrounded, monkeypatch
):
    """All clicks in one round, as a session takes them by itself; then to the frames before."""
    monkeypatch.setattr(step, "opening", lambda _, prompt, start: [*range(len(prompt.labels))])
    monkeypatch.setattr(step, "disobeyed", lambda network, prompt, logits: [])
    first, count = 10, 2
    prompts = {first: {0: ONE, 1: SEVERAL}}
    found, memory = ours(network, features, prompts, range(first, FRAMES))
    back = VideoMemory(memory.of_prompts(backward=True).objects, backward=True)
    before, _ = ours(network, features, {}, range(first - 1, -1, -1), back, count)
    assert not set(found) & set(before)
    for row, prompt in enumerate((ONE, SEVERAL)):
        reference = Reference(network, images)
        same(found[first][row], reference.click(first, prompt.points, prompt.labels))
        for frame in range(first + 1, FRAMES):
            same(found[frame][row], reference.track(frame))
        # A session would attend to the frames that it has tracked forward, too.
        reference.session.output_dict_per_obj[0]["non_cond_frame_outputs"].clear()
        for frame in range(first - 1, -1, -1):
            same(before[frame][row], reference.track(frame, reverse=True))


def disc(network, x, y, radius):
    """A mask on the canvas whose edge fits no cell, in two parts."""
    rows, columns = torch.meshgrid(*[torch.arange(network.side)] * 2, indexing="ij")
    mask = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    mask[3:6, 101:104] = True
    return mask.float()


def test_masks_that_a_person_gave_equal_sessions(network, images, features, unrounded):
    """On the first frame, on a later one beside it, and as a correction; then a click corrects."""
    given = {
        0: {0: disc(network, 41, 50, 23)},
        LATER: {1: disc(network, 77, 31, 9)},
        FIXED: {0: disc(network, 60, 60, 15)},
    }
    prompts = {
        frame: {
            row: ObjectPrompt(points(), labels().long(), NO_BOX, frame == FIXED, mask)
            for row, mask in masks.items()
        }
        for frame, masks in given.items()
    }
    prompts[FIXED + 4] = {0: FIX}
    found, _ = ours(network, features, prompts)
    for row in range(2):
        reference = Reference(network, images)
        for frame in range(LATER * row, FRAMES):
            if (mask := given.get(frame, {}).get(row)) is not None:
                theirs = reference.show(frame, mask)
                assert theirs.visible == 10
            elif row == 0 and frame == FIXED + 4:
                theirs, _ = rounds(reference, frame, FIX, network, reference.track(frame).logits)
            else:
                theirs = reference.track(frame)
            same(found[frame][row], theirs)


def test_memory_rounded_as_sam2_keeps_it_stays_near_a_session(network, images, features):
    found, memory = ours(network, features, {0: {0: ONE}}, range(8))
    reference = Reference(network, images)
    reference.click(0, ONE.points, ONE.labels)
    for frame in range(1, 8):
        shown = reference.track(frame)
        assert float((found[frame][0].logits[0] - shown.logits).abs().mean()) < 1e-2
    kept = memory.objects[0].recent[7].tokens.dtype
    assert kept == (torch.float32 if network.kind == "edgetam_video" else torch.bfloat16)


def test_what_is_remembered_is_bounded(network, features):
    """After 24 frames as much as after 13, and of many prompts the first and the latest."""
    config = network.config
    _, half = ours(network, features, {0: {0: ONE}}, range(13))
    _, all_ = ours(network, features, {0: {0: ONE}})
    sizes = [[one.tokens is not None for one in m.objects[0].recent.values()] for m in (half, all_)]
    assert sizes[0] == sizes[1]
    assert sum(sizes[1]) == config.num_maskmem - 1
    assert len(sizes[1]) == config.max_object_pointers_in_encoder - 1
    _, often = ours(network, features, {frame: {0: ONE} for frame in range(12)}, range(12))
    with_tokens = [i for i, one in often.objects[0].prompted.items() if one.tokens is not None]
    assert with_tokens == [0, *range(5, 12)]
    assert len(often.objects[0].prompted) == 12
