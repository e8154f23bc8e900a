"""COCO files as tools really write them: ids, crowds, coordinates, folders, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masking.training import coco_images
from masking.training.pairs import ImageError, inspect, survey
from tests.masking.training.pictures import ALL, H, W, image

SQUARE = [[4, 6, 20, 6, 20, 26, 4, 26]]
LISTED = {"id": 1, "file_name": "a.png", "height": H, "width": W}


def written(folder, images=(LISTED,), annotations=({},), files=("a.png",), at="x.json"):
    """Write a COCO file and its images; annotations have a square on image 1 where not said."""
    for number, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(seed=number)).save(folder / file)
    default = {"image_id": 1, "segmentation": SQUARE}
    rows = [{"id": 1 + row} | default | each for row, each in enumerate(annotations)]
    (folder / at).parent.mkdir(parents=True, exist_ok=True)
    (folder / at).write_text(json.dumps({"images": list(images), "annotations": rows}))
    return folder / at


def refused(path):
    with pytest.raises(ImageError) as caught:
        survey([path], ALL)
    return [fault.removeprefix(str(path)) for fault in caught.value.faults]


def test_an_image_id_that_is_given_twice_is_refused_with_both_files(tmp_path):
    for again in (1, "1", 1.0):
        images = [LISTED, LISTED | {"id": again, "file_name": "b.png"}]
        [fault] = refused(written(tmp_path, images, [{"segmentation": [[0, 0, 3]]}]))
        assert fault.startswith(": the image id 1 is given twice, to a.png and to b.png, so their")


def test_an_image_that_is_listed_again_is_one_image(tmp_path):
    found = survey([written(tmp_path, [LISTED, LISTED])], ALL)
    assert len(found) == 1
    assert "1 images are listed again, which changes nothing" in found.notes[0]


def test_a_file_of_two_ids_is_noted(tmp_path):
    found = survey([written(tmp_path, [LISTED, LISTED | {"id": 2}])], ALL)
    assert "1 files have more than one id; objects of one id are background" in found.notes[0]


@pytest.mark.parametrize(("one", "other"), [(7, "7"), ("7", 7), (7.0, 7), (" 7", 7), ("a", "a")])
def test_ids_as_text_and_as_numbers_are_the_same(tmp_path, one, other):
    path = written(tmp_path, [LISTED | {"id": one}], [{"image_id": other}])
    assert len(survey([path], ALL)[0].masks) == 1


@pytest.mark.parametrize("value", [1, True, "1", "true", 1.0, " True "])
def test_nothing_but_crowds_says_why_no_image_shows_an_object(tmp_path, value):
    path = written(tmp_path, annotations=[{"iscrowd": value}, {"iscrowd": value}])
    faults = refused(path)
    assert faults[0] == ": no image shows an object"
    assert faults[1].startswith(
        ": 2 of 2 segmentations are crowds (iscrowd is 1): their pixels are"
    )
    assert "CVAT writes iscrowd 1" in faults[1]


@pytest.mark.parametrize("value", [0, False, "0", "false", 0.0, None, ""])
def test_what_is_no_crowd(tmp_path, value):
    found = survey([written(tmp_path, annotations=[{"iscrowd": value}, {"iscrowd": 1}])], ALL)
    assert len(found[0].masks) == 1
    [note] = found.notes
    assert "1 of 2 segmentations are crowds" in note


@pytest.mark.parametrize("value", [2, "yes", [], {"a": 1}, float("nan")])
def test_iscrowd_that_is_neither(tmp_path, value):
    [fault] = refused(written(tmp_path, annotations=[{"iscrowd": value}]))
    assert fault.startswith(", image a.png: annotation 1 has the iscrowd ")
    assert fault.endswith("; expected 0 or 1")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (float("nan"), "has nan among the coordinates of a polygon; expected pixels"),
        (float("inf"), "has a polygon with the coordinate inf, far outside its image, which"),
        (-float("inf"), "the coordinate -inf, far outside"),
        (3e9, "the coordinate 3000000000.0, far outside its image, which has 40x30 pixels"),
        (-(2**40), "the coordinate -1099511627776, far outside"),
        (10**400, "far outside"),
        (W * 4, "the coordinate 160, far outside"),
        ("12", "has '12' among the coordinates"),
        (None, "has None among the coordinates"),
        ([1, 2], "has [1, 2] among the coordinates"),
    ],
)  # fmt: skip
def test_coordinates_that_are_no_pixels_are_refused(tmp_path, x, message):
    [fault] = refused(written(tmp_path, annotations=[{"segmentation": [[4, 6, 20, x, 20, 26]]}]))
    assert fault.startswith(", image a.png: annotation 1 has ")
    assert message in fault


def test_an_annotation_without_an_id_is_named_by_its_row(tmp_path):
    given = [{}, {"id": None, "segmentation": 5}]
    [fault] = refused(written(tmp_path, annotations=given))
    assert fault.startswith(", image a.png: annotations[1] has the segmentation 5; expected")


def test_coordinates_as_shares_of_the_image_are_refused(tmp_path):
    shares = [[0.1, 0.2, 0.5, 0.2, 0.5, 1.0003, 0.1, 0.9]]
    [fault] = refused(written(tmp_path, annotations=[{"segmentation": shares}]))
    assert "has no coordinate above 1.0003: they seem to be shares of the image" in fault
    assert "multiply x by the width and y by the height" in fault


def test_polygons_that_leave_the_image_are_cut_off(tmp_path):
    beyond = [[-10, 6, W + 9, 6, W + 9, H + 4, -10, H + 4]]
    mask = survey([written(tmp_path, annotations=[{"segmentation": beyond}])], ALL)[0].masks[0]
    np.testing.assert_array_equal(mask, np.arange(H)[:, None].repeat(W, 1) >= 6)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, -1, 5], "-1 among its counts"),
        ([H * W + 1], f"{H * W + 1} among its counts"),
        ([10**30], "among its counts"),
        ([0.5], "0.5 among its counts"),
        (["3"], "'3' among its counts"),
        (7, "with the counts 7"),
        (None, "with the counts None"),
        ("\u00e9", "expected a list, or text of ASCII"),
    ],
)
def test_run_lengths_that_are_none_are_refused(tmp_path, counts, message):
    rle = {"size": [H, W], "counts": counts}
    [fault] = refused(written(tmp_path, annotations=[{"segmentation": rle}]))
    assert fault.startswith(", image a.png: annotation 1 is an RLE ")
    assert message in fault


def test_run_lengths_that_do_not_add_up_cost_only_their_image(tmp_path):
    for counts in ([5, 5], "04", "o" * 40 + "0", ""):
        rle = {"size": [H, W], "counts": counts}
        path = written(tmp_path, annotations=[{"segmentation": rle}])
        [fault] = inspect(survey([path], ALL)).faults.values()
        assert str(fault).startswith(f"{path}, image a.png: an RLE has ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": None}, "'a.png', id 1: no height"),
        ({"width": None}, "'a.png', id 1: no width"),
        ({"id": None}, "'a.png', id None: no id"),
        ({"file_name": None}, "id 1: no file_name"),
        ({"file_name": 5}, "id 1: file_name is 5; expected the name of a file"),
        ({"file_name": "a\0.png"}, "id 1: file_name is 'a\\x00.png'"),
        ({"file_name": "\ud800"}, "id 1: file_name is '\\ud800'"),
        ({"height": 0}, "a.png, id 1: height is 0; expected pixels"),
        ({"height": "x"}, "a.png, id 1: height is 'x'"),
        ({"width": float("inf")}, "a.png, id 1: width is inf"),
        ({"width": 40.5}, "a.png, id 1: width is 40.5"),
        ({"id": True}, "'a.png', id True: expected a number or text as its id"),
        ({"id": [1]}, "'a.png', id [1]: expected a number"),
    ],
)
def test_an_image_with_a_fault_is_named_and_its_annotations_are_no_further_fault(
    tmp_path, change, message
):
    images = [LISTED | {"id": 5, "file_name": "b.png"}, LISTED | change]
    faults = refused(written(tmp_path, images))
    assert faults[0].startswith(f", images[1]: {message}")
    assert len(faults) == (2 if "id" in change else 1)


def test_rows_of_other_kinds_are_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [LISTED, 5], "annotations": ["a", {"id": 3}]}))
    faults = refused(path)
    assert faults == [
        ", images[1]: 5; expected id, file_name, height and width",
        ", annotations[0]: no image_id; it is 'a'",
        ", annotations[1]: no image_id; it is {'id': 3}",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON file that can be read"),
        (b"[" * 100_000, "not a JSON file that can be read"),
        (b"\xff\xfe\xfa", "not a JSON file that can be read"),
        (b'{"images": ' + b"9" * 5000 + b"}", "not a JSON file that can be read"),
        (b"[1, 2]", "no list of images; it [1, 2]"),
        (b'{"images": []}', "no list of annotations; it has ['images']"),
        (b'{"images": {}, "annotations": []}', "no list of images"),
    ],
)
def test_files_that_are_no_coco(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    [fault] = refused(tmp_path / "x.json")
    assert message in fault


@pytest.mark.parametrize(
    ("name", "file", "at"),
    [
        ("a.png", "images/default/a.png", "annotations/instances_default.json"),
        ("default/a.png", "images/default/a.png", "annotations/x.json"),
        ("a.png", "images/train/a.png", "x.json"),
        ("train\\a.png", "images/train/a.png", "annotations/x.json"),
        ("C:\\data\\a.png", "images/a.png", "x.json"),
        ("/home/me/set/train/a.png", "train/a.png", "annotations/x.json"),
        ("./a.png", "a.png", "x.json"),
        ("b\\a.png", "b\\a.png", "x.json"),
    ],
)
def test_images_are_found_in_the_layouts_that_tools_write(tmp_path, name, file, at):
    path = written(tmp_path / "set", [LISTED | {"file_name": name}], files=[file], at=at)
    np.testing.assert_array_equal(survey([path], ALL)[0].image, image(seed=0))


def test_folders_that_names_have_in_common_are_left_out_and_others_kept(tmp_path):
    names = ["D:\\set\\train\\a.png", "D:\\set\\val\\a.png"]
    images = [LISTED | {"id": n, "file_name": name} for n, name in enumerate(names)]
    files = ["images/train/a.png", "images/val/a.png"]
    path = written(tmp_path, images, [{"image_id": 0}, {"image_id": 1}], files)
    found = survey([path], ALL)
    for row in (0, 1):
        np.testing.assert_array_equal(found[row].image, image(seed=row))


def test_the_subset_of_the_files_name_is_taken(tmp_path):
    files = ["images/train/a.png", "images/val/a.png"]
    path = written(tmp_path, files=files, at="annotations/instances_val.json")
    np.testing.assert_array_equal(survey([path], ALL)[0].image, image(seed=1))


def test_a_relative_path_finds_images_above(tmp_path, monkeypatch):
    written(tmp_path, at="annotations/x.json")
    monkeypatch.chdir(tmp_path / "annotations")
    assert len(survey([Path("x.json")], ALL)[0].masks) == 1


def test_few_images_of_many_that_are_listed_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_images, "FEW", (2, 100))
    images = [LISTED | {"id": n, "file_name": f"{n}.png"} for n in range(60)]
    annotations = [{"image_id": n} for n in range(60)]
    found = survey([written(tmp_path / "set", images, annotations, ["images/31.png"])], ALL)
    assert len(found[31].masks) == 1
    assert len(inspect(found).faults) == 59


def test_images_that_are_nowhere_say_where_they_were_looked_for(tmp_path):
    path = written(tmp_path / "set", files=["images/x/y/a.png"])
    (tmp_path / "set" / ("n" * 200)).mkdir()
    [fault] = refused(path)
    assert fault.startswith(": no image of it is there, such as a.png. They were looked for in ")
    assert f"{tmp_path}/set, {tmp_path}/set/images, " in fault
    assert "at most two folders deep" in fault


def test_a_name_that_is_too_long_is_an_image_that_is_missing(tmp_path):
    images = [LISTED, LISTED | {"id": 2, "file_name": "n" * 5000}]
    found = inspect(survey([written(tmp_path, images, [{}, {"image_id": 2}])], ALL)).faults
    assert list(found) == [1]


def exif(path, orientation):
    picture = Image.fromarray(image())
    about = picture.getexif()
    about[0x0112] = orientation
    picture.save(path, exif=about)


def test_images_that_exif_turns_are_counted(tmp_path):
    path = written(tmp_path, [LISTED, LISTED | {"id": 2, "file_name": "b.png"}],
                   [{}, {"image_id": 2}], ["a.png", "b.png"])  # fmt: skip
    assert inspect(survey([path], ALL)).notes == ()
    exif(tmp_path / "a.png", 3)
    found = inspect(survey([path], ALL))
    assert not found.faults
    [note] = found.notes
    assert note.startswith("1 images were turned as their EXIF orientation says")
    assert "exiftool" in note


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_sizes_that_exif_swaps_name_exif(tmp_path, orientation):
    path = written(tmp_path)
    exif(tmp_path / "a.png", orientation)
    [fault] = inspect(survey([path], ALL)).faults.values()
    assert "has 30x40 pixels, the JSON file says 40x30. The image's EXIF orientation" in str(fault)


def test_more_objects_than_memory_holds_are_a_fault_of_their_image(tmp_path, monkeypatch):
    monkeypatch.setattr("masking.training.pair.MOST", 5 * H * W)
    path = written(tmp_path, annotations=[{}] * 6)
    [fault] = inspect(survey([path], ALL)).faults.values()
    assert "6 objects of 40x30 pixels take" in str(fault)
