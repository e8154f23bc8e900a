"""Streams: which of several is read, and times that begin late or start again."""

from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from masking.video.clock import Clock
from masking.video.reader import Video
from masking.video.writer import Film
from tests.masking.video.clips import RATE, beep_of, picture, write_video


def write_two(path, sizes, codecs, default):
    """A file of several video streams, of which one is marked as the default."""
    with av.open(str(path), "w") as container:
        streams = []
        for size, codec in zip(sizes, codecs, strict=True):
            stream = container.add_stream(codec, rate=RATE)
            stream.height, stream.width = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = 1 if len(streams) == default else 0
            streams.append(stream)
        for number in range(6):
            for stream, size, codec in zip(streams, sizes, codecs, strict=True):
                if number and codec == "mjpeg":
                    continue  # a preview
                frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, RATE)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "codecs", "default", "read"),
    [
        ("a.mp4", ("mjpeg", "libx264"), 1, 1),
        ("b.mp4", ("mjpeg", "libx264"), 0, 1),
        ("c.mkv", ("libx264", "libx264"), 1, 1),
        ("d.mkv", ("libx264", "libx264"), 0, 0),
        ("e.ts", ("libx264", "libx264"), None, 1),
    ],
    ids=["preview", "preview as the default", "default", "the first as the default", "largest"],
)
def test_the_stream_that_a_player_shows_is_read_and_named(tmp_path, name, codecs, default, read):
    sizes = ((32, 48), (96, 160))
    write_two(tmp_path / name, sizes, codecs, default)
    with Video.open(tmp_path / name) as video:
        frames = list(video)
        notes = video.report.notes
        back = list(video.backward(99))
    assert {frame.image.shape[:2] for frame in frames} == {sizes[read]}
    assert len(frames) == len(back) == 6
    assert [n for n in notes if "of 2 video streams" in n and f"stream {read} " in n], notes


def film_of(path, target, kind="overlay"):
    with Video.open(path) as video:
        frames = iter(video)
        first = next(frames)
        with Film(target, kind, first.image.shape[:2], video) as film:
            for frame in (first, *frames):
                image = frame.image
                if kind == "cutout":
                    image = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
                film.write(image, frame.time_s)
        return film.notes, video.report


@pytest.mark.parametrize("sound", ["aac", "mp2"], ids=["copied", "encoded"])
def test_a_stream_that_begins_between_key_frames_keeps_sound_and_picture_together(tmp_path, sound):
    whole = write_video(
        tmp_path / "whole.ts", 60, sound=sound, rate=48_000, beep_s=1.6, gop=30
    ).read_bytes()
    cut = tmp_path / "cut.ts"
    with av.open(str(tmp_path / "whole.ts")) as container:
        at = [p.pos for p in container.demux(video=0) if p.pts is not None][6]
    cut.write_bytes(whole[at // 188 * 188 :])
    notes, report = film_of(cut, tmp_path / "film.mp4")
    assert not notes
    assert any("of the video do not decode" in note for note in report.notes)
    assert beep_of(tmp_path / "film.mp4") == pytest.approx(beep_of(cut), abs=0.03)


@pytest.mark.parametrize("sound", [None, "aac", "mp2"])
def test_joined_recordings_continue_from_the_end(tmp_path, sound):
    one = write_video(tmp_path / "one.ts", 25, sound=sound, rate=48_000, beep_s=2)
    two = write_video(tmp_path / "two.ts", 25, sound=sound, rate=48_000, beep_s=0.4, begin=25)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(one.read_bytes() + two.read_bytes())
    with Video.open(joined) as video:
        frames = list(video)
        report = video.report
        times = [known.time_s for known in video.timestamps()]
        late = next(video.seek(30, list(video.timestamps()), clean=True))
        back = list(video.backward(99))
    assert [frame.time_s for frame in frames] == times == [f.time_s for f in back[::-1]]
    assert times == pytest.approx(np.arange(50) / RATE, abs=0.005)
    assert late.time_s == times[30]
    assert report.unsorted == 0
    assert any("start again at frame 25" in note for note in report.notes)
    for kind, name in (("overlay", "film.mp4"), ("cutout", "film.mov")):
        notes, _ = film_of(joined, tmp_path / name, kind)
        assert not notes
        with Video.open(tmp_path / name) as film:
            assert [f.time_s for f in film] == pytest.approx(times, abs=0.001)
        if sound is None:
            continue
        with av.open(str(tmp_path / name)) as container:
            heard = [f.time for f in container.decode(audio=0)]
        assert all(a < b for a, b in pairwise(heard))
        assert heard[-1] == pytest.approx(2, abs=0.1)
        assert beep_of(tmp_path / name) == pytest.approx(1.4, abs=0.03)


def clock_of(stamps, gaps=False, rate=Fraction(10)):
    clock = Clock(stamps[0], Fraction(1, 100), rate, gaps)
    return [clock(stamp) for stamp in stamps]


def test_a_clock_continues_at_restarts_but_not_at_odd_stamps():
    assert clock_of([100, 110, 120, 0, 10, 20]) == [0, 10, 20, 30, 40, 50]
    assert clock_of([0, 10, 20, 0, 10, 20, 0]) == [0, 10, 20, 30, 40, 50, 60]
    assert clock_of([0, 10, 9_000, 20, 30]) == [0, 10, 9_000, 20, 30]
    assert clock_of([500, 510, 0, 520, 530]) == [0, 10, 20, 20, 30]
    assert clock_of([0, 10, 20, 15, 30]) == [0, 10, 20, 15, 30]
    assert clock_of([0, 10, 9_000, 9_010]) == [0, 10, 9_000, 9_010]
    assert clock_of([0, 10, 9_000, 9_010], gaps=True) == [0, 10, 20, 30]
    assert clock_of([0, 10, 9_000, 20, 30], gaps=True) == [0, 10, 20, 20, 30]
    clock = Clock(0, Fraction(1, 100), Fraction(10), gaps=False)
    assert clock(0) == 0
    for _ in range(9):  # as in a program stream of small frames
        clock.skip()
    assert clock(0) == 100
    slow = [0, 1_500, 3_000, 4_500]
    assert clock_of(slow, gaps=True, rate=Fraction(1, 15)) == slow
