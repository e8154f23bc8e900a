"""Videos, read forward and backward: damaged, odd and cut short ones too."""

import csv
import errno
import os
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from masking.video import container as container_module
from masking.video import file as video_module
from masking.video.frame import VideoError
from masking.video.reader import Video
from masking.video.truncation import missing_bytes

DATA = Path(os.environ.get("VISION_DATA", "absent")) / "videos"
LONG = 3_000_000_000
"""Bytes of decoded frames beyond which a file is not held in memory by a test."""


def clip(path: Path, frames: int = 60, size: tuple[int, int] = (64, 96), gop: int = 12) -> Path:
    """A moving pattern; no two frames are alike. Key frames every `gop`, B-frames between; of an
    MP4 called fast.mp4 the index comes first."""
    options = {"movflags": "+faststart"} if path.name == "fast.mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "15"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size, stream.max_b_frames = gop, 2
        y, x = np.mgrid[: size[0], : size[1]]
        for number in range(frames):
            plane = (128 + 100 * np.sin((x + 3 * number) / 9) * np.cos((y - number) / 7)).astype(
                "u1"
            )
            image = np.dstack([plane, np.roll(plane, number, 0), np.full_like(plane, 4 * number)])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def plain(path: Path) -> list[np.ndarray]:
    """Every frame of an intact file, as PyAV decodes it by default."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def forward(path: Path) -> list[np.ndarray]:
    with Video.open(path) as video:
        frames = list(video)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    return [frame.image for frame in frames]


def test_forward_is_a_plain_decode(tmp_path):
    path = clip(tmp_path / "clip.mp4")
    found = forward(path)
    assert len(found) == 60
    assert all(np.array_equal(a, b) for a, b in zip(found, plain(path), strict=True))


def test_starts_at_the_given_frame(tmp_path):
    path = clip(tmp_path / "clip.mp4")
    with Video.open(path) as video:
        late = list(video.forward(37))
    assert [frame.index for frame in late] == list(range(37, 60))
    assert np.array_equal(late[0].image, plain(path)[37])
    assert late[0].time_s == pytest.approx(37 / 25)


@pytest.mark.parametrize("held", [1, 5, 1000], ids=["one frame", "less than a group", "all"])
@pytest.mark.parametrize("last", [0, 11, 12, 59, 200])
def test_backward_is_forward_turned_round(tmp_path, held, last):
    path = clip(tmp_path / "clip.mp4")
    frames = plain(path)
    with Video.open(path) as video:
        back = list(video.backward(last, ring_bytes=held * frames[0].nbytes))
    last = min(last, 59)
    assert [frame.index for frame in back] == list(range(last, -1, -1))
    assert all(np.array_equal(frame.image, frames[frame.index]) for frame in back)


def test_backward_holds_no_more_than_the_ring(tmp_path, monkeypatch):
    path = clip(tmp_path / "clip.mp4", gop=60)
    with Video.open(path) as video:
        frame = next(iter(video))
        converted = []
        convert = video._source._convert
        monkeypatch.setattr(
            video._source, "_convert", lambda raw: converted.append(1) or convert(raw)
        )
        frames = video.backward(59, ring_bytes=6 * frame.image.nbytes)
        next(frames)
        assert len(converted) <= 7  # six are held, of the first the size had to be seen


def test_odd_seeks_fall_back_to_the_start(tmp_path, monkeypatch):
    """A container that seeks to the wrong place costs time, never order."""
    path = clip(tmp_path / "clip.mp4")
    real = av.container.InputContainer.seek

    class Wrong:
        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self._container.close()

        def seek(self, pts, **more):
            real(self._container, pts + 20_000, any_frame=True, **more)

    opened = video_module.open_container

    def wrong(path):
        container, stream = opened(path)
        return Wrong(container), stream

    monkeypatch.setattr(video_module, "open_container", wrong)
    with Video.open(path) as video:
        assert [frame.index for frame in video.backward(59)] == list(range(59, -1, -1))


def test_images_of_a_folder_in_natural_order(tmp_path):
    for number in (10, 9, 100):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / "._f9.png").write_text("what a Mac leaves behind")
    assert [image[0, 0, 0] for image in forward(tmp_path)] == [9, 10, 100]
    with Video.open(tmp_path) as video:
        assert [frame.image[0, 0, 0] for frame in video.backward(5)] == [100, 10, 9]


def test_an_image_that_does_not_decode_is_named(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    with Video.open(tmp_path) as video, pytest.raises(VideoError, match=r"1\.png: frame 1: "):
        list(video)


def broken(tmp_path: Path) -> dict[str, Path]:
    whole = clip(tmp_path / "whole.mkv").read_bytes()
    made = {f"cut{n}.mkv": whole[: len(whole) * n // 10] for n in range(10)}
    moov = clip(tmp_path / "whole.mp4").read_bytes()
    made |= {f"cut{n}.mp4": moov[: len(moov) * n // 10] for n in range(10)}
    made |= {"text.mp4": b"object_id,frame,x,y\n1,0,5,5\n" * 40, "empty.mp4": b""}
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in made}


def test_broken_files_give_frames_or_a_typed_error(tmp_path):
    """The clip is made once: an encoder may give other bytes, and other frames, the second time."""
    files = broken(tmp_path)
    whole = forward(tmp_path / "whole.mkv")
    counts, codes = {}, {}
    for name, path in files.items():
        try:
            images = forward(path)
        except VideoError as error:
            codes[name] = error.code if str(path) in str(error) else str(error)
            continue
        counts[name] = len(images)
        for a, b in zip(images[:-3], whole, strict=False):  # the last may be damaged
            assert np.array_equal(a, b), name
    assert set(codes.values()) <= {"not_a_video", "no_video_stream", "no_frames"}
    assert counts.get("cut9.mkv", 0) > 45
    assert 0 < counts.get("cut5.mkv", 0) < counts["cut9.mkv"]
    assert not [name for name in counts if name.endswith("mp4")]  # their index came last


@pytest.mark.parametrize("name", ["whole.mkv", "fast.mp4", "whole.avi"])
def test_a_file_that_is_cut_short_says_so(tmp_path, name):
    content = clip(tmp_path / name).read_bytes()
    cut = tmp_path / f"cut_{name}"
    for share, says in ((1.0, False), (0.9, True), (0.6, True)):
        cut.write_bytes(content[: int(share * len(content))])
        with Video.open(cut) as video:
            assert list(video)
            assert video.report.cut_off is says
            assert (
                any("shorter than its header says" in note for note in video.report.notes) is says
            )


def test_what_follows_the_last_box_of_a_file_is_not_missed(tmp_path):
    content = clip(tmp_path / "whole.mp4").read_bytes()
    odd = tmp_path / "odd.mp4"
    odd.write_bytes(content + b"\0" * 5)
    assert missing_bytes(odd) == 0
    odd.write_bytes(content + (1).to_bytes(4, "big") + b"free" + (1000).to_bytes(8, "big"))
    assert missing_bytes(odd) == 1000 - 16
    odd.write_bytes(content + bytes(4) + b"mdat")  # as long as the file
    assert missing_bytes(odd) == 0


def fail_after_20_packets(monkeypatch, code):
    """Make every container raise an error of FFmpeg in its middle."""
    source = video_module.open_container

    class Failing:
        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def demux(self, stream):
            yield from islice(self._container.demux(stream), 20)
            raise av.error.FFmpegError(code, os.strerror(code))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._container.close()

    def opened(path):
        container, stream = source(path)
        return Failing(container), stream

    monkeypatch.setattr(video_module, "open_container", opened)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_trouble_of_the_disk_is_not_taken_for_damage(tmp_path, monkeypatch, code):
    path = clip(tmp_path / "a.mp4")

    class Unreadable(type(path)):
        def open(self, *mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))

    fail_after_20_packets(monkeypatch, code)
    monkeypatch.setattr(container_module, "Path", Unreadable)
    monkeypatch.setattr(container_module, "_PLENTY", 1 << 60)
    with (
        Video.open(path) as video,
        pytest.raises(MemoryError if code == errno.ENOMEM else OSError) as error,
    ):
        list(video)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM])
def test_errors_of_the_system_by_a_file_that_can_be_read_are_damage(tmp_path, monkeypatch, code):
    path = clip(tmp_path / "a.mp4")
    fail_after_20_packets(monkeypatch, code)
    with Video.open(path) as video:
        assert 15 < len(list(video)) < 25
        assert video.report.cut_off


def test_a_header_that_is_cut_anywhere_is_the_fault_of_the_file(tmp_path):
    """FFmpeg's reader of Matroska gives an input error at many of these places."""
    whole = clip(tmp_path / "whole.mkv", frames=4).read_bytes()
    cut, codes = tmp_path / "cut.mkv", set()
    for length in range(1, 700, 3):
        cut.write_bytes(whole[:length])
        try:
            list(Video.open(cut))
        except VideoError as error:
            codes.add(error.code)
    assert codes <= {"not_a_video", "no_video_stream", "no_frames", "no_decoder"}


