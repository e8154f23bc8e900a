"""Folders of images: a frame that would be left out, or one too many, is refused."""

import struct

import pytest
from PIL import Image

from masking.video import Video
from masking.video.folder import frames_among
from masking.video.frame import VideoError

FRAMES = ("0001.jpg", "0002.jpg", "0003.jpg", "0004.jpg")


def write(folder, *names):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (8, 6), (40 * number, 0, 0)).save(folder / name, "jpeg")
    return folder


def refused(folder):
    with pytest.raises(VideoError) as caught:
        Video.open(folder)
    assert caught.value.code == "not_a_video"
    return str(caught.value)


def test_frames_have_names_and_what_is_no_image_is_named(tmp_path):
    folder = write(tmp_path / "a", "9.jpeg", "10.JPG", "11.jfif")
    (folder / "times.txt").write_text("no frame")
    (folder / ".DS_Store").write_text("hidden")
    (folder / "masks").mkdir()
    with Video.open(folder) as video:
        assert video.names == ("9.jpeg", "10.JPG", "11.jfif")
        assert [frame.index for frame in video] == [0, 1, 2]
        assert video.report.notes == ["left aside, as they are no images: times.txt, masks/"]


@pytest.mark.parametrize("name", ["0005.heic", "0005.HEIF", "0005.gif", "0005.dng"])
def test_a_format_that_is_not_read_is_refused(tmp_path, name):
    folder = write(tmp_path / "a", *FRAMES)
    (folder / name).write_bytes(b"some picture")
    assert f"{name}: a format that is not read, so frames would be missing" in refused(folder)


def test_links_to_nothing_and_folders_called_like_frames_are_refused(tmp_path):
    folder = write(tmp_path / "a", *FRAMES)
    (folder / "0005.jpg").symlink_to(tmp_path / "gone.jpg")
    assert "0005.jpg: a link to nothing; a gap would shift all frames after it" in refused(folder)
    (folder / "0005.jpg").unlink()
    (folder / "0005.jpg").symlink_to(folder / "0005.jpg")
    assert "0005.jpg: a link to nothing" in refused(folder)
    (folder / "0005.jpg").unlink()
    (folder / "0005.jpg").mkdir()
    assert "0005.jpg: no file" in refused(folder)


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    folder = write(tmp_path / "a", *FRAMES)
    try:
        (folder / "0005\udcff.jpg").write_bytes((folder / "0001.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system has only UTF-8")
    assert r"'0005\udcff.jpg': a name that is not UTF-8; rename it" in refused(folder)


@pytest.mark.parametrize(
    "name",
    [
        "0002_mask.png", "0002-gt.png", "mask_0002.png", "0002mask.png", "0002.png",
        "0002_thumb.jpg", "0002 (1).jpg", "0002 copy.jpg", "0002 - Kopie.jpg", "0002.labels.png",
        "0002_left.jpg",
    ],
)  # fmt: skip
def test_a_mask_or_a_copy_beside_its_frame_is_refused(name):
    with pytest.raises(VideoError, match="two pictures of one frame") as caught:
        frames_among([*FRAMES, name])
    assert name in str(caught.value)
    assert "0002.jpg" in str(caught.value)


def test_pairs_of_pictures_and_masks_are_refused():
    with pytest.raises(VideoError, match=r"frame_1\.png and mask_1\.png"):
        frames_among(["frame_1.png", "frame_2.png", "mask_1.png", "mask_2.png"])
    with pytest.raises(VideoError, match=r"1_depth\.png and 1_rgb\.png"):
        frames_among(["1_rgb.png", "1_depth.png"])


def test_no_two_frames_have_the_same_name_without_its_ending():
    with pytest.raises(VideoError, match=r"img1\.png and img1\.jpg"):
        frames_among(["frame1.jpg", "img1.jpg", "img1.png"])
    with pytest.raises(VideoError, match=r"cat\.png and cat\.jpg"):
        frames_among(["cat.jpg", "cat.png"])


def test_a_picture_without_a_number_among_numbered_frames_is_refused():
    with pytest.raises(VideoError, match=r"cover\.jpg: no number in the name, unlike the other 4"):
        frames_among([*FRAMES, "cover.jpg"])


@pytest.mark.parametrize(
    "names",
    [
        ["IMG_1.jpg", "DSC_1.jpg", "IMG_2.jpg", "DSC_2.jpg"],
        ["cat.jpg", "dog.jpg"],
        ["house_front.jpg", "house_back.jpg", "house.jpg"],
        ["1²3.jpg", "2.png", "3.jpg"],
        ["0001_mask.png", "0002_mask.png"],
        ["cover.jpg"],
    ],
)
def test_other_names_are_frames(names):
    assert sorted(frames_among(names)[0]) == sorted(names)


def test_an_image_that_names_an_impossible_place_is_damaged_and_not_the_disk(tmp_path):
    """Pillow then seeks to before the file's first byte, which the system refuses."""
    path = tmp_path / "0.tif"
    Image.new("RGB", (8, 6)).save(path)
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<H", 273))  # the tag of the offsets of its rows of pixels
    content[at + 2 : at + 12] = struct.pack("<HIi", 9, 1, -5)  # one signed number
    path.write_bytes(content)
    with Video.open(tmp_path) as video, pytest.raises(VideoError, match=r"0\.tif: frame 0: "):
        list(video)
