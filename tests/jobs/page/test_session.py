"""A session of `jobs.prompt`: tracks, rows in frames and pixels, files that change."""

import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from jobs.page.previews import Click
from jobs.page.session import Session
from jobs.page.store import Store
from jobs.page.tracking import TrackError, window
from jobs.page.videos import Clip
from jobs.storage.location import Location
from masking.images.masks import decode_rle
from masking.manifest.plans import resolve
from masking.manifest.rows import read_rows
from masking.tracking.masking import mask_video
from masking.video.frame import VideoError
from tests.jobs.page.rows import LENGTH, add, row
from tests.masking.tracking.test_masking import film
from tests.moving import SIZE, segmenter


def plans(*rows):
    times = [t / 10 for t in range(LENGTH)]
    return resolve(read_rows(rows), SIZE, times, True)


def test_what_is_tracked_from_a_frame_on():
    far = row(frame=20, object_id=2, x=90, y=70)
    some = plans(row(frame=2), row(frame=8, role="correct", label=0, x=1), far)
    found = window(some, 10, 5, LENGTH)
    assert (found.start, found.stop, [plan.object_id for plan in found.plans]) == (2, 15, [1])
    assert [*found.plans[0].prompts] == [2, 8]
    found = window(some, 18, 50, LENGTH)
    assert (found.start, found.stop) == (2, LENGTH)
    assert [plan.start for plan in found.plans] == [2, 18]  # the second one backward from 20
    with pytest.raises(TrackError, match="nothing to track"):
        window(plans(far), 3, 5, LENGTH)
    ended = plans(row(frame=2), {"object_id": 1, "frame": 5, "role": "end"})
    with pytest.raises(TrackError):
        window(ended, 8, 5, LENGTH)


def finish(session, video_id, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := session.tracked(video_id, 0))["done"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_a_track_is_what_mask_video_gives(session, videos):
    clicks = [
        {"object_id": 1, "frame": 3, "x": 36, "y": 40},
        {"object_id": 2, "frame": 9, "x": 112, "y": 70, "label": 1},
    ]
    with pytest.raises(TrackError, match="click on an object first"):
        session.track("a", 3, 5)
    session.change("a", session.rows("a")["revision"], clicks)
    session.track("a", 3, 12)
    found = finish(session, "a")
    assert (found["start"], found["stop"], found["error"]) == (3, 15, "")
    assert [one["frame"] for one in found["frames"]] == [*range(3, 15)]
    expected = [f for f in mask_video(videos / "a.mp4", clicks, segmenter()) if 3 <= f.index < 15]
    for one, frame in zip(found["frames"], expected, strict=True):
        for place, each in enumerate(one["objects"]):
            assert each["state"] == frame.states[place]
            assert np.array_equal(decode_rle(each["rle"], SIZE), frame.masks[place])
    assert session.tracked("a", 10)["frames"] == found["frames"][10:]


def test_a_track_can_be_cancelled_and_ends_when_nobody_looks(session, monkeypatch):
    session.change(
        "a", session.rows("a")["revision"], [{"object_id": 1, "frame": 0, "x": 30, "y": 40}]
    )
    session.track("a", 0, LENGTH)
    session.cancel("a")
    found = finish(session, "a")
    assert found["cancelled"]
    assert len(found["frames"]) < LENGTH
    monkeypatch.setattr("jobs.page.tracking.UNWATCHED", -1.0)
    session.track("a", 0, LENGTH)
    time.sleep(0.5)
    assert finish(session, "a")["cancelled"]


def test_rows_are_shown_in_frames_and_pixels_and_changed_in_them(session):
    text = {"uri": "a.mp4", "video_id": "a", "object_id": "1", "note": "dusk"}
    add(
        session.store,
        "a",
        {**text, "time_s": "0.55", "x": "0.5", "y": "0.25", "coords": "normalized"},
    )
    session.state("a")
    while not session.timestamps("a", 0)["complete"]:
        time.sleep(0.01)
    found = session.rows("a")
    assert found["rows"] == [
        {"row": 0, "object_id": 1, "object_name": "", "role": "init", "frame": 5, "until": None,
         "x": 80, "y": 24, "label": 1}
    ]  # fmt: skip
    found = session.change("a", found["revision"], [{"row": 0, "x": 7, "y": 8}])
    assert (found["rows"][0]["x"], found["rows"][0]["frame"]) == (7, 5)
    (kept,) = session.store.rows("a")
    assert (kept["note"], kept["coords"]) == ("dusk", None)
    for bad in ({"row": 5}, {"uri": "b.mp4"}, {"colour": 1}):
        with pytest.raises(ValueError, match=r"row 5 does not exist|expected columns of a click"):
            session.change("a", found["revision"], [bad])
    assert session.undo("a", found["revision"], False)["rows"][0]["x"] == 80


def test_a_video_that_goes_away_or_is_none_costs_the_others_nothing(
    session, videos, clip, tmp_path
):
    (tmp_path / "bad.mp4").write_text("no video")
    path = film(tmp_path / "gone.mp4", clip[:3])
    clips = [
        Clip(p.stem, p.name, Location.parse(p))
        for p in (tmp_path / "bad.mp4", path, videos / "a.mp4")
    ]
    more = Session(session.store, clips, segmenter(), None)
    with pytest.raises(VideoError, match="not a video"):
        more.state("bad")
    assert more.state("gone")["width"] == SIZE[1]
    path.unlink()
    with pytest.raises(VideoError, match="does not exist"):
        more.frame("gone", 2, "")
    assert more.state("a")["height"] == SIZE[0]
    assert len(more.videos()) == 3
    more.close()


def test_a_file_that_is_replaced_while_it_is_shown_is_said(clip, tmp_path):
    path = film(tmp_path / "c.mp4", clip[:6])
    store = Store(tmp_path / "m.csv")
    more = Session(store, [Clip("c", "c.mp4", Location.parse(path))], segmenter(), None)
    version = more.state("c")["version"]
    assert more.frame("c", 5, version)
    path.unlink()
    film(path, clip[:3])
    ways = [more.frame, more.encode_ahead, partial(more.preview, objects=[])]
    for ask_of in ways:
        with pytest.raises(VideoError, match="was replaced") as caught:
            ask_of("c", 0, version)
        assert caught.value.code == "changed"
    assert more.frame("c", 2, more.state("c")["version"])
    more.close()


def test_clicks_are_meant_in_the_first_frame_where_frames_change_size(tmp_path, monkeypatch):
    """A stream that is half as large later has clicks as `jobs.mask` takes them."""
    store, asked = Store(tmp_path / "m.csv"), []
    sizes = [(96, 160), (48, 80)]
    frames = [np.zeros((*size, 3), np.uint8) for size in sizes]
    shown = SimpleNamespace(size=sizes[0], get=lambda index: SimpleNamespace(image=frames[index]))
    more = Session(store, [Clip("c", "c.mp4", Location.parse(tmp_path))], segmenter(), None)
    monkeypatch.setattr(more, "_frames", lambda *which: shown)
    monkeypatch.setattr(more.previewer, "preview", lambda *given: asked.append(given[2]))
    clicks = [{"x": 140, "y": 90, "label": 1}, {"x": 20, "y": 10, "x2": 60, "y2": 30}]
    for index in (0, 1):
        more.preview("c", index, "1", [{"object_id": 1, "clicks": clicks}])
    assert asked[0] == [Click(140, 90), Click(20, 10, 1, (60, 30))]
    assert asked[1] == [Click(70, 45), Click(10, 5, 1, (30, 15))]
    more.close()
