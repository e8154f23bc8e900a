"""jobs.prompt without a browser: the manifest on disk, frames, masks, review, requests."""

import http.client
import json
import os
import random
import shlex
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import mask, prompt
from jobs.masks import batch
from jobs.masks import plan as mask_plan
from jobs.masks.folder import masked_videos, part_place, read_markers
from jobs.page import videos as prompt_videos
from jobs.page.frames import Frames, VideoScan
from jobs.page.previews import Click, Previewer
from jobs.page.review import MaskRun
from jobs.page.server import Server
from jobs.page.session import Session
from jobs.page.store import StaleError, Store
from jobs.page.tracking import TrackError, window
from jobs.page.videos import Clip
from jobs.run.config import ConfigError, parse
from jobs.storage.location import Location, StorageError
from masking.images.masks import decode_rle
from masking.manifest.faults import ManifestError
from masking.manifest.plans import resolve
from masking.manifest.rows import read_rows
from masking.segmenter.sam import PromptError
from masking.tracking.masking import mask_video
from masking.video.frame import VideoError
from masking.video.reader import Video
from tests.conftest import ROOT
from tests.masking.tracking.test_masking import film
from tests.moving import SIZE, picture, segmenter

LENGTH = 24


@pytest.fixture(scope="module")
def clip():
    return [picture({1: (30 + 2 * t, 40, 13), 2: (130 - 2 * t, 70, 13)}) for t in range(LENGTH)]


