"""Readers of other tools' annotations: what each tool writes, and what is refused by name."""

import json

import numpy as np
import pytest

from masking.imports.cvat import read_cvat_json, read_cvat_xml
from masking.imports.items import ImportsError
from masking.imports.label_studio import read_label_studio
from masking.imports.read import read_annotations
from masking.imports.yolo import read_yolo
from masking.manifest.shapes import pixels_of

META = (
    "<meta><task><size>9</size><original_size><width>64</width><height>48</height></original_size>"
    "<source>clip.mp4</source></task></meta>"
)


def cvat(tracks, version="1.1", meta=META, begin="<?xml version='1.0' encoding='utf-8'?>"):
    text = f"{begin}<annotations><version>{version}</version>{meta}{tracks}</annotations>"
    return read_cvat_xml("a.xml", text.encode())


def track(shapes, number=3, label="dog"):
    return f'<track id="{number}" label="{label}" source="manual">{shapes}</track>'


def box(frame, keyframe=1, outside=0, more="", xtl="2.5"):
    return (
        f'<box frame="{frame}" keyframe="{keyframe}" outside="{outside}" occluded="0" xtl="{xtl}"'
        f' ytl="4" xbr="10" ybr="12.25" z_order="0" {more}><attribute name="a">b</attribute></box>'
    )


def test_keyframes_of_cvat_are_items():
    found = cvat(track(box(0) + box(1, keyframe=0) + box(2) + box(5, outside=1)))
    assert found.faults == []
    assert [(item.frame, item.track, item.name, item.video) for item in found.items] == [
        (0, "3", "dog", "clip.mp4"), (2, "3", "dog", "clip.mp4"), (5, "3", "dog", "clip.mp4"),
    ]  # fmt: skip
    assert found.items[0].cells == {"x": 2.5, "y": 4, "prompt_type": "box", "x2": 10, "y2": 12.25}
    assert found.items[2].cells == {"role": "absent"}
    assert found.items[0].size == (48, 64)


def test_shapes_of_cvat():
    polygon = '<polygon frame="0" keyframe="1" outside="0" points="1.00,2.00;5,2;5,9"/>'
    points = '<points frame="0" keyframe="1" outside="0" points="7.5,8;9,10"/>'
    mask = ('<mask frame="0" keyframe="1" outside="0" rle="1, 2, 3" left="4" top="6" width="3"'
            ' height="2"/>')  # fmt: skip
    line = '<polyline frame="0" keyframe="1" outside="0" points="1,2;3,4"/>'
    found = cvat(track(polygon) + track(points, 4) + track(mask, 5) + track(line + box(1), 6))
    assert found.faults == []
    assert found.left_out == {"polyline": 1}
    cells = [item.cells for item in found.items]
    assert cells[0] == {"prompt_type": "polygon", "polygon": "1.0,2.0 5.0,2.0 5.0,9.0"}
    assert cells[1:3] == [{"x": 7.5, "y": 8}, {"x": 9, "y": 10}]
    expected = np.zeros((48, 64), bool)
    expected[6, 5:7] = True
    assert np.array_equal(pixels_of(cells[3]["mask"]), expected)


def test_a_rotated_box_is_a_polygon():
    (item,) = cvat(track(box(0, more='rotation="90.00"', xtl="2"))).items
    corners = np.array([pair.split(",") for pair in item.cells["polygon"].split()], float)
    assert corners.mean(axis=0) == pytest.approx([6, 8.125])
    assert np.ptp(corners, axis=0) == pytest.approx([8.25, 8])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (track(box(0, keyframe=0)), "a.xml, track 3: no keyframe; expected at least one shape"),
        (track(box("x")), "a.xml, track 3, frame x: frame is 'x'; expected a whole"),
        (track(box(0, xtl="nan")), "track 3, frame 0: a box with 'nan' as a coordinate"),
        (track(box(0, xtl="99")), "track 3, frame 0: a box from (99, 4) to (10, 12.25)"),
        (track('<polygon frame="0" keyframe="1" points="1,2;3,4"/>'), "a polygon of 2 corners"),
        (track('<polygon frame="0" keyframe="1" points="1,2;3"/>'), "a polygon with the points"),
        (track('<mask frame="0" keyframe="1" rle="1,2" left="0" top="0" width="9" height="9"/>'),
         "a mask with runs of 3 pixels in a box of 9 x 9"),
        (track('<mask frame="0" keyframe="1" rle="9" left="60" top="0" width="9" height="1"/>'),
         "a mask that ends outside of the frame of 64 x 48 pixels"),
    ],
)  # fmt: skip
def test_faults_of_cvat_are_named(content, message):
    found = cvat(content + track(box(0), 9))
    assert [message in fault for fault in found.faults] == [True]
    assert [item.track for item in found.items] == ["9"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"version": "1.0"}, "its version is '1.0'; expected 1.1"),
        ({"tracks": '<image id="0" name="a.jpg"/>'}, 'it is of "CVAT for images"'),
        ({"tracks": "<track>"}, "no sound XML"),
        ({"tracks": "<a>" * 80 + "</a>" * 80}, "nested in more than 64 levels"),
    ],
)
def test_xml_of_other_kinds_is_refused(more, message):
    with pytest.raises(ImportsError, match=message):
        cvat(**{"tracks": track(box(0))} | more)


