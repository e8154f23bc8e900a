"""Masks as annotations of other tools, read back as these tools read them."""

import json
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO

from masking.images.masks import decode_rle
from masking.outputs.annotations.cvat import write_cvat
from masking.outputs.annotations.label_studio import write_label_studio
from masking.outputs.annotations.mot import mot_files
from masking.outputs.annotations.tracks import clip_of, tracks_of
from masking.outputs.annotations.yolo import data_yaml, yolo_lines
from masking.outputs.formats import write_coco
from masking.outputs.rows import frames_of, rows_of
from masking.tracking.masks import FrameMasks, Mask
from tests.masking.outputs.test_outputs import SIZE, frame, square, table

NAMES = {1: "dog", 2: 'a "cat" & <co>'}
EMPTY = np.zeros(SIZE, bool)


def ring_and_dot():
    mask = square(4, 4, 12)
    mask[8:12, 8:12] = False
    mask[20, 28] = True
    return mask


def moving():
    """Seven frames: object 1 moves, is out of sight on frames 3 and 4, and is prompted on 6; object
    2 stays until frame 2."""
    frames = []
    for t in range(7):
        first = EMPTY if t in (3, 4) else square(2 + 2 * t)
        one = frame(t, first, ring_and_dot() if t < 3 else EMPTY)
        if t == 6:
            one = replace(one, found=(replace(one.found[0], state="prompted"), one.found[1]))
        frames.append(one)
    return table(*frames)


def test_coco_has_polygons_by_choice(tmp_path):
    masks = moving()
    write_coco(tmp_path / "coco.json", [("a", masks)], {"a": NAMES}, polygons=True)
    read = COCO(str(tmp_path / "coco.json"))
    expected = [row for _, rows in frames_of(masks) for row in rows if row["area"]]
    assert len(read.anns) == len(expected)
    for number, row in enumerate(expected, 1):
        assert isinstance(read.anns[number]["segmentation"], list)
        assert np.array_equal(read.annToMask(read.anns[number]) > 0, decode_rle(row["rle"], SIZE))


def read_yolo(line):
    """Return class and mask of a line, as Ultralytics' `polygon2mask`, which rounds down, and
    `supervision`, which rounds, both do."""
    number, *values = line.split()
    points = np.array(values, np.float64).reshape(-1, 2) * SIZE[::-1]
    assert np.array_equal(points.astype(np.int32), np.rint(points))
    points = points.astype(np.int32)
    mask = np.zeros(SIZE, np.uint8)
    cv2.fillPoly(mask, [points], 1)
    return int(number), mask > 0


def test_yolo_has_holes_and_parts():
    lines = yolo_lines(
        rows_of(frame(0, square(2), ring_and_dot())), NAMES, ["cat", *NAMES.values()]
    )
    first, second = map(read_yolo, lines.splitlines())
    assert first[0] == 1
    assert np.array_equal(first[1], square(2))
    number, mask = second
    assert number == 2
    assert not (ring_and_dot() & ~mask).any()
    # A line of pixels joins the parts; the hole is still there.
    assert np.count_nonzero(mask & ~ring_and_dot()) <= 14
    assert not mask[9:11, 9:11].any()
    dot = yolo_lines(rows_of(frame(0, ring_and_dot() & ~square(4, 4, 12))), NAMES, ["dog"])
    assert len(dot.split()) == 1 + 2 * 3
    assert np.array_equal(read_yolo(dot)[1], ring_and_dot() & ~square(4, 4, 12))
    assert yolo_lines(rows_of(frame(0, EMPTY)), NAMES, ["dog"]) == ""


def test_yolo_lists_its_classes():
    found = yaml.safe_load(data_yaml(["dog", 'a "cat": 1', "no"]))
    assert found == {
        "train": "images",
        "val": "images",
        "names": {0: "dog", 1: 'a "cat": 1', 2: "no"},
    }


def cvat(path, polygons):
    masks = moving()
    clip = clip_of(masks, "videos/a", "/data/a.mp4", 25.0)
    write_cvat(path, masks, clip, NAMES, polygons)
    return ElementTree.parse(path).getroot()


def test_cvat_has_a_track_an_object(tmp_path):
    root = cvat(tmp_path / "a.xml", polygons=False)
    assert root.findtext("version") == "1.1"
    task = root.find("meta/task")
    assert (task.findtext("size"), task.findtext("stop_frame")) == ("7", "6")
    assert task.findtext("source") == "a.mp4"
    assert (task.findtext("original_size/width"), task.findtext("original_size/height")) == (
        "32",
        "24",
    )
    assert {label.findtext("name") for label in task.iter("label")} == set(NAMES.values())
    first, second = root.iter("track")
    assert (first.get("label"), second.get("label")) == (NAMES[1], NAMES[2])
    shapes = [(int(s.get("frame")), s.get("keyframe"), s.get("outside")) for s in first]
    assert shapes == [
        (0, "1", "0"), (1, "0", "0"), (2, "1", "0"), (3, "1", "1"), (5, "1", "0"), (6, "1", "0"),
    ]  # fmt: skip
    assert [float(first[1].get(side)) for side in ("xtl", "ytl", "xbr", "ybr")] == [4, 4, 14, 14]
    assert [s.get("outside") for s in second] == ["0", "0", "0", "1"]