@pytest.fixture(scope="module")
def videos(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    film(folder / "a.mp4", clip)
    film(folder / "b.mp4", clip[:9])
    return folder


def row(**more):
    return {"uri": "a.mp4", "object_id": 1, "frame": 0, "x": 30, "y": 40, "label": 1} | more


def add(store, video_id, *rows):
    store.replace(video_id, store.revision(video_id), [*store.rows(video_id), *rows])


# The manifest


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_what_is_added_is_on_disk_and_columns_that_are_not_known_survive(tmp_path, ending):
    path = tmp_path / f"m.{ending}"
    when = pd.Timestamp("2026-01-02 03:04:05")
    table = pd.DataFrame([row(camera="north", when=when, weight=7), row(uri="b.mp4", weight=8)])
    if ending == "csv":
        table.to_csv(path, index=False)
    elif ending == "jsonl":
        table.to_json(path, orient="records", lines=True, date_format="iso")
    else:
        table.to_parquet(path)
    store = Store(path)
    add(store, "a", row(x=50, y=9, role="correct"))
    store.close()
    again = Store(path)
    first, second = again.rows("a")
    assert first["camera"] == "north"
    assert str(first["when"])[:10] == "2026-01-02"
    assert str(first["weight"]) == "7"
    assert second.get("camera") is None
    assert second["role"] == "correct"
    assert [str(one["weight"]) for one in again.rows("b")] == ["8"]
    if ending == "parquet":
        assert pd.read_parquet(path)["when"].tolist()[0] == when
    table = again.table()
    assert table["x"].tolist() == [30, 50, 30]
    again.close()


def test_a_change_of_rows_that_changed_meanwhile_is_refused(tmp_path):
    store = Store(tmp_path / "m.csv", [row(), row(uri="b.mp4")])
    old = store.revision("a"), store.revision("b")
    add(store, "a", row(x=1))
    with pytest.raises(StaleError, match="another tab"):
        store.replace("a", old[0], [row(x=2)])
    store.replace("b", old[1], [])  # of another video: nothing to do with it
    assert [one["x"] for one in store.rows("a")] == [30, 1]
    assert store.rows("b") == []


def test_a_manifest_that_another_program_wrote_is_read_anew(tmp_path):
    store = Store(tmp_path / "m.csv", [row()])
    revision = store.revision("a")
    (tmp_path / "m.csv").write_text("uri,object_id,frame,x,y\na.mp4,1,5,6,7\n")
    with pytest.raises(StaleError, match="another program"):
        store.replace("a", revision, [row(), row(x=9)])
    assert [one["frame"] for one in store.rows("a")] == ["5"]
    add(store, "a", row(x=8))
    assert (tmp_path / "m.csv").read_text().splitlines()[1].startswith("a.mp4,1,5,6,7")


def test_undo_and_redo_survive_a_restart(tmp_path):
    store = Store(tmp_path / "m.csv")
    for x in range(3):
        add(store, "a", row(x=x))
    store.undo("a", store.revision("a"))
    store.close()
    again = Store(tmp_path / "m.csv")

    def places():
        return [int(one["x"]) for one in again.rows("a")]

    assert (places(), again.undo_counts("a")) == ([0, 1], (2, 1))
    again.undo("a", again.revision("a"))
    assert places() == [0]
    again.undo("a", again.revision("a"), redo=True)
    again.undo("a", again.revision("a"), redo=True)
    assert places() == [0, 1, 2]
    again.undo("a", again.revision("a"))
    add(again, "a", row(x=7))
    assert (places(), again.undo_counts("a")) == ([0, 1, 7], (3, 0))
    for _ in range(5):
        again.undo("a", again.revision("a"))
    assert (places(), again.undo_counts("a")) == ([], (0, 3))


def test_undo_after_a_restart_gives_back_what_json_does_not_know(tmp_path):
    path, when = tmp_path / "m.parquet", pd.Timestamp("2026-01-02 03:04:05.000006")
    pd.DataFrame([row(when=when, blob=b"\x00\xff")]).to_parquet(path)
    before = pq.read_table(path)
    store = Store(path)
    store.replace("a", store.revision("a"), [row(x=1)])
    store.close()
    again = Store(path)
    again.undo("a", again.revision("a"))
    after = pq.read_table(path).select(before.column_names)
    assert after.cast(before.schema).to_pylist() == before.to_pylist()
    assert after.schema.field("when").type == pa.timestamp("us")


def test_a_journal_that_is_ahead_is_made_up_for(tmp_path):
    """Killed after the journal was written, before the manifest was."""
    path = tmp_path / "m.csv"
    store = Store(path)
    add(store, "a", row(x=1))
    before = path.read_bytes()
    add(store, "a", row(x=2))
    after = path.read_bytes()
    store.close()
    path.write_bytes(before)
    again = Store(path)
    assert path.read_bytes() == after
    assert again.undo_counts("a") == (2, 0)
    again.close()
    with path.with_name("m.csv.journal").open("ab") as journal:
        journal.write(b'{"kind": "edit", "video')  # and killed while it was written
    torn = Store(path)
    add(torn, "a", row(x=3))
    torn.close()
    assert len(Store(path).rows("a")) == 3


def test_a_journal_of_another_manifest_is_left_alone(tmp_path):
    store = Store(tmp_path / "m.csv")
    add(store, "a", row(x=1))
    store.close()
    (tmp_path / "m.csv").write_text("uri,object_id,frame,x,y\na.mp4,1,5,6,7\n")
    assert Store(tmp_path / "m.csv").undo_counts("a") == (0, 0)


def test_a_disk_that_refuses_leaves_all_as_it_was(tmp_path, monkeypatch):
    store = Store(tmp_path / "m.csv", [row()])
    before = store.revision("a")

    def full(self, data):
        raise StorageError("no space left")

    monkeypatch.setattr(Location, "write_bytes", full)
    with pytest.raises(StorageError, match="nothing was changed"):
        add(store, "a", row(x=1))
    assert store.revision("a") == before
    assert store.undo_counts("a") == (0, 0)
    monkeypatch.undo()
    store.close()
    assert len(Store(tmp_path / "m.csv").rows("a")) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the size of files")
def test_a_disk_that_fills_within_a_line_of_the_journal_brings_nothing_back_later(tmp_path):
    """What was refused is in no manifest, and what was taken before can still be undone."""
    code = """
import resource, sys
from pathlib import Path
from jobs.page.store import Store
from jobs.storage.location import StorageError

path = Path(sys.argv[1])
store = Store(path)

def click(x):
    row = {"uri": "a.mp4", "object_id": 1, "frame": 0, "x": x, "y": 40, "label": 1}
    store.replace("a", store.revision("a"), [*store.rows("a"), row])

for x in (1, 2, 3):
    click(x)
size = path.with_name("m.csv.journal").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, resource.RLIM_INFINITY))
try:
    click(777)
except StorageError as error:
    assert "nothing was changed" in str(error), error
else:
    raise AssertionError("the disk took it")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
click(4)
store.close()
"""
    path = tmp_path / "m.csv"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT)
    store = Store(path)
    assert [record["x"] for record in store.rows("a")] == ["1", "2", "3", "4"]
    assert store.undo_counts("a") == (4, 0)