@pytest.mark.parametrize(
    "document",
    [
        '<!DOCTYPE annotations [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;">]>',
        '<!DOCTYPE annotations [<!ENTITY file SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE annotations SYSTEM "http://127.0.0.1:1/a.dtd">',
    ],
)
def test_entities_are_refused(document):
    with pytest.raises(ImportsError, match="it has a document type; expected none"):
        cvat(track(box(0), label="&b;"), begin=document)


def test_other_xml_is_refused():
    with pytest.raises(ImportsError, match="its first element is 'annotation'; expected annotati"):
        read_cvat_xml("a.xml", b"<annotation><folder/></annotation>")


def test_a_backup_of_cvat():
    shapes = [
        {"type": "rectangle", "frame": 2, "outside": False, "points": [1.0, 2.0, 5.0, 9.5]},
        {"type": "rectangle", "frame": 4, "outside": True, "points": [1.0, 2.0, 5.0, 9.5]},
    ]
    mask = {"type": "mask", "frame": 1, "label": "cat", "points": [1, 2, 3, 4, 6, 6, 7]}
    job = {"version": 2, "tags": [{}], "shapes": [mask],
           "tracks": [{"frame": 2, "label": "dog", "shapes": shapes}]}  # fmt: skip
    found = read_cvat_json("annotations.json", [job], (48, 64))
    assert found.faults == []
    assert found.left_out == {"tag": 1}
    assert [(item.frame, item.name, item.starts) for item in found.items] == [
        (2, "dog", True), (4, "dog", True), (1, "cat", False),
    ]  # fmt: skip
    expected = np.zeros((48, 64), bool)
    expected[6, 5:7] = True
    assert np.array_equal(pixels_of(found.items[2].cells["mask"]), expected)
    job["tracks"].append({"label": "cow", "shapes": []})
    shapes[0]["points"] = [1, 2, 3]
    found = read_cvat_json("annotations.json", [job], None)
    assert ["track 0, frame 2: a rectangle with 3 numbers" in found.faults[0],
            "track 1: no keyframe" in found.faults[1],
            "a mask without the size of the frame" in found.faults[2]] == [True] * 3  # fmt: skip


def studio(sequence, **region):
    value = {"framesCount": 20, "labels": ["Car"], "sequence": sequence}
    about = {"id": "r", "type": "videorectangle", "value": value} | region
    return [{"id": 5, "data": {"video": "a.mp4"}, "annotations": [{"result": [about]}]}]


def key(frame, enabled=True, **more):
    return {"frame": frame, "enabled": enabled, "rotation": 0, "x": 25, "y": 50, "width": 10,
            "height": 25, "time": 0.1} | more  # fmt: skip


def test_keyframes_of_label_studio():
    found = read_label_studio("a.json", studio([key(4, False), key(1), key(9), key(20, False)]))
    assert [(item.frame, item.row((48, 64)).get("role")) for item in found.items] == [
        (0, None), (3, None), (4, "absent"), (8, None), (19, None),
    ]  # fmt: skip
    row = found.items[0].row((48, 64))
    assert row == {"x": 16, "y": 24, "prompt_type": "box", "x2": 22.4, "y2": 36}
    (turned,) = read_label_studio("a.json", studio([key(1, rotation=90)])).items
    corners = [pair.split(",") for pair in turned.row((48, 64))["polygon"].split()]
    assert np.array(corners, float) == pytest.approx(
        np.array([[16, 24], [16, 30.4], [4, 30.4], [4, 24]])
    )


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (studio([]), "a.json, task 5, region r: no keyframe; expected a sequence of at least one"),
        (studio([key(0)]), "region r: frame is 0; expected a whole number from 1"),
        (studio([key(1, width=0)]), "region r, frame 1: a keyframe of 0 x 25 per cent"),
        (studio([key(1, x="a")]), "region r, frame 1: a keyframe with x 'a'"),
        ([{"id": 5, "data": {}, "annotations": []}], "a.json, task 5: no video in its data"),
        ([{"id": 5, "data": {"video": "a"}, "annotations": [{}]}], "an annotation without result"),
    ],
)
def test_faults_of_label_studio_are_named(tasks, message):
    found = read_label_studio("a.json", tasks)
    assert [message in fault for fault in found.faults] == [True]
    assert found.items == []


