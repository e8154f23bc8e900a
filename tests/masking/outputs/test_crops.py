"""Objects cut out of frames, against padding and slices of numpy."""

import numpy as np
import pyarrow as pa
import pytest

from masking.images.masks import box, encode_rle
from masking.outputs.crops import CropConfig, crops, cut, trusted_rows
from masking.outputs.rows import SCHEMA
from masking.video.frame import VideoError
from masking.video.reader import Video
from tests.masking.tracking.test_masking import film
from tests.moving import SIZE, picture

H, W = 40, 60


def frame(left, top, width, height):
    image = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    mask = np.zeros((H, W), dtype=np.bool_)
    mask[top : top + height, left : left + width] = True
    mask[top, left] = False  # no rectangle
    return image, mask, box(mask)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((20, 10, 12, 8), (19, 7, 14, 14)),  # a square of 12 and a margin of 1 on each side
        ((0, 0, 10, 6), (0, 0, 12, 12)),  # moved into the frame
        ((50, 30, 10, 10), (48, 28, 12, 12)),
        ((5, 2, 50, 20), (0, -18, 60, 60)),  # taller than the frame
    ],
)
def test_squares(place, expected):
    image, mask, around = frame(*place)
    left, top, side, _ = expected
    padded = np.pad(image, ((60, 60), (60, 60), (0, 0)), mode="edge")
    found = cut(image, mask, around, CropConfig(margin=0.1))
    assert np.array_equal(found, padded[60 + top :, 60 + left :][:side, :side])


def test_tight_ends_at_the_frame():
    image, mask, around = frame(2, 30, 20, 10)
    found = cut(image, mask, around, CropConfig(margin=0.25, shape="tight"))
    assert np.array_equal(found, image[25:40, 0:27])
    bare = cut(image, mask, around, CropConfig(margin=0, shape="tight"))
    assert np.array_equal(bare, image[30:40, 2:22])


def test_backgrounds():
    image, mask, around = frame(20, 10, 12, 12)
    config = CropConfig(margin=0.5, background="transparent")
    clear = cut(image, mask, around, config)
    assert np.array_equal(clear[..., 3] == 255, mask[4:28, 14:38])
    assert set(np.unique(clear[..., 3])) == {0, 255}
    assert np.array_equal(clear[..., :3], image[4:28, 14:38])
    soft = cut(image, mask, around, CropConfig(margin=0.5, background="blurred"))
    inside = mask[4:28, 14:38]
    assert np.array_equal(soft[inside], image[4:28, 14:38][inside])
    assert soft[~inside].std() < 0.5 * image.std()
    edge = cut(image, *frame(0, 0, 60, 40)[1:], config)  # what is added is no part of the object
    assert edge.shape == (120, 120, 4)
    assert edge[..., 3].sum() == 255 * (H * W - 1)


def test_a_margin_has_a_range():
    with pytest.raises(ValueError, match=r"crops.margin is -0.1; it must lie in 0 to 10"):
        CropConfig(margin=-0.1)


def table_of(rows):
    whole = [dict.fromkeys(SCHEMA.names) | {"height": SIZE[0], "width": SIZE[1]} | r for r in rows]
    return pa.Table.from_pylist(whole, SCHEMA)


def row_of(number, t, mask, state):
    return {
        "frame": t, "object_id": number, "state": state, "rle": encode_rle(mask),
        "area": int(mask.sum()), "box": list(box(mask)) if mask.any() else None,
    }  # fmt: skip


def test_a_film_is_decoded_once_up_to_the_last_row(tmp_path):
    """Only masks that are prompted or tracked count, on every second frame."""
    shown = [picture({1: (30 + 2 * t, 40, 13), 2: (120, 60, 15)}) for t in range(8)]
    film(tmp_path / "c.mp4", shown)
    rows = [
        row_of(number, t, labels == number if t != 2 or number != 2 else labels > 9, state)
        for t, (_, labels) in enumerate(shown)
        for number, state in ((1, "uncertain" if t == 4 else "tracked"), (2, "prompted"))
    ]
    wanted = trusted_rows(table_of(rows), 2)
    places = list(zip(wanted["frame"].to_pylist(), wanted["object_id"].to_pylist(), strict=True))
    assert places == [(0, 1), (0, 2), (2, 1), (4, 2), (6, 1), (6, 2)]  # on frame 2, 2 is empty
    with Video.open(tmp_path / "c.mp4") as video:
        found = list(crops(video, wanted, CropConfig()))
        assert video.report.frames == 7
    assert [(crop.frame, crop.object_id) for crop in found] == places
    for crop in found:
        middle = crop.image[crop.image.shape[0] // 2, crop.image.shape[1] // 2]
        assert middle.argmax() == (0 if crop.object_id == 1 else 2)  # red and blue discs
    assert found[-1].time_s == pytest.approx(0.6)
    assert list(crops(video, wanted.slice(0, 0), CropConfig())) == []


def test_another_film_is_refused(tmp_path):
    shown = [picture({1: (30, 40, 13)}) for _ in range(2)]
    film(tmp_path / "c.mp4", shown)
    mask = shown[0][1] == 1
    beyond = table_of([row_of(1, 5, mask, "tracked")])
    with (
        Video.open(tmp_path / "c.mp4") as video,
        pytest.raises(VideoError, match=r"has 2 frames, but frame 5 was masked; mask it again"),
    ):
        list(crops(video, beyond, CropConfig()))
    other = table_of([row_of(1, 1, mask, "tracked") | {"height": 50}])
    with (
        Video.open(tmp_path / "c.mp4") as video,
        pytest.raises(VideoError, match="frame 1 has another size than its masks"),
    ):
        list(crops(video, other, CropConfig()))