def test_one_process_at_a_time(tmp_path):
    store = Store(tmp_path / "m.csv")
    with pytest.raises(StorageError, match=r"m\.csv is open in another jobs\.prompt"):
        Store(tmp_path / "m.csv")
    store.close()
    Store(tmp_path / "m.csv").close()


def test_faults_are_all_listed_but_what_is_only_not_ready_is_none(tmp_path):
    text = "uri,object_id,frame,x,y,label\na.mp4,0,0,3,4,1\na.mp4,1,-2,3,4,1\n,1,0,3,4,1\n"
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ManifestError) as caught:
        Store(tmp_path / "m.csv")
    assert [fault.row for fault in caught.value.faults] == [3, 1, 2]
    (tmp_path / "n.csv").write_text("uri,object_id,frame,x,y,label\na.mp4,1,0,3,4,0\n")
    store = Store(tmp_path / "n.csv")
    with pytest.raises(ManifestError, match="x is -4"):
        add(store, "a", row(x=-4))


# Which videos


def test_videos_of_a_folder_have_ids_and_uris_that_lead_to_them(videos, tmp_path):
    (tmp_path / "in" / "more").mkdir(parents=True)
    for name in ("in/clip.mp4", "in/clip.mov", "in/more/c.mkv", "in/notes.txt", "in/.hidden.mp4"):
        (tmp_path / name).touch()
    for number in range(2):
        (tmp_path / "in" / "stills.v1").mkdir(exist_ok=True)
        (tmp_path / "in" / "stills.v1" / f"{number}.png").touch()
    found = prompt_videos.find(str(tmp_path / "in"), tmp_path / "m.csv", None).clips
    assert [(one.video_id, one.uri) for one in found] == [
        ("clip.mov", "in/clip.mov"),
        ("clip.mp4", "in/clip.mp4"),
        ("more/c", "in/more/c.mkv"),
        ("stills.v1", "in/stills.v1"),
    ]
    (alone,) = prompt_videos.find(str(videos / "a.mp4"), tmp_path / "m.csv", None).clips
    assert (alone.video_id, alone.uri) == ("a", str(videos / "a.mp4"))


@pytest.mark.parametrize("name", ["あ" * 83, "a\\b"], ids=["long", "backslash"])
def test_a_name_that_is_no_id_gets_one_that_the_manifest_can_be_read_by(tmp_path, name):
    (tmp_path / f"{name}.mp4").touch()
    (clip,) = prompt_videos.find(str(tmp_path), tmp_path / "m.csv", None).clips
    assert clip.uri == f"{name}.mp4"
    store = Store(tmp_path / "m.csv")
    add(store, clip.video_id, row(uri=clip.uri, video_id=clip.video_id))
    store.close()
    assert [*Store(tmp_path / "m.csv").videos] == [clip.video_id]
    (again,) = prompt_videos.find(str(tmp_path / "m.csv"), tmp_path / "m.csv", None).clips
    assert again == clip


@pytest.mark.parametrize("name", ["", "gone"])
def test_nothing_to_click_on_is_said(tmp_path, name):
    with pytest.raises(ConfigError, match=r"holds no video|does not exist"):
        prompt_videos.find(str(tmp_path / name), tmp_path / "m.csv", None)


