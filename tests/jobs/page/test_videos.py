"""The videos of `jobs.prompt`: their ids, and any frame of them."""

import os
import random
import shutil
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs.page import videos as prompt_videos
from jobs.page.frames import Frames, VideoScan
from jobs.page.session import Session
from jobs.page.store import Store
from jobs.page.videos import Clip
from jobs.run.config import ConfigError
from jobs.run.signals import background
from jobs.storage.location import Location
from masking.manifest.faults import ManifestError
from masking.video.frame import VideoError
from masking.video.reader import Video
from tests.jobs.page.rows import LENGTH, add, row
from tests.masking.tracking.test_masking import film
from tests.moving import segmenter


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


def test_each_folder_is_listed_once_under_its_own_name(tmp_path):
    """Two links to the folder itself were followed without end."""
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "b" / "c.mp4").touch()
    (tmp_path / "in" / "gone.mp4").symlink_to("nowhere.mp4")  # the page says what is wrong with it
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.mp4").touch()
    for name, target in {
        "x": ".", "y": ".", "b/up": "..", "a": "b", "loop": "loop", "more": "../elsewhere",
        "twice": "more",
    }.items():  # fmt: skip
        (tmp_path / "in" / name).symlink_to(target, target_is_directory=True)
    found = prompt_videos.find(str(tmp_path / "in"), tmp_path / "m.csv", None).clips
    assert [one.video_id for one in found] == ["b/c", "gone", "more/d"]


@pytest.mark.parametrize(
    "name",
    ["あ" * 83, "a\\b", "/".join("é" * 100 for _ in range(8))],
    ids=["long", "backslash", "deep"],
)
def test_a_name_that_is_no_id_gets_one_that_the_manifest_can_be_read_by(tmp_path, name):
    (tmp_path / f"{name}.mp4").parent.mkdir(parents=True, exist_ok=True)
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


def test_a_video_that_hangs_holds_up_no_other(videos, tmp_path, monkeypatch):
    """Neither where it is opened, nor before its first frame; nor the end of the session."""
    gate = threading.Event()
    stuck, opens = [], Video.open

    def opened(path):
        if path.name == "opens.mp4":
            stuck.append(path)
            gate.wait(60)
        return opens(path)

    def no_timestamps(video):
        if video.path.name == "frames.mp4":
            gate.wait(60)
        yield from video._source.timestamps()

    monkeypatch.setattr(Video, "open", opened)
    monkeypatch.setattr(Video, "timestamps", no_timestamps)
    monkeypatch.setattr("jobs.page.frames.OPENING", 0.2)
    monkeypatch.setattr("jobs.page.opened.PATIENCE", 0.2)
    monkeypatch.setattr("jobs.page.session.ENDING", 0.2)
    for name in ("opens", "frames"):
        shutil.copy(videos / "a.mp4", tmp_path / f"{name}.mp4")
    paths = [tmp_path / "opens.mp4", tmp_path / "frames.mp4", videos / "a.mp4"]
    clips = [Clip(path.stem, path.name, Location.parse(path)) for path in paths]
    session = Session(Store(tmp_path / "m.csv"), clips, segmenter(), None)
    try:
        waiting = background(lambda: session.state("opens"))
        with pytest.raises(VideoError, match=r"frames\.mp4: no frame was decoded in 0 s"):
            session.state("frames")
        with pytest.raises(VideoError, match="the first frame took more than"):
            session.thumbnail("opens")
        assert session.state("a")["rows"]["rows"] == []
        assert session.thumbnail("a")[:2] == b"\xff\xd8"
        click = {"object_id": 1, "frame": 0, "x": 3, "y": 4}
        assert len(session.change("a", session.store.revision("a"), [click])["rows"]) == 1
        assert stuck
        assert not waiting.done()
        session.close()
    finally:
        gate.set()


def test_the_names_of_frames_are_those_of_their_files(tmp_path):
    (tmp_path / "still").mkdir()
    for number in (5, 10, 15):
        image = np.full((32, 32, 3), number, np.uint8)
        cv2.imwrite(str(tmp_path / "still" / f"{number:05}.png"), image)
    clips = [Clip("s", "still", Location.parse(tmp_path / "still"))]
    session = Session(Store(tmp_path / "m.csv"), clips, segmenter(), None)
    names = session.timestamps("s", 0)["names"]
    names += session.timestamps("s", len(names))["names"]
    session.close()
    assert names == ("00005.png", "00010.png", "00015.png")