def test_cvat_interpolates_boxes_to_what_they_are(tmp_path):
    """Between keyframes CVAT moves each edge of a box evenly."""
    rng = np.random.default_rng(0)
    frames, left = [], 4.0
    for t in range(40):
        left = np.clip(left + rng.normal(0, 1.5), 0, 20)
        frames.append(frame(t, square(round(left))))
    masks = table(*frames)
    write_cvat(tmp_path / "a.xml", masks, clip_of(masks, "a", "a.mp4", None), {}, polygons=False)
    (track,) = ElementTree.parse(tmp_path / "a.xml").getroot().iter("track")
    keys = [shape for shape in track if shape.get("keyframe") == "1"]
    assert 2 < len(keys) < 40
    own = {int(s.get("frame")): float(s.get("xtl")) for s in track}
    for a, b in pairwise(keys):
        first, last = int(a.get("frame")), int(b.get("frame"))
        for t in range(first, last):
            share = (t - first) / (last - first)
            between = (1 - share) * float(a.get("xtl")) + share * float(b.get("xtl"))
            assert abs(between - own[t]) <= 1


def test_cvat_shows_polygons_as_they_are(tmp_path):
    root = cvat(tmp_path / "a.xml", polygons=True)
    masks = {(r["object_id"], f): r for f, rows in frames_of(moving()) for r in rows if r["area"]}
    seen = 0
    for track in root.iter("track"):
        for shape in track:
            assert (shape.tag, shape.get("keyframe")) == ("polygon", "1")
            if shape.get("outside") == "0":
                points = [p.split(",") for p in shape.get("points").split(";")]
                mask = np.zeros(SIZE, np.uint8)
                fine = np.array(points, np.float64)
                y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
                mask = inside(fine, x, y)
                row = masks[int(track.get("id")), int(shape.get("frame"))]
                assert np.array_equal(mask, decode_rle(row["rle"], SIZE))
                seen += 1
    assert seen == len(masks)


def inside(ring, x, y):
    """Return which points lie inside a ring, by the number of its sides on their left."""
    found = np.zeros(x.shape, bool)
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if y1 != y2:
            crossed = ((y1 > y) != (y2 > y)) & (x > x1 + (y - y1) / (y2 - y1) * (x2 - x1))
            found ^= crossed
    return found


def test_label_studio_counts_frames_from_one(tmp_path):
    masks = moving()
    clip = clip_of(masks, "a", "/data/a.mp4", 25.0)
    write_label_studio(tmp_path / "tasks.json", [(clip, masks)] * 2, {"a": NAMES})
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert len(tasks) == 2
    assert tasks[0]["data"] == {"video": "/data/a.mp4", "video_id": "a"}
    first, second = tasks[0]["annotations"][0]["result"]
    assert (first["type"], first["value"]["labels"]) == ("videorectangle", ["dog"])
    assert first["value"]["framesCount"] == 7
    assert first["value"]["duration"] == pytest.approx(7 / 25)
    keys = [(key["frame"], key["enabled"]) for key in first["value"]["sequence"]]
    assert keys == [(1, True), (3, False), (6, True), (7, True)]
    key = first["value"]["sequence"][1]
    assert (key["x"], key["width"]) == pytest.approx((100 * 6 / 32, 100 * 10 / 32))
    assert (key["y"], key["height"]) == pytest.approx((100 * 4 / 24, 100 * 10 / 24))
    assert key["time"] == pytest.approx(2 / 25)
    assert [key["enabled"] for key in second["value"]["sequence"]] == [True, False]


def test_mot_has_a_line_a_frame_and_object():
    masks = moving()
    clip = clip_of(masks, "videos/a", "/data/a.mp4", 29.97)
    files = mot_files(masks, clip, NAMES, ["cow", *NAMES.values()])
    lines = [list(map(int, line.split(","))) for line in files["gt/gt.txt"].splitlines()]
    assert lines[:2] == [[1, 1, 2, 4, 10, 10, 1, 2, 1], [1, 2, 4, 4, 25, 17, 1, 3, 1]]
    assert [line[0] for line in lines if line[1] == 1] == [1, 2, 3, 6, 7]
    assert files["gt/labels.txt"].splitlines() == ["cow", *NAMES.values()]
    about = files["seqinfo.ini"].splitlines()
    assert {"name=videos/a", "seqLength=7", "frameRate=29.97", "imWidth=32"} <= set(about)


def test_masks_that_are_uncertain_do_not_count_in_mot():
    one = Mask("uncertain", square(2), 0.5, 0.5, "forward")
    image = np.zeros((*SIZE, 3), np.uint8)
    masks = table(FrameMasks(0, 0.0, image, (1,), (one,), np.zeros((1, *SIZE), np.float32)))
    clip = clip_of(masks, "a", "a.mp4", None)
    assert mot_files(masks, clip, {}, ["object 1"])["gt/gt.txt"] == "1,1,2,4,10,10,0,1,1\n"


def test_tracks_of_objects_that_are_never_seen_are_empty():
    (track,) = tracks_of(table(frame(0, EMPTY), frame(1, EMPTY)))
    assert track.runs == ()