def test_other_regions_and_people_are_left_out():
    tasks = studio([key(1)])
    tasks[0]["annotations"][0]["result"].append({"id": "c", "type": "choices", "value": {}})
    tasks[0]["annotations"].append({"result": []})
    tasks[0]["annotations"].insert(0, {"was_cancelled": True, "result": [{}]})
    found = read_label_studio("a.json", tasks)
    assert (len(found.items), found.faults) == (1, [])
    assert found.left_out == {"choices": 1, "annotation of another person": 1}


def yolo(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_yolo(folder)


def test_boxes_and_tracks_of_yolo(tmp_path):
    found = yolo(
        tmp_path,
        labels__clip_12_txt="0 0.5 0.5 0.25 0.5 0.9 7\n0 0.25 0.25 0.1 0.1 0.8 9\n",
        labels__clip_13_txt="0 0.5 0.5 0.25 0.5 0.9 7\n",
        classes_txt="dog\ncat\n",
    )
    assert found.faults == []
    assert [(i.video, i.frame_name, i.track, i.name) for i in found.items] == [
        ("clip", "clip_12.txt", "7", "dog"), ("clip", "clip_12.txt", "9", "dog"),
        ("clip", "clip_13.txt", "7", "dog"),
    ]  # fmt: skip
    assert found.items[0].row((48, 64)) == {
        "x": 24, "y": 12, "prompt_type": "box", "x2": 40, "y2": 36,
    }  # fmt: skip


def test_labels_without_tracks_are_objects_where_that_is_certain(tmp_path):
    found = yolo(
        tmp_path / "a", v__1_txt="0 .5 .5 .2 .2\n1 .5 .5 .2 .2\n", v__2_txt="1 .5 .5 .2 .2"
    )
    assert [item.track for item in found.items] == ["class 0", "class 1", "class 1"]
    found = yolo(tmp_path / "b", v__1_txt="0 .5 .5 .2 .2\n0 .2 .2 .2 .2\n")
    assert len({item.track for item in found.items}) == 2
    found = yolo(
        tmp_path / "c", v__1_txt="0 .5 .5 .2 .2\n0 .2 .2 .2 .2\n", v__2_txt="0 .5 .5 .2 .2"
    )
    assert found.items == []
    assert "'class 0' is on this frame more than once, and there are labels of 2" in found.faults[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.1 0.1 0.2 0.2 1.5 0.3 0.3", "line 1: 7 numbers behind the class; expected a class"),
        ("0 0.1 0.1 0.2 0.2", "line 1: 4 numbers"),
        ("0 12 14 30 40", "line 1: 12 is no share of the frame"),
        ("dog 0.1 0.1 0.2 0.2", "line 1: the class is 'dog'"),
        ("0 a 0.1 0.2 0.2", "line 1: a value is no number"),
        ("0 0.5 0.5 0 0.2", "line 1: a box of 0 x 0.2"),
        ("5 0.5 0.5 0.1 0.2", "line 1: class 5; expected 0 to 0, the classes that are listed"),
    ],
)
def test_faults_of_yolo_are_named(tmp_path, line, message):
    found = yolo(tmp_path, v__1_txt=line, classes_txt="dog")
    if line == "0 0.1 0.1 0.2 0.2":
        assert found.faults == []
    else:
        assert [message in fault for fault in found.faults] == [True]


def test_folders_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(ImportsError, match="a folder without annotations that are known"):
        read_annotations(tmp_path)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/1.txt").write_text("0 .5 .5 .1 .1")
    (tmp_path / "data.yaml").write_text("nc: 3")
    with pytest.raises(ImportsError, match="expected names, a list of classes"):
        read_annotations(tmp_path)
    (tmp_path / "Annotations/v").mkdir(parents=True)
    (tmp_path / "Annotations/v/00000.png").write_bytes(b"no picture")
    found = read_annotations(tmp_path)
    assert "00000.png: " in found.faults[0]
    (tmp_path / "meta.json").write_text(json.dumps({"videos": []}))
    with pytest.raises(ImportsError, match="expected videos with objects and categories"):
        read_annotations(tmp_path)