def test_a_manifest_that_moves_keeps_its_videos_and_their_ids(videos, tmp_path):
    (tmp_path / "m.csv").write_text("uri,object_id,frame,x,y\nsub/a.mp4,1,0,3,4\n")
    (tmp_path / "out").mkdir()
    source = prompt_videos.find(str(tmp_path / "m.csv"), tmp_path / "out" / "n.csv", None)
    assert source.rows[0]["video_id"] == "sub/a"
    assert source.rows[0]["uri"] == str(tmp_path / "sub" / "a.mp4")
    same = prompt_videos.find(str(tmp_path / "m.csv"), tmp_path / "n.csv", None)
    assert same.rows[0] == {"uri": "sub/a.mp4", "object_id": "1", "frame": "0", "x": "3", "y": "4"}
    with pytest.raises(ManifestError, match="another id for"):
        prompt_videos.join_clips(same.clips, [Clip("sub/a", "x", Location.parse("/x"))])


# Frames


def test_any_frame_is_the_one_that_jobs_mask_sees(videos):
    with Video.open(videos / "a.mp4") as video:
        expected = {frame.index: frame for frame in video}
    frames = Frames(VideoScan(videos / "a.mp4"))
    order = [
        *range(LENGTH),
        *reversed(range(LENGTH)),
        *random.Random(0).choices(range(LENGTH), k=60),
    ]
    for index in order:
        found = frames.get(index)
        assert (found.index, found.pts, found.time_s) == (
            index, expected[index].pts, expected[index].time_s,
        )  # fmt: skip
        assert np.array_equal(found.image, expected[index].image)
    with pytest.raises(VideoError, match="has no frame 24"):
        frames.get(24)


ODD = (
    "rotate_90.mov", "gif_uneven_delays.gif", "h264_10bit.mp4", "edit_list_discard_half.mp4",
    "corrupt_one_packet.mp4", "neg_ctts_bframes.mp4", "packed_bframes.avi", "no_duration.webm",
    "no_initial_keyframe.ts", "mpeg2_nokey_interlaced.mpg", "fragmented.mp4",
)  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_any_frame_of_odd_files_too(name, vision_data):
    path = vision_data / "videos" / name
    with Video.open(path) as video:
        expected = {frame.index: frame.image for _, frame in zip(range(60), video, strict=False)}
    frames = Frames(VideoScan(path))
    for index in random.Random(1).choices(range(len(expected)), k=25):
        assert np.array_equal(frames.get(index).image, expected[index])


@pytest.fixture
def vision_data():
    folder = Path(os.environ.get("VISION_DATA", "absent"))
    if not (folder / "videos").is_dir():
        pytest.skip("VISION_DATA/videos is absent")
    return folder


def test_a_file_that_is_replaced_is_not_mixed_up(clip, videos, tmp_path):
    path = film(tmp_path / "c.mp4", clip[:4])
    frames = Frames(VideoScan(path))
    frames.get(3)
    path.unlink()
    assert frames.get(3).index == 3  # as it was seen
    with pytest.raises(VideoError, match="was replaced or deleted since it was opened"):
        frames.get(1)


# Previews


def test_a_click_goes_on_from_the_logits_of_those_before(clip):
    asked = []
    seeing = segmenter()
    plain = seeing.network.decode

    def decode(features, frames, points, labels, boxes, mask_input):
        asked.append((points.tolist(), None if mask_input is None else mask_input.clone()))
        return plain(features, frames, points, labels, boxes, mask_input)

    seeing.network.decode = decode
    previewer = Previewer(seeing)
    key, clicks = ("a", "1", 0), [Click(30, 40), Click(33, 44), Click(90, 10, 0)]
    image, labels = clip[0]

    def preview(*given, before=None):
        return previewer.preview(key, lambda key: image, given, before)

    for count in (1, 2, 3):
        found = preview(*clicks[:count])
        assert found.score == pytest.approx(0.95)
        truth = labels == 1
        assert (found.mask & truth).sum() / (found.mask | truth).sum() > 0.8
    assert [len(points[0]) for points, _ in asked] == [1, 2, 3]
    assert asked[0][1] is None
    assert asked[1][1].max() > 0
    preview(*clicks)
    preview(clicks[0])
    assert len(asked) == 3  # known
    assert preview(Click(90, 10, 0)) is None  # says nothing of where it is
    preview(Click(30, 40), before=labels == 1)
    assert asked[-1][1].max() == pytest.approx(6, abs=0.1)  # the mask that is corrected
    box = preview(Click(17, 27, 1, (44, 54)))
    assert box.mask[40, 30]
    with pytest.raises(PromptError, match="not in the frame"):
        preview(Click(300, 1))


