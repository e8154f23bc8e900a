"""`mask_video` over made clips with a segmenter that sees right: both ways, merged, resumed."""

import gc
import subprocess
import sys
import threading
from contextlib import closing

import av
import numpy as np
import pandas as pd
import pytest

import masking
from masking.manifest.faults import ManifestError
from masking.tracking.masks import logit_of
from masking.tracking.prefetch import prefetch
from masking.tracking.snapshot import MaskingState
from masking.video.frame import VideoError
from tests.moving import SIZE, picture, segmenter


def film(path, clip):
    """Write a clip so that colours come back as they were, nearly."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv444p"
        stream.gop_size = 6
        for image, _ in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clip():
    return [picture({1: (30 + 2 * t, 40, 13), 2: (130 - 2 * t, 70, 13)}) for t in range(24)]


@pytest.fixture(scope="module")
def path(clip, tmp_path_factory):
    return film(tmp_path_factory.mktemp("film") / "clip.mp4", clip)


def row(frame, x, y, object_id=1, **more):
    return {"object_id": object_id, "frame": frame, "x": x, "y": y} | more


def right(clip, found, number=1, place=0, least=0.8):
    """On which frames an object is drawn where it is."""
    hits = []
    for (_, labels), frame in zip(clip, found, strict=True):
        truth, mask = labels == number, frame.masks[place]
        hits.append((truth & mask).sum() >= least * (truth | mask).sum())
    return hits


def test_from_the_first_frame(clip, path):
    found = list(masking.mask_video(path, [row(0, 30, 40), row(0, 130, 70, 2)], segmenter()))
    assert [frame.index for frame in found] == list(range(24))
    assert found[5].time_s == pytest.approx(0.5)
    assert all(right(clip, found, 1, 0))
    assert all(right(clip, found, 2, 1))
    assert found[0].states == ("prompted", "prompted")
    assert found[9].states == ("tracked", "tracked")
    assert {one.direction for frame in found[1:] for one in frame.found} == {"forward"}
    assert all(0.9 < score <= 1 for score in found[3].scores)


def test_from_the_middle_goes_both_ways(clip, path):
    found = list(masking.mask_video(path, pd.DataFrame([row(12, 54, 40)]), segmenter()))
    assert all(right(clip, found))
    assert [frame.found[0].direction for frame in found[11:14]] == ["backward", "prompt", "forward"]
    assert found[12].states == ("prompted",)
    assert found[0].states == ("tracked",)


def test_between_prompts_both_ways_are_merged(clip, path):
    found = list(masking.mask_video(path, [row(0, 30, 40), row(20, 70, 40)], segmenter()))
    assert all(right(clip, found))
    assert {frame.found[0].direction for frame in found[1:20]} == {"both"}
    assert {frame.found[0].direction for frame in found[21:]} == {"forward"}


def test_where_prompts_disagree_masks_are_uncertain(clip, path):
    """The second prompt is on the other object: the nearer one wins, as both are sure."""
    found = list(masking.mask_video(path, [row(0, 30, 40), row(20, 90, 70)], segmenter()))
    assert all(right(clip[:9], found[:9], 1))
    assert all(right(clip[12:], found[12:], 2))
    assert {frame.states for frame in found[4:18]} == {("uncertain",)}


def test_spans_ends_and_absence(clip, path):
    rows = [
        row(5, 40, 40, start_frame=3, end_frame=18),
        {"object_id": 1, "frame": 9, "role": "absent"},
        row(14, 58, 40),
        {"object_id": 1, "frame": 16, "role": "end"},
    ]
    found = list(masking.mask_video(path, rows, segmenter()))
    states = [frame.states[0] for frame in found]
    assert states[:3] == [None] * 3
    assert states[3:6] == ["tracked", "tracked", "prompted"]
    assert states[9:14] == ["absent"] * 5
    assert states[14:16] == ["prompted", "tracked"]
    assert states[16:] == [None] * 8
    assert not any(frame.masks.any() for frame in [*found[:3], *found[9:14], *found[16:]])


def test_prompts_without_a_place(clip, path):
    """Negative points correct the mask that is there, and it is tracked both ways from them; an
    accept changes no mask."""
    rows = [
        row(0, 30, 40),
        {"object_id": 1, "frame": 9, "role": "accept"},
        row(14, 100, 70, label=0, role="correct"),
    ]
    found = list(masking.mask_video(path, rows, segmenter()))
    assert all(right(clip, found))
    assert found[9].states == ("tracked",)
    assert found[14].states == ("prompted",)
    assert {frame.found[0].direction for frame in found[10:14]} == {"both"}
    rows[1:] = [{"object_id": 1, "frame": 5, "role": "absent"}, rows[1]]
    states = [frame.states[0] for frame in masking.mask_video(path, rows, segmenter())]
    assert states[5:] == ["absent"] * 19


def test_prefetching_keeps_the_order_and_raises_what_fails():
    def numbers(closed):
        try:
            yield from range(50)
            raise KeyError("at the end")
        finally:
            closed.append(threading.current_thread().name)

    def doubled(items):
        with closing(items):
            for number in items:
                yield 2 * number

    closed = []
    found = []
    with pytest.raises(KeyError, match="at the end"):
        found.extend(prefetch(numbers(closed), "inner"))
    nested = prefetch(doubled(prefetch(numbers(closed), "inner")), "outer")
    assert [next(nested) for _ in range(3)] == [0, 2, 4]
    nested.close()
    assert closed == ["inner", "inner"]


def test_a_run_that_is_left_frees_its_thread(path):
    next(masking.mask_video(path, [row(0, 30, 40)], segmenter()))  # starts what encodes for all
    before = set(threading.enumerate())
    assert "encode_0" in {thread.name for thread in before}
    run = masking.mask_video(path, [row(0, 30, 40)], segmenter())
    next(run)
    assert set(threading.enumerate()) - before
    gc.disable()  # reference counts are enough
    try:
        del run
        assert not set(threading.enumerate()) - before
    finally:
        gc.enable()


def test_the_garbage_collector_may_close_it_in_its_own_thread():
    """Then nobody waits for the thread that this is."""
    closing_it, done = threading.Event(), threading.Event()
    holder = []

    def items():
        yield 1
        closing_it.wait()
        holder.pop().close()
        done.set()
        yield 2

    def through(inner):
        with closing(inner):
            yield from inner

    outer = prefetch(through(prefetch(items(), "inner")), "outer")
    holder.append(outer)
    assert next(outer) == 1
    del outer
    closing_it.set()
    assert done.wait(10)


def test_a_single_negative_click_corrects_the_mask_that_is_there(path, clip):
    """Without a role, too: a prompt that does not locate the object starts from its mask."""
    rows = [row(0, 30, 40), row(14, 100, 70, label=0)]
    found = list(masking.mask_video(path, rows, segmenter()))
    assert all(right(clip, found))
    assert found[14].states == ("prompted",)
    assert "lost" not in {frame.states[0] for frame in found}


def test_an_object_is_not_tracked_after_its_last_frame(path):
    """Nor are its points negative points of others any more."""
    eyes = segmenter()
    rows = [row(0, 30, 40, end_frame=10), row(0, 130, 70, 2), row(14, 102, 70, 2)]
    found = list(masking.mask_video(path, rows, eyes))
    assert found[11].states[0] is None
    rows = [row(0, 30, 40, end_frame=10), row(14, 102, 70, 2, start_frame=14)]
    eyes = segmenter()
    found = [
        (frame.states, sum(eyes.network.calls)) for frame in masking.mask_video(path, rows, eyes)
    ]
    assert found[11][0] == (None, None)
    assert found[23][0] == (None, "tracked")
    asked = np.diff([calls for _, calls in found])
    assert asked[16:].max() < 2  # one object a frame


@pytest.mark.parametrize("stop", [1, 7, 13, 23])
def test_resumes_after_any_frame(path, tmp_path, stop):
    rows = [row(0, 30, 40), row(16, 98, 70, 2)]
    whole = list(masking.mask_video(path, rows, segmenter()))
    first = masking.mask_video(path, rows, segmenter())
    for _ in range(stop):
        next(first)
    first.state.save(tmp_path / "state")
    first.close()
    state = MaskingState.load(tmp_path / "state")
    rest = list(masking.mask_video(path, rows, segmenter(), state=state))
    assert [frame.index for frame in rest] == list(range(stop, 24))
    for a, b in zip(rest, whole[stop:], strict=True):
        assert np.array_equal(a.masks, b.masks)
        assert (a.states, a.scores) == (b.states, b.scores)


def test_label_map_gives_overlaps_to_the_surer_one(path):
    found = next(masking.mask_video(path, [row(0, 30, 40), row(0, 130, 70, 7)], segmenter()))
    labels = found.label_map()
    assert labels[40, 30] == 1
    assert labels[70, 130] == 7
    assert labels[0, 0] == 0
    found.logits[:] = np.array([3, 5])[:, None, None]
    found.found[0].mask[:] = True
    found.found[1].mask[:] = True
    assert (found.label_map() == 7).all()


def test_frames_of_another_size_get_masks_of_their_own(tmp_path):
    from PIL import Image

    for index in range(4):
        image = Image.fromarray(picture({1: (40 + index, 40, 14)})[0])
        image.resize((80, 48) if index == 2 else (160, 96)).save(tmp_path / f"{index}.png")
    found = list(masking.mask_video(tmp_path, [row(0, 40, 40)], segmenter()))
    assert [frame.masks.shape for frame in found] == [(1, 96, 160)] * 2 + [
        (1, 48, 80),
        (1, 96, 160),
    ]
    assert found[2].masks[0, 20, 21]
    assert 100 < found[2].masks.sum() < 200


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [row(0, 160, 40)],
            r"row 1: x, y is \(160, 40\); expected a place in the frame of 160 x 96",
        ),
        ([row(24, 30, 40)], "row 1: frame is 24; expected 0 to 23, the last frame"),
        ([row(0, 30, 40, label=0)], "object 1 is only negative points"),
        (
            [row(0, 30, 40), {"object_id": 1, "frame": 5, "role": "absent"}, row(9, 1, 1, label=0)],
            "row 3: label of object 1 is only negative on frame 9, without a mask to correct",
        ),
        (row(0, 30, 40), "the table is a dict; expected a list of rows"),
        ([(1, 0, 30, 40)], r"row 1: the row is \(1, 0, 30, 40\); expected values by name"),
        ([row(0, 159.999999, 40)], "row 1: x, y is"),
        ([row(0, 30, 40, x2=170, y2=60)], r"row 1: x2, y2 is \(170, 60\); expected a place in"),
    ],
)
def test_prompts_that_cannot_be_meant_are_refused_before_the_pass(path, rows, message):
    with pytest.raises(ManifestError, match=message):
        masking.mask_video(path, rows, segmenter())


def test_a_file_that_is_no_video(tmp_path):
    (tmp_path / "notes.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"notes\.mp4: not a video that can be opened"):
        masking.mask_video(tmp_path / "notes.mp4", [row(0, 1, 1)], segmenter())


def test_a_state_resumes_only_what_it_was_made_with(path, tmp_path):
    run = masking.mask_video(path, [row(0, 30, 40)], segmenter())
    next(run)
    state = run.state
    run.close()
    for rows in ([row(0, 31, 40)], [row(0, 30, 40), row(0, 130, 70, 2)]):
        with pytest.raises(ValueError, match="made with other prompts"):
            masking.mask_video(path, rows, segmenter(), state=state)
    for content in (b"", b"text", path.read_bytes()):
        (tmp_path / "state").write_bytes(content)
        with pytest.raises(ValueError, match="state is not the saved state of a masked video"):
            MaskingState.load(tmp_path / "state")


def test_the_former_place_of_the_segmenter_still_works():
    from masking import sam

    with pytest.warns(DeprecationWarning, match=r"import from masking\.segmenter\.sam"):
        assert sam.Prompts is masking.Prompts
    assert not hasattr(sam, "absent")


def test_what_the_readme_imports_is_there_without_more():
    code = "import masking; masking.MaskingState.load; masking.TrackConfig(); masking.mask_video"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_relative_name_with_a_colon(path, tmp_path, monkeypatch):
    (tmp_path / "10:30:00.mp4").write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    with masking.mask_video("10:30:00.mp4", [row(0, 30, 40)], segmenter()) as run:
        assert next(run).index == 0


def test_overlaps_before_a_later_prompt_go_to_the_surer_object(path):
    """Masks of the backward pass have kept no logits but their score."""
    found = next(masking.mask_video(path, [row(8, 46, 40), row(8, 114, 70, 2)], segmenter()))
    assert found.found[0].direction == "backward"
    assert (found.logits[found.masks] > 0).all()
    assert (found.logits[~found.masks] < 0).all()
    assert found.logits.max() == pytest.approx(logit_of(max(found.scores)), abs=0.01)


def test_a_state_of_nothing(path, tmp_path):
    run = masking.mask_video(path, [row(0, 30, 40)], segmenter())
    with pytest.raises(ValueError, match="no frame has been masked yet"):
        _ = run.state
    run.close()