@pytest.mark.parametrize(("name", "code"), [("absent.mp4", "not_found"), ("folder", "not_a_video")])
def test_nothing_to_read(tmp_path, name, code):
    (tmp_path / "folder").mkdir()
    with pytest.raises(VideoError) as error:
        Video.open(tmp_path / name)
    assert error.value.code == code
    assert name in str(error.value)


def test_untagged_video_is_read_as_players_do(tmp_path):
    """Below 720 lines BT.601, from there on BT.709; FFmpeg's own default is always BT.601."""
    for lines, matrix in ((240, "ITU601"), (720, "ITU709")):
        path, colour = tmp_path / f"{lines}.mp4", (200, 30, 30)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
            stream.height, stream.width, stream.pix_fmt = lines, 320, "yuv444p"
            image = np.full((lines, 320, 3), colour, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format="yuv444p", dst_colorspace=matrix
            )
            frame.colorspace = 2  # nobody says which
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        assert np.abs(forward(path)[0][5, 5].astype(int) - colour).max() <= 2


@pytest.mark.skipif(not DATA.is_dir(), reason="VISION_DATA/videos is absent")
def test_odd_and_broken_files_of_the_world():
    """Counts as the table of the data has them, and backward the same frames as forward."""
    for row in csv.DictReader((DATA / "videos.csv").open()):
        wanted = int(row["decoded_frames"] or 0)
        path, pixels = DATA / row["file"], int(row["width"] or 0) * int(row["height"] or 0)
        if wanted * pixels * 3 > LONG or "hdr" in row["file"] or "HLG" in row["what"]:
            continue  # tone mapping takes seconds a file
        try:
            with Video.open(path) as video:
                images = [frame.image for frame in video]
                rotation = video.rotation
        except VideoError:
            assert wanted == 0, row["file"]
            continue
        assert len(images) == wanted, row["file"]
        if row["rotation"] and abs(int(row["rotation"])) <= 360:
            assert rotation == int(row["rotation"]), row["file"]
        if wanted * pixels < 30_000_000 and "PQ" not in row["what"]:  # as slow again
            with Video.open(path) as video:
                back = [frame.image for frame in video.backward(wanted)]
            assert len(back) == wanted, row["file"]
            assert all(np.array_equal(a, b) for a, b in zip(back, images[::-1], strict=True)), row[
                "file"
            ]


@pytest.mark.skipif(not DATA.is_dir(), reason="VISION_DATA/videos is absent")
def test_high_dynamic_range_is_mapped_and_said():
    with Video.open(DATA / "hdr10_rotated.mkv") as video:
        frame = next(iter(video))
        assert frame.image.shape == (560, 320, 3)
        assert video.report.notes == ["PQ (high dynamic range) mapped to BT.709"]