def test_frames_ahead_are_encoded_once_and_others_given_up(clip):
    seeing, gate, encoded = segmenter(), threading.Event(), []
    plain = seeing.encode

    def encode(images):
        gate.wait(10)
        encoded.append(1)
        return plain(images)

    seeing.encode = encode
    previewer = Previewer(seeing)

    def image(key):
        return clip[key[2]][0]

    previewer.encode_ahead([("a", "1", number) for number in (0, 1, 2)], image)
    time.sleep(0.1)  # the first is begun
    previewer.encode_ahead([("a", "1", number) for number in (5, 0)], image)
    gate.set()
    assert previewer.preview(("a", "1", 5), image, [Click(40, 40)]) is not None
    assert previewer.preview(("a", "1", 0), image, [Click(30, 40)]) is not None
    assert len(encoded) == 2


def test_previews_of_one_frame_do_not_cancel_each_other(clip):
    """Objects of a frame are asked for at once, while the frame before it is being encoded."""
    seeing, begun, gate = segmenter(), threading.Event(), threading.Event()
    plain = seeing.encode

    def encode(images):
        begun.set()
        gate.wait(10)
        return plain(images)

    seeing.encode = encode
    previewer = Previewer(seeing)

    def ask(frame):
        return previewer.preview(("a", "1", frame), lambda key: clip[key[2]][0], [Click(40, 40)])

    with ThreadPoolExecutor(4) as threads:
        before = threads.submit(ask, 0)
        assert begun.wait(10)
        asked = [threads.submit(ask, 5) for _ in range(3)]
        time.sleep(0.2)
        gate.set()
        assert all(one.result(10) is not None for one in (before, *asked))
    previewer.close()


def test_the_frame_that_is_asked_for_last_is_encoded_next(clip):
    seeing, gate, encoded = segmenter(), threading.Event(), []
    plain = seeing.encode

    def encode(images):
        gate.wait(10)
        return plain(images)

    seeing.encode = encode
    previewer = Previewer(seeing)

    def image(key):
        encoded.append(key[2])
        return clip[key[2]][0]

    with ThreadPoolExecutor(4) as threads:
        for frame in (0, 3, 4, 5):
            threads.submit(previewer.preview, ("a", "1", frame), image, [Click(40, 40)])
            time.sleep(0.1)
        gate.set()
    assert encoded == [0, 5, 4, 3]
    previewer.close()


# Tracks


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


@pytest.fixture
def session(videos, tmp_path):
    store = Store(tmp_path / "m.csv")
    source = prompt_videos.find(str(videos), tmp_path / "m.csv", None)
    found = Session(store, source.clips, segmenter(), None)
    yield found
    found.close()


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


# What the page asks for


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
    """Of a stream that is half as large later: as `jobs.mask` takes them."""
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


# Review


@pytest.fixture(scope="module")
def masked(videos, tmp_path_factory):
    """A run of jobs.mask over both videos, with a doubtful span in each."""
    folder = tmp_path_factory.mktemp("run")
    manifest = folder / "clicks.csv"
    lines = [f"{videos / name}.mp4,{name},1,0,30,40,1" for name in "ab"]
    manifest.write_text("\n".join(["uri,video_id,object_id,frame,x,y,label", *lines]) + "\n")
    out = Location.parse(folder / "masks")
    config = mask.MaskConfig(out=str(out), manifest=(str(manifest),), precision="float32")
    run_by_hand(config, out)
    return out, manifest


