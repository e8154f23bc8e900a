"""Masks and polygons as prompts: each is the mask of its frame, and is carried on from there."""

import numpy as np
import pytest

from masking.images.masks import encode_rle
from masking.manifest.faults import ManifestError
from masking.manifest.shapes import text_of_mask
from masking.outputs.formats import davis_png, mask_png
from masking.tracking.masking import mask_video
from tests.masking.tracking.test_masking import film
from tests.moving import SIZE, picture, segmenter

FRAMES = 6


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    return film(folder / "c.mp4", [picture({1: (40 + 3 * t, 40, 14)}) for t in range(FRAMES)])


def disc(t, radius=14):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return (x - 40 - 3 * t) ** 2 + (y - 40) ** 2 <= radius**2


def odd(t):
    """A mask that no segmenter would give: a part of the disc, and a pixel elsewhere."""
    mask = disc(t)
    mask[40:] = False
    mask[90, 150] = True
    return mask


def iou(a, b):
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


@pytest.mark.parametrize("at", [0, 3])
def test_a_mask_is_the_mask_of_its_frame_and_is_carried_on(clip, at):
    row = {"object_id": 1, "frame": at, "mask": text_of_mask(odd(at))}
    frames = list(mask_video(clip, [row], segmenter()))
    assert np.array_equal(frames[at].masks[0], odd(at))
    assert (frames[at].states[0], frames[at].scores[0]) == ("prompted", 1.0)
    assert [frame.states[0] for frame in frames].count("tracked") == FRAMES - 1
    for t, frame in enumerate(frames):
        assert iou(frame.masks[0], disc(t)) > (0.4 if t == at else 0.8)


def test_clicks_change_a_mask_and_other_objects_leave_it(clip):
    rows = [
        {"object_id": 1, "frame": 0, "mask": text_of_mask(disc(0))},
        {"object_id": 1, "frame": 0, "x": 40, "y": 40, "label": 0},
        {"object_id": 2, "frame": 0, "x": 120, "y": 80},
    ]
    frame = next(mask_video(clip, rows, segmenter()))
    assert not frame.masks[0, 40, 40]
    assert iou(frame.masks[0], disc(0)) > 0.9
    assert not (frame.masks[1] & frame.masks[0]).any()


def test_polygons_have_holes_and_shares(clip):
    ring = [[20, 20], [60, 20], [60, 60], [20, 60]]
    expected = np.zeros(SIZE, bool)
    expected[20:60, 20:60] = True
    for row in (
        {"polygon": "20,20 60,20 60,60 20,60"},
        {"polygon": ring},
        {"polygon": [[number for pair in ring for number in pair]]},
        {"polygon": "0.125 0.2083333333,0.375 0.2083333333,0.375 0.625,0.125 0.625",
         "coords": "normalized"},
        {"polygon": "40 40 120 40 120 120 40 120", "ref_width": 320, "ref_height": 192},
    ):  # fmt: skip
        frame = next(mask_video(clip, [{"object_id": 1, "frame": 0} | row], segmenter()))
        assert np.array_equal(frame.masks[0], expected), row
    hole = {"object_id": 1, "frame": 0, "polygon": [ring, [[30, 30], [40, 30], [40, 40], [30, 40]]]}
    expected[30:40, 30:40] = False
    assert np.array_equal(next(mask_video(clip, [hole], segmenter())).masks[0], expected)


def test_a_picture_is_read(clip, tmp_path):
    labels = disc(0).astype(np.uint16)
    for name, content in (("grey.png", mask_png(disc(0))), ("davis.png", davis_png(labels))):
        (tmp_path / name).write_bytes(content)
        row = {"object_id": 1, "frame": 0, "prompt_type": "mask", "mask": str(tmp_path / name)}
        assert np.array_equal(next(mask_video(clip, [row], segmenter())).masks[0], disc(0))
    with pytest.raises(ManifestError, match=r"row 1: mask is '.*gone\.png': .*No such file"):
        mask_video(clip, [row | {"mask": str(tmp_path / "gone.png")}], segmenter())


def test_stopping_and_resuming_changes_nothing(clip):
    rows = [
        {"object_id": 1, "frame": 1, "mask": text_of_mask(odd(1))},
        {"object_id": 1, "frame": 4, "polygon": "45,30 60,30 60,55 45,55"},
    ]
    whole = [frame.masks for frame in mask_video(clip, rows, segmenter())]
    run = mask_video(clip, rows, segmenter())
    begun = [next(run).masks for _ in range(2)]
    rest = [frame.masks for frame in mask_video(clip, rows, segmenter(), state=run.state)]
    run.close()
    assert np.array_equal(whole, begun + rest)
    other = [rows[0] | {"mask": text_of_mask(disc(1))}, rows[1]]
    with pytest.raises(ValueError, match="other prompts"):
        mask_video(clip, other, segmenter(), state=run.state)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"polygon": "1,1 5,5"}, "polygon is a ring of 2 corners; expected x and y of at least 3"),
        ({"polygon": "1,1 5,5 7"}, "polygon is of 5 numbers in a ring, an x without its y"),
        ({"polygon": "1,1 5,5 nan,1"}, "of values that are no finite numbers"),
        ({"polygon": "1,1 a,5 7,1"}, "of values that are no numbers"),
        ({"polygon": "[[1,1],"}, "polygon is not JSON"),
        ({"polygon": "1,1 900,5 7,9"}, r"corner of the polygon is \(900, 5\); expected a place in"),
        ({"polygon": "1.1,1.1 1.2,1.1 1.2,1.2"}, "polygon is empty in 160 x 96; expected pixels"),
        ({"polygon": "1,1 5,5 7,1", "label": 0}, "label is 0; expected 1 for a polygon"),
        ({"prompt_type": "polygon"}, "polygon is empty; expected x and y"),
        ({"mask": '{"size": [4, 4], "counts": "4<"}'}, "mask is of 4 x 4 pixels; expected the si"),
        ({"mask": {"size": [4, 4], "counts": [3, 2]}}, "mask is damaged: an RLE has 5 pixels"),
        ({"mask": {"size": [1 << 20, 1 << 20], "counts": [3]}}, "mask is of size "),
        ({"mask": {"size": [96, 160], "counts": 7}}, "mask is without counts"),
        ({"mask": {"size": [96, 160], "counts": [96 * 160]}}, "mask is empty in 160 x 96"),
        ({"mask": "{"}, "mask is not JSON; expected run lengths"),
    ],
)  # fmt: skip
def test_faults(clip, row, message):
    with pytest.raises(ManifestError, match=message):
        mask_video(clip, [{"object_id": 1, "frame": 0} | row], segmenter())


def test_a_box_beside_a_mask_is_a_fault(clip):
    box = {"object_id": 1, "frame": 0, "x": 5, "y": 5, "x2": 50, "y2": 50}
    shown = {"object_id": 1, "frame": 0, "mask": {"size": [*SIZE], "counts": encode_rle(disc(0))}}
    with pytest.raises(ManifestError, match="a box is beside a mask; expected one of them"):
        mask_video(clip, [box, shown], segmenter())
