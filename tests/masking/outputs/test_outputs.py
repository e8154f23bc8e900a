"""Rows of masks and other tools' formats, read back by those tools."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO

from masking.outputs.formats import davis_png, mask_png, write_coco, write_youtube_vos
from masking.outputs.rows import SCHEMA, MaskFile, frames_of, label_map, mask_of, rows_of
from masking.tracking.masks import FrameMasks, Mask

SIZE = (24, 32)


def square(left, top=4, side=10):
    mask = np.zeros(SIZE, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def frame(index, *masks, logits=(4.0, 2.0)):
    found = tuple(None if m is None else Mask("tracked", m, 0.9, 0.8, "forward") for m in masks)
    full = np.stack([np.full(SIZE, value, np.float32) for value in logits[: len(masks)]])
    image = np.zeros((*SIZE, 3), np.uint8)
    return FrameMasks(index, index / 25, image, tuple(range(1, len(masks) + 1)), found, full)


def table(*frames):
    target = io.BytesIO()
    file = MaskFile(target)
    for each in frames:
        file.add(each)
    file.close()
    return pq.read_table(io.BytesIO(target.getvalue()))


def test_rows_come_back_as_they_were_written():
    written = [frame(0, square(2), None), frame(1, square(3), np.zeros(SIZE, bool))]
    found = table(*written)
    assert found.schema.equals(SCHEMA, check_metadata=True)
    frames = dict(frames_of(found))
    assert list(frames) == [0, 1]
    first, untracked = frames[0]
    assert np.array_equal(mask_of(first), square(2))
    assert (first["area"], first["box"], first["state"]) == (100, [2, 4, 10, 10], "tracked")
    assert first["time_s"] == 0
    assert untracked["rle"] is None
    assert untracked["state"] is None
    empty = frames[1][1]
    assert (empty["area"], empty["box"]) == (0, None)
    assert empty["rle"] is not None
    assert not mask_of(empty).any()


def test_rows_of_one_frame_stay_together(monkeypatch):
    monkeypatch.setattr("masking.outputs.rows.GROUP", 3)
    found = table(*[frame(i, square(2), square(15)) for i in range(5)])
    assert [len(rows) for _, rows in frames_of(found)] == [2] * 5


def test_overlaps_are_kept_and_a_label_map_takes_the_surer_one():
    rows = rows_of(frame(0, square(2), square(8)))
    assert np.array_equal(mask_of(rows[1]), square(8))
    assert np.array_equal(label_map(rows) == 1, square(2))
    assert np.array_equal(label_map(rows) == 2, square(8) & ~square(2))
    apart = rows_of(frame(0, square(2), square(20)))
    assert [row["owned"] for row in apart] == [None, None]


def test_davis_has_indices_and_its_colours():
    picture = Image.open(io.BytesIO(davis_png(label_map(rows_of(frame(0, square(2), square(18)))))))
    assert picture.mode == "P"
    assert np.array_equal(np.asarray(picture) == 2, square(18))
    assert picture.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    with pytest.raises(ValueError, match="object 300: an indexed PNG holds ids up to 255"):
        davis_png(np.full(SIZE, 300, np.uint16))
    grey = np.asarray(Image.open(io.BytesIO(mask_png(square(2)))))
    assert np.array_equal(grey, square(2) * np.uint8(255))


def test_coco_reads_it(tmp_path):
    one = table(frame(0, square(2), None), frame(1, square(5), square(18)))
    names = {"a": {1: "dog"}, "b/c": {1: "cat", 2: "dog"}}
    write_coco(tmp_path / "coco.json", [("a", one), ("b/c", one)], names)
    assert [path.name for path in tmp_path.iterdir()] == ["coco.json"]
    read = COCO(str(tmp_path / "coco.json"))
    assert [image["file_name"] for image in read.dataset["images"]][2:] == [
        "b/c/00000.jpg",
        "b/c/00001.jpg",
    ]
    assert [c["name"] for c in read.dataset["categories"]] == ["dog", "object 2", "cat"]
    (first,) = read.loadAnns(read.getAnnIds(imgIds=1))
    assert np.array_equal(read.annToMask(first) > 0, square(2))
    assert first["bbox"] == [2, 4, 10, 10]
    last = read.loadAnns(read.getAnnIds(imgIds=4))
    assert [(each["object_id"], each["category_id"]) for each in last] == [(1, 3), (2, 1)]


def test_youtube_vos_lists_the_frames_of_objects(tmp_path):
    one = table(frame(0, square(2), None), frame(1, square(5), square(18)))
    write_youtube_vos(tmp_path / "meta.json", [("a", one), ('b "2"', one)], {"a": {1: "dog"}})
    videos = json.loads((tmp_path / "meta.json").read_text())["videos"]
    assert list(videos) == ["a", 'b "2"']
    assert videos["a"]["objects"] == {
        "1": {"category": "dog", "frames": ["00000", "00001"]},
        "2": {"category": "object", "frames": ["00001"]},
    }


def test_exports_of_no_video_are_json(tmp_path):
    write_coco(tmp_path / "coco.json", [], {})
    write_youtube_vos(tmp_path / "meta.json", [], {})
    nothing = {"images": [], "annotations": [], "categories": []}
    assert json.loads((tmp_path / "coco.json").read_text()) == nothing
    assert json.loads((tmp_path / "meta.json").read_text()) == {"videos": {}}
