"""Films that are written: timestamps, sizes, colours, sound."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace

from masking.video.reader import Video
from masking.video.writer import Film
from tests.masking.video.clips import beep_of, write_video


def test_a_film_of_images_begins_at_once_and_has_one_size(tmp_path):
    with Film(tmp_path / "film.mp4", "overlay", (32, 48)) as film:
        for number in range(3):
            side = 2 if number == 1 else 1
            film.write(np.zeros((32 * side, 48 * side, 3), np.uint8), None)
    with Video.open(tmp_path / "film.mp4") as video:
        frames = list(video)
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.04, 0.08])
    assert {frame.image.shape for frame in frames} == {(32, 48, 3)}
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert container.streams.video[0].start_time == 0


def test_sound_with_a_damaged_header_costs_no_film(tmp_path):
    source = write_video(tmp_path / "a.mkv", 25, sound="libopus", rate=48_000)
    at = source.read_bytes().index(b"OpusHead")
    content = bytearray(source.read_bytes())
    content[at - 3 : at - 1] = b"\x63\xa3"  # another element: the header is not found
    source.write_bytes(content)
    with Video.open(source) as video:
        image = next(iter(video)).image
        with Film(tmp_path / "film", "overlay", image.shape[:2], video) as film:
            film.write(image, 0)
    assert film.notes == []
    with av.open(str(tmp_path / "film")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"


def test_sound_of_an_unknown_codec_is_noted(tmp_path):
    source = write_video(tmp_path / "a.mov", 5, sound="pcm_s16le")
    source.write_bytes(source.read_bytes().replace(b"sowt", b"zzzz"))
    with Video.open(source) as video:
        image = next(iter(video)).image
        with Film(tmp_path / "film", "overlay", image.shape[:2], video) as film:
            film.write(image, 0)
    assert film.notes == ["the film is silent: the codec of the sound is not known"]
    with av.open(str(tmp_path / "film")) as container:
        assert not container.streams.audio


def test_a_frame_cannot_last_for_more_than_hours(tmp_path):
    """Damaged timestamps; the containers cannot hold such a time, and the film would be lost."""
    with Film(tmp_path / "film.mp4", "overlay", (32, 48)) as film:
        for time in (0.0, 0.04, *np.arange(1e6, 9e6, 1e6)):
            film.write(np.zeros((32, 48, 3), np.uint8), time)
    assert len(film.notes) == 1
    assert "more than an hour apart" in film.notes[0]
    with Video.open(tmp_path / "film.mp4") as video:
        assert len(list(video)) == 10


@pytest.mark.parametrize("rate", [Fraction(14, 2_142_114_939), Fraction(2**31 - 1), Fraction(0)])
def test_a_damaged_rate_costs_no_film(tmp_path, monkeypatch, rate):
    with Video.open(write_video(tmp_path / "a.mp4", 2)) as video:
        frames = list(video)
        monkeypatch.setattr(video._source, "rate", rate)
        with Film(tmp_path / "film.mp4", "overlay", (48, 64), video) as film:
            for frame in frames:
                film.write(frame.image, frame.time_s)
    with Video.open(tmp_path / "film.mp4") as video:
        assert [frame.time_s for frame in video] == pytest.approx([0, 0.04])


@pytest.mark.parametrize("lines", [720, 480])
@pytest.mark.parametrize("kind", ["overlay", "cutout"])
def test_film_keeps_colours_in_the_matrix_that_players_take(tmp_path, kind, lines):
    colour = [200, 29, 30]
    image = np.full((lines, 64, 3), colour, np.uint8)
    if kind == "cutout":
        image = np.dstack([image, np.full((lines, 64), 255, np.uint8)])
    with Film(tmp_path / "film", kind, (lines, 64)) as film:
        film.write(image, None)
    with Video.open(tmp_path / "film") as video:
        seen = next(iter(video)).image[lines // 2, 32]
    assert np.abs(seen.astype(int) - colour).max() <= 3
    with av.open(str(tmp_path / "film")) as container:
        tag = container.streams.video[0].codec_context.colorspace
    assert (tag == Colorspace.ITU709) == (lines == 720)


@pytest.mark.parametrize("kind", ["overlay", "cutout"])
@pytest.mark.parametrize(
    ("ending", "codec", "rate", "layout", "wanted"),
    [
        ("avi", "pcm_mulaw", 8000, "mono", 8000),
        ("mov", "pcm_u8", 22_254, "mono", 24_000),
        ("avi", "pcm_u8", 4_000, "stereo", 7_350),
        ("mkv", "pcm_f32le", 192_000, "stereo", 96_000),
        ("mkv", "pcm_f64le", 48_000, "6.1", 48_000),
        ("mkv", "pcm_f32le", 48_000, "hexadecagonal", 48_000),
        ("mkv", "pcm_f32le", 500_000, "3.1", 96_000),
    ],
)
def test_film_takes_sound_that_its_container_cannot_hold(
    tmp_path, kind, ending, codec, rate, layout, wanted
):
    source = write_video(tmp_path / f"a.{ending}", 25, (32, 32), codec, rate, layout, beep_s=0.5)
    channels = 4 if kind == "cutout" else 3
    with Video.open(source) as video:
        times = [frame.time_s for frame in video]
        with Film(tmp_path / "film", kind, (32, 32), video) as film:
            for time in times:
                film.write(np.zeros((32, 32, channels), np.uint8), time)
    assert film.notes == []
    with av.open(str(tmp_path / "film")) as container:
        heard = container.streams.audio[0].codec_context
        assert (heard.name, heard.sample_rate) == ("aac", wanted)
    assert beep_of(tmp_path / "film") == pytest.approx(beep_of(source), abs=0.03)


@pytest.mark.parametrize("kind", ["overlay", "cutout"])
def test_film_keeps_the_pixel_aspect_as_displayed(tmp_path, kind):
    wide = write_video(tmp_path / "wide.mp4", 2, aspect=Fraction(4, 3))
    with av.open(str(wide)) as source, av.open(str(tmp_path / "turned.mp4"), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        copy.set_display_rotation(90)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    for name, wanted in (("wide.mp4", Fraction(4, 3)), ("turned.mp4", Fraction(3, 4))):
        with Video.open(tmp_path / name) as video:
            image = next(iter(video)).image
            if kind == "cutout":
                image = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
            with Film(tmp_path / "film", kind, image.shape[:2], video) as film:
                film.write(image, 0)
        with av.open(str(tmp_path / "film")) as container:
            assert container.streams.video[0].sample_aspect_ratio == wanted


@pytest.mark.parametrize("kind", ["overlay", "cutout"])
def test_film_keeps_times_and_sound(tmp_path, kind):
    source = tmp_path / "source.mkv"
    times = [0, 0.04, 0.3, 0.34, 1.0]
    with av.open(str(source), "w") as container:
        video, audio = (
            container.add_stream("libx264", rate=25),
            container.add_stream("aac", rate=8000),
        )
        video.height, video.width, video.pix_fmt, audio.layout = 32, 48, "yuv420p", "mono"
        sound = np.sin(np.arange(8000) / 9)[None].astype(np.float32)
        for start in range(0, 8000, 1024):
            part = av.AudioFrame.from_ndarray(sound[:, start : start + 1024], "fltp", "mono")
            part.sample_rate, part.pts = 8000, start
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 50 * number, np.uint8))
            frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    target = tmp_path / ("film.mov" if kind == "cutout" else "film.mp4")
    channels = 4 if kind == "cutout" else 3
    with Video.open(source) as video:
        next(iter(video))
        with Film(target, kind, (33, 47), video) as film:
            for number, time in enumerate(times):
                film.write(np.full((33, 47, channels), 50 * number, np.uint8), time)
    with Video.open(target) as video:
        frames = list(video)
    assert [frame.time_s for frame in frames] == pytest.approx(times, abs=1e-4)
    size = (33, 47) if kind == "cutout" else (34, 48)
    assert {frame.image.shape[:2] for frame in frames} == {size}
    assert np.abs(frames[3].image.astype(int) - 150).max() < 6
    with av.open(str(target)) as container:
        assert [s.codec_context.name for s in container.streams.audio] == ["aac"]
        samples = sum(f.samples for f in container.decode(audio=0))
    assert samples >= 8000