def run_by_hand(config, out, only=None):
    """The stages of jobs.mask, in this process; returns which videos were masked."""
    from jobs.masks import video as mask_work
    from jobs.run.folder import describe
    from jobs.weights.segmenter import locate

    wanted = mask_plan.settings_of(locate("mini"), "float32", config.track)
    plan = mask_plan.plan_batch(config.manifest, None, wanted)
    assert plan.faults == []
    done, there = read_markers(out), masked_videos(out)
    todo = [w for w in plan.work if not mask.is_done(done.get(w.video_id), w, config, there)]
    describe(out, config)
    records = []
    for work in todo:
        local = Path(str(out)) / "part"
        record = mask_work.mask(work, segmenter(), config.track, local)
        spans = [
            {"video_id": work.video_id, "object_id": 1, "first_frame": first, "last_frame": last,
             "reason": "uncertain", "click_frame": first, "severity": 1.0 + last - first}
            for first, last in ((2, 3), (5, 7))
        ]  # fmt: skip
        record["review"] = [] if only else spans
        place = part_place(out / ".parts" / "token", work.video_id)
        place.write_bytes(local.read_bytes())
        batch.publish(record, out, out / ".parts" / "token")
        records.append(record)
    mask.conclude(config, out, plan, records, 1.0)
    return [work.video_id for work in todo]


def test_review_end_to_end_redoes_only_what_was_corrected(masked, tmp_path, capsys):
    out, _ = masked
    path = tmp_path / "corrected.csv"
    source = prompt_videos.find(str(out), path, None)
    run = MaskRun(source.run)
    store = Store(path, source.rows)
    session = Session(store, source.clips, segmenter(), run)

    def answers(video_id):
        about = session.video(video_id)
        return about["status"], [span["answer"] for span in about["spans"]]

    assert answers("a") == answers("b") == ("done", ["", ""])
    assert session.state("a")["states"][1][0] == (0, 0, "prompted")
    (found,) = session.masks("a", 5)
    assert decode_rle(found["rle"], SIZE)[40, 40]
    accepted = {"object_id": 1, "frame": 2, "until": 3, "role": "accept"}
    session.change("b", session.rows("b")["revision"], [{"row": 0}, accepted])
    assert answers("b") == ("done", ["accepted", ""])  # nothing to be done anew
    fixed = {"object_id": 1, "frame": 6, "x": 42, "y": 40, "label": 1, "role": "correct"}
    session.change("a", session.rows("a")["revision"], [{"row": 0}, fixed])
    assert answers("a") == ("changed", ["", "corrected"])
    asked = [{"object_id": 1, "corrects": True, "clicks": [{"x": 42, "y": 40, "label": 1}]}]
    prompt.conclude(SimpleNamespace(session=session), prompt.PromptConfig(videos="v", out="m.csv"))
    (line,) = [text for text in capsys.readouterr().out.splitlines() if "next:" in text]
    flags = shlex.split(line.partition("jobs.mask ")[2])
    again = parse(mask.MaskConfig, flags, "jobs.mask", "")
    assert (again.out, again.manifest, again.precision) == (str(out), (str(path),), "float32")
    assert again.root == str(tmp_path)
    (preview,) = session.preview("a", 6, session.state("a")["version"], asked)
    assert preview["width"] == SIZE[1]
    session.close()
    config = mask.MaskConfig(out=str(out), manifest=(str(path),), precision="float32")
    assert run_by_hand(config, out, only=True) == ["a"]
    review = (out / "review.csv").read_text()
    assert "b,1,5,7" in review
    assert "b,1,2,3" not in review  # accepted
    again = Session(Store(path), source.clips, segmenter(), MaskRun(out))
    assert again.video("a")["status"] == again.video("b")["status"] == "done"
    again.close()


def test_accepts_change_no_key_and_no_prompt(videos, tmp_path):
    lines = ["uri,object_id,frame,x,y,role,until", "a.mp4,1,0,30,40,,"]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    before = mask_plan.plan_batch([str(tmp_path / "m.csv")], str(videos), "settings")
    lines += ["a.mp4,1,4,,,accept,9", "a.mp4,1,12,,,accept,"]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    after = mask_plan.plan_batch([str(tmp_path / "m.csv")], str(videos), "settings")
    assert after.work == before.work
    span = {"object_id": 1, "first_frame": 4, "last_frame": 9}
    rows = after.accepted["a"]
    assert mask_plan.is_accepted(rows, span)
    assert mask_plan.is_accepted(rows, span | {"first_frame": 12, "last_frame": 12})
    for other in ({"last_frame": 10}, {"first_frame": 3}, {"object_id": 2}, {"last_frame": 13}):
        assert not mask_plan.is_accepted(rows, span | other)


