"""Frames as players show them: orientation, bits, pictures and stacks as videos."""

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from masking.video.frame import VideoError
from masking.video.reader import Video
from tests.masking.video.clips import picture, write_video

ONE = 1 << 16
TURNS = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image),
}
"""What shows a stored picture upright, by its EXIF orientation."""
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
"""a, b, c, d of the same display matrix: x is shown at a x + c y, y at b x + d y."""


def with_matrix(source, target, a, b, c, d):
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        copy = written.add_stream_from_template(read.streams.video[0])
        copy.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                written.mux(packet)
    return target


@pytest.mark.parametrize("orientation", range(1, 9))
def test_display_matrices_are_applied(tmp_path, orientation):
    plain = write_video(tmp_path / "plain.mp4", 3)
    with Video.open(plain) as video:
        stored = [frame.image for frame in video]
    matrix = [ONE * value for value in MATRICES[orientation]]
    turned = with_matrix(plain, tmp_path / "turned.mp4", *matrix)
    with Video.open(turned) as video:
        shown = [frame.image for frame in video]
        back = [frame.image for frame in video.backward(2)][::-1]
        assert video.report.notes == []
    for kept, one, other in zip(stored, shown, back, strict=True):
        assert np.array_equal(TURNS[orientation](kept), one)
        assert np.array_equal(one, other)


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (ONE, ONE, -ONE, ONE), (ONE, 0, ONE, 0)])
def test_a_matrix_of_no_quarter_turn_is_ignored_and_noted(tmp_path, matrix):
    plain = write_video(tmp_path / "plain.mov", 2)
    odd = with_matrix(plain, tmp_path / "odd.mov", *matrix)
    with Video.open(odd) as video:
        assert next(iter(video)).image.shape == (48, 64, 3)
        assert any("display matrix" in note for note in video.report.notes)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_a_video_of_one_frame_as_exif_shows_it(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(3)
    path = tmp_path / "frames" / f"one%03d.{kind.lower()}"
    path.parent.mkdir()
    Image.fromarray(image).save(path, kind, exif=exif)
    with Video.open(path) as video, Video.open(path.parent) as folder:
        (frame,), (other,) = video, folder
        assert len(list(video.backward(5))) == len(list(video.timestamps())) == 1
        assert video.names is None
    assert np.array_equal(frame.image, other.image)
    difference = np.abs(frame.image.astype(int) - TURNS[orientation](image)).mean()
    assert difference < 4, kind


def test_motion_jpeg_and_animated_png_are_videos(tmp_path):
    images = [Image.fromarray(picture(10 * number)) for number in range(4)]
    for image in images:
        image.save(tmp_path / "one.jpg")
        with (tmp_path / "film").open("ab") as file:
            file.write((tmp_path / "one.jpg").read_bytes())
    images[0].save(tmp_path / "film.png", save_all=True, append_images=images[1:])
    for name in ("film", "film.png"):
        with Video.open(tmp_path / name) as video:
            assert len(list(video)) == 4, name


def test_the_pages_of_a_stack_are_frames_but_a_stack_is_no_frame(tmp_path):
    images = [Image.fromarray(picture(10 * number)) for number in range(5)]
    path = tmp_path / "stack.tif"
    images[0].save(path, save_all=True, append_images=images[1:])
    with Video.open(path) as video:
        frames = [frame.image for frame in video]
        back = [frame.image for frame in video.backward(9)]
        late = [frame.index for frame in video.forward(3)]
    assert late == [3, 4]
    assert [int(frame[-1, -1, 0]) for frame in frames] == [20 + 3 * (10 * n) for n in range(5)]
    assert all(np.array_equal(a, b) for a, b in zip(frames, back[::-1], strict=True))
    with Video.open(tmp_path) as video, pytest.raises(VideoError, match=r"stack of 5 images"):
        list(video)


def test_smaller_copies_in_a_tiff_are_no_frames(tmp_path):
    one = Image.fromarray(picture(3))
    small = one.resize((16, 12))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    one.save(tmp_path / "0.tif", save_all=True, append_images=[small])
    for path in (tmp_path / "0.tif", tmp_path):
        with Video.open(path) as video:
            assert [frame.image.shape for frame in video] == [(48, 64, 3)]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("ending", ["png", "tif", "colour.png", "colour.tif"])
def test_pictures_of_16_bits_use_those_that_the_folder_uses(tmp_path, bits, ending):
    """The darker frame stays darker: all frames of a folder are shown alike."""
    shown = np.tile(np.linspace(0, 255, 64).astype(np.uint16), (48, 1))
    if ending.startswith("colour"):
        shown = np.dstack([shown, shown // 2, shown // 3])
    for name, image in (("0", shown // 8), ("1", shown)):
        deep = (image << (bits - 8)).astype(np.uint16)
        deep = deep[..., ::-1] if deep.ndim == 3 else deep  # OpenCV writes BGR
        assert cv2.imwrite(str(tmp_path / f"{name}.{ending}"), deep)
    with Video.open(tmp_path) as video:
        frames = [frame.image for frame in video]
        back = [frame.image for frame in video.backward(1)]
        noted = [note for note in video.report.notes if "of 16 bits" in note]
    wanted = shown if shown.ndim == 3 else np.dstack([shown] * 3)
    assert np.array_equal(frames[0], wanted // 8)
    assert np.array_equal(frames[1], wanted)
    assert np.array_equal(back[1], frames[0])
    assert bool(noted) == (bits < 16)


def test_a_stack_of_12_bits_is_shown_in_8(tmp_path):
    shown = np.tile(np.linspace(0, 255, 64).astype(np.uint16), (48, 1))
    pages = [Image.fromarray(page << 4) for page in (shown // 8, shown)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with Video.open(tmp_path / "stack.tif") as video:
        frames = [frame.image[..., 0] for frame in video]
    assert np.array_equal(frames[0], shown // 8)
    assert np.array_equal(frames[1], shown)


@pytest.mark.parametrize("bits", [12, 14, 16])
@pytest.mark.parametrize("form", ["gray16le", "rgb48le"])
def test_videos_of_16_bits_use_those_that_all_frames_use(tmp_path, bits, form):
    """FFV1, as thermal cameras write it; the first frame is the darker one."""
    shown = np.tile(np.linspace(0, 255, 64).astype(np.uint16), (48, 1))
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, form.replace("rgb48le", "gbrp16le")
        for image in (shown // 8, shown, shown):
            deep = image << (bits - 8)
            deep = np.dstack([deep] * 3) if form == "rgb48le" else deep
            frame = av.VideoFrame.from_ndarray(deep.astype(np.uint16), format=form)
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode(None))
    with Video.open(tmp_path / "a.mkv") as video:
        frames = [frame.image for frame in video]
        noted = [note for note in video.report.notes if "of 16 bits" in note]
        back = [frame.image for frame in video.backward(9)]
    assert np.abs(frames[1].astype(int) - shown[..., None]).max() <= 1
    assert np.abs(frames[0].astype(int) - shown[..., None] // 8).max() <= 1
    assert np.array_equal(back[2], frames[0])
    assert bool(noted) == (bits < 16)


@pytest.mark.parametrize("name", ["cut.png", "cut.tif", "cut.bmp"])
def test_a_picture_that_is_cut_off_is_an_error_of_its_own(tmp_path, name):
    Image.fromarray(picture(3)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError) as error:
        list(Video.open(tmp_path / name))
    assert error.value.code == "not_a_video"
    assert name in str(error.value)
