"""What is opened: containers with their own pictures; no lists, no other files, within a time."""

import os
import threading
import time

import pytest

from masking.tracking.masking import mask_video
from masking.video import container as container_module
from masking.video.frame import VideoError
from masking.video.reader import Video
from tests.masking.video.clips import write_video

HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n"
LISTS = {
    "hls": HLS + "#EXT-X-ENDLIST\n",
    "endless hls": HLS,
    "hls of lists": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n",
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"'
    ' mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
    "<BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "smooth": '<SmoothStreamingMedia MajorVersion="2"><StreamIndex Url="{}"/>'
    "</SmoothStreamingMedia>\n",
    "imf": '<?xml version="1.0"?>\n<CompositionPlaylist'
    ' xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"><Id>{}</Id></CompositionPlaylist>\n',
    "asx": '<ASX version="3.0"><Entry><Ref href="{}"/></Entry></ASX>\n',
    "filter": "movie={}\n",
    "ffmetadata": ";FFMETADATA1\ntitle={}\n",
}
"""Texts that FFmpeg, or another player, takes for the names of videos."""


@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.mpd", "list.ffconcat", "list"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_other_files_is_no_video(tmp_path, kind, name):
    secret = write_video(tmp_path / "secret.ts", 5)
    path = tmp_path / "given" / name
    path.parent.mkdir()
    path.write_text(LISTS[kind].format(secret))
    started = time.monotonic()
    with pytest.raises(VideoError) as error:
        Video.open(path)
    assert error.value.code == "not_a_video"
    assert str(path) in str(error.value)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["f%03d.ts", "f*.ts", "concat:a.ts|b.ts", "http:", "file:x.ts"])
def test_a_name_is_no_pattern_and_no_protocol(tmp_path, name):
    for other in ("f000.ts", "f001.ts", "a.ts", "b.ts"):
        write_video(tmp_path / "x.ts", 3).rename(tmp_path / other)
    with pytest.raises(VideoError) as error:
        Video.open(tmp_path / name)
    assert error.value.code == "not_found"
    write_video(tmp_path / "own.ts", 7).rename(tmp_path / name)
    with Video.open(tmp_path / name) as video:
        assert len(list(video)) == 7


def test_opening_has_a_time_limit(tmp_path, monkeypatch):
    """Bytes that never come: the file is a pipe that nobody writes to any more."""
    monkeypatch.setattr(container_module, "OPENING_S", 0.5)
    pipe = tmp_path / "slow.ts"
    os.mkfifo(pipe)
    end = threading.Event()

    def drip():
        with pipe.open("wb", buffering=0) as stream:
            while not end.wait(0.05):
                try:
                    stream.write(b"\x47" + b"\0" * 187)
                except BrokenPipeError:
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    started = time.monotonic()
    try:
        with pytest.raises(VideoError, match=r"more than 0\.5 s"):
            container_module.open_container(pipe)
    finally:
        end.set()
        thread.join(5)
    assert time.monotonic() - started < 5


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")
    with pytest.raises(VideoError, match="git lfs pull"):
        Video.open(path)


def test_mask_video_refuses_a_list(tmp_path):
    secret = write_video(tmp_path / "secret.ts", 5)
    path = tmp_path / "list.mp4"
    path.write_text(HLS.format(secret))
    with pytest.raises(VideoError, match="it is text; playlists"):
        mask_video(path, [{"object_id": 1, "frame": 0, "x": 5, "y": 5}])