# Requests


@pytest.fixture
def server(session):
    found = Server(session, "127.0.0.1", 0)
    yield found
    found.stop()
    found.wait()


def ask(server, path, method="GET", body=None, token=True, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    if token:
        path += ("&" if "?" in path else "?") + f"token={server.token}"
    content = None if body is None else json.dumps(body)
    given = {"Host": f"127.0.0.1:{server.port}"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    connection.request(method, path, content, given)
    response = connection.getresponse()
    return response.status, response.read(), response.headers


def test_who_is_answered(server):
    project = "/api/project"
    own = f"http://127.0.0.1:{server.port}"
    assert ask(server, project)[0] == 200
    assert ask(server, project, Origin=own)[0] == 200
    assert ask(server, project, Host="localhost:9999")[0] == 200  # an SSH tunnel
    assert ask(server, project, token=False)[0] == 403
    assert ask(server, project + "?token=guess", token=False)[0] == 403
    assert ask(server, project, Host="evil.example")[0] == 403
    assert ask(server, project, Host=f"evil.example:{server.port}")[0] == 403
    assert ask(server, project, Host="192.168.0.7")[0] == 403
    assert ask(server, project, Origin="http://evil.example")[0] == 403
    assert ask(server, project, Origin="null")[0] == 403
    assert ask(server, project, Origin="http://127.0.0.1:1")[0] == 403
    status, _, headers = ask(server, "/")
    assert status == 303
    assert headers["Location"] == "/"
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie  # the address may be followed from a notebook
    status, page, headers = ask(server, "/", token=False, Cookie=cookie.partition(";")[0])
    assert status == 200
    assert b"/page/app.js" in page
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert b"http://" not in page.replace(b"http://www.w3.org", b"")  # nothing from elsewhere


@pytest.mark.parametrize(
    "path",
    ["/page/../prompt.py", "/page/..%2fprompt.py", "/page/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
     "/../../etc/passwd", "/page/", "/etc/passwd"],
)  # fmt: skip
def test_no_path_leads_out(server, path):
    assert ask(server, path)[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "/api/video?id=../../etc/passwd", None, 404, "there is no video"),
        ("GET", "/api/frame?id=a&index=99&version={version}", None, 422, "a.mp4 has no frame"),
        ("GET", "/api/frame?id=a&index=-1&version={version}", None, 422, "a.mp4 has no frame"),
        ("GET", "/api/frame?id=a&index=one", None, 400, "invalid literal"),
        ("GET", "/api/frame?id=a&index=1", None, 400, "version is missing"),
        ("GET", "/api/frame?id=a&index=1&version=1-2", None, 410, "the file was replaced"),
        ("GET", "/api/frame?id=a", None, 400, "index is missing"),
        ("PUT", "/api/rows", {"id": "a", "revision": "0", "rows": []}, 409, "another tab"),
        ("PUT", "/api/rows", {"id": "a", "revision": "0", "rows": 1}, 400, "expected list"),
        ("PUT", "/api/rows", {"id": "a"}, 400, "revision is missing"),
        ("POST", "/api/track", {"id": "a", "frame": 0, "count": 5}, 400, "click on an object"),
    ],
)
def test_bad_requests_are_told_why(server, session, method, path, body, status, message):
    path = path.format(version=session.state("a")["version"])
    found, content, _ = ask(server, path, method, body)
    assert (found, message in json.loads(content)["error"]) == (status, True), content


def test_a_save_over_http_is_on_disk(server, session):
    rows = json.loads(ask(server, "/api/rows?id=a")[1])
    click = {"object_id": 1, "frame": 2, "x": 3, "y": 4, "label": 1}
    body = {"id": "a", "revision": rows["revision"], "rows": [click]}
    status, content, _ = ask(server, "/api/rows", "PUT", body)
    assert status == 200
    assert json.loads(content)["rows"][0]["x"] == 3
    assert session.store.path.read_text().splitlines()[1].split(",")[1:] == [
        "a", "1", "", "2", "3", "4", "1",
    ]  # fmt: skip
    assert ask(server, "/api/rows", "PUT", body)[0] == 409
    version = session.state("a")["version"]
    status, content, headers = ask(server, f"/api/frame?id=a&index=2&version={version}")
    assert (status, headers["Content-Type"], content[:2]) == (200, "image/jpeg", b"\xff\xd8")
    status, _, headers = ask(server, "/api/thumbnail?id=b")
    assert (status, headers["Cache-Control"]) == (200, "no-cache")  # its address has no version


def test_a_port_that_is_taken_is_said(server, session):
    with pytest.raises(ConfigError, match=f"--port {server.port} is in use"):
        Server(session, "127.0.0.1", server.port)


# The job


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["{videos}", "--out", "{tmp}/m.txt"], "the name of a manifest must end in .csv"),
        (["{tmp}/empty", "--out", "{tmp}/m.csv"], "does not exist; expected videos"),
        (["{tmp}/bad.csv", "--out", "{tmp}/m.csv"], "has 2 faults"),
        (["{videos}", "--out", "{tmp}/bad.csv"], "has 2 faults"),
        (["{videos}", "--out", "/proc/m.csv"], "/proc"),
        (["{videos}", "--out", "{tmp}/m.csv", "--weights", "gone.pth"], "gone.pth: neither a name"),
        (["{videos}", "--out", "{tmp}/m.csv", "--port", "70000"], "--port is 70000"),
        (["{videos}", "--out", "s3://b/m.csv"], "a local file is needed"),
    ],
)
def test_bad_input_is_said_before_anything_starts(videos, tmp_path, capsys, flags, message):
    (tmp_path / "bad.csv").write_text("uri,object_id,frame,x,y\na.mp4,0,0,3,4\na.mp4,1,-2,3,4\n")
    argv = [flag.format(videos=videos, tmp=tmp_path) for flag in flags]
    if "70000" in argv or "s3://b/m.csv" in argv:  # of the config itself
        with pytest.raises(SystemExit, match="2"):
            prompt.main([*argv, "--no-browser"])
    else:
        assert prompt.main([*argv, "--no-browser"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m.csv").exists()


def test_a_notebook_gets_a_table(videos, tmp_path, monkeypatch, capsys):
    """Two lines there; the page is played by a thread."""
    started = []
    monkeypatch.setattr(prompt, "show", lambda config, server: started.append(server))

    def play():
        while not started:
            time.sleep(0.02)
        (server,) = started
        rows = json.loads(ask(server, "/api/rows?id=b")[1])
        click = {"object_id": 1, "object_name": "disc", "frame": 1, "x": 31, "y": 40, "label": 1}
        ask(server, "/api/rows", "PUT", {"id": "b", "revision": rows["revision"], "rows": [click]})
        ask(server, "/api/done", "POST", {})

    threading.Thread(target=play).start()
    table = prompt.click(videos, tmp_path / "clicks.csv", port=0, browser=False)
    assert table[["video_id", "object_name", "frame", "x"]].values.tolist() == [
        ["b", "disc", 1, 31]
    ]
    found = next(iter(mask_video(videos / "b.mp4", table.drop(columns="uri"), segmenter())))
    assert found.masks[0].any()
    prompt.conclude(started[0], prompt.PromptConfig(videos=str(videos), out="m.csv"))
    output = capsys.readouterr().out
    assert "1 clicks on 1 objects of 1 videos" in output
    clicks = tmp_path / "clicks.csv"
    assert f"next: python -m jobs.mask --manifest {clicks} --out runs/masks\n" in output
    elsewhere = prompt.PromptConfig(videos=str(videos), out="m.csv", root="/some clips")
    prompt.conclude(started[0], elsewhere)
    assert f"--manifest {clicks} --root '/some clips' --out" in capsys.readouterr().out
    assert replace(prompt.PromptConfig(videos="v", out="m.csv"), port=0).browser
