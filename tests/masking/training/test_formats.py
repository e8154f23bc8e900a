"""COCO files and DAVIS folders as training data."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from masking.training.pair import NothingToLearnError
from masking.training.pairs import ImageError, inspect, survey
from tests.masking.training.pictures import ALL, H, W, image, labels


def rle(mask, packed):
    code = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    if packed:
        return {"size": code["size"], "counts": code["counts"].decode()}
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [2]])
    ends = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], ends])).tolist()
    return {"size": list(mask.shape), "counts": counts}


def rectangle(x1, y1, x2, y2):
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def coco(folder, annotations, where="", name="instances.json", names=("a.png", "b.png")):
    (folder / where).mkdir(parents=True, exist_ok=True)
    images = []
    for number, file in enumerate(names):
        Image.fromarray(image(seed=number)).save(folder / where / file)
        images.append({"id": 7 + number, "file_name": file, "height": H, "width": W})
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    content = {"images": images, "annotations": [{"id": n} | a for n, a in enumerate(annotations)]}
    path.write_text(json.dumps(content))
    return path


def filled(top, left, bottom, right):
    mask = np.zeros((H, W), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("packed", [False, True])
def test_coco(tmp_path, packed):
    crowd = filled(0, 0, 10, 40)
    path = coco(
        tmp_path,
        [
            {"image_id": 8, "segmentation": rectangle(4, 6, 20, 26), "iscrowd": 0},
            {"image_id": 8, "segmentation": rectangle(10, 6, 30, 20)},
            {"image_id": 8, "segmentation": rle(crowd, packed), "iscrowd": 1},
            {"image_id": 8, "segmentation": rle(filled(20, 30, 30, 40), packed)},
        ],
    )
    found = survey([path], ALL)
    assert [entry.name for entry in found.entries] == [f"{path}, image b.png"]
    crowds, empty = found.notes
    assert crowds.startswith(f"{path}: 1 of 4 segmentations are crowds")
    assert empty == f"{path}: 1 of 2 images show no object: left out"
    pair = found[0]
    np.testing.assert_array_equal(pair.image, image(seed=1))
    masks = [filled(6, 4, 26, 20), filled(6, 10, 20, 30), filled(20, 30, 30, 40)]
    np.testing.assert_array_equal(pair.masks, masks)  # overlapping, each whole
    np.testing.assert_array_equal(pair.ignore, crowd & ~np.any(masks, axis=0))
    assert not pair.regions


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("", "x.json"), ("images", "x.json"), ("val2017", "annotations/instances_val2017.json"),
        ("images", "annotations/x.json"),
    ],
)  # fmt: skip
def test_coco_images_beside_or_above(tmp_path, where, name):
    one = {"image_id": 7, "segmentation": rectangle(4, 6, 20, 26)}
    path = coco(tmp_path, [one], where, name)
    coco(tmp_path, [one], "other", "other.json")  # the same names, which must not be taken
    Image.fromarray(image(seed=9)).save(tmp_path / "other" / "a.png")
    np.testing.assert_array_equal(survey([path], ALL)[0].image, image(seed=0))


@pytest.mark.parametrize("radius", [6, 25, 80])
def test_coco_polygons_against_pycocotools(tmp_path, radius):
    rng = np.random.default_rng(radius)
    shape, overlap = (200, 220), []
    Image.fromarray(image(*shape)).save(tmp_path / "a.png")
    polygons = []
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 10))
        ends = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius
        centres = rng.uniform(70, 130, (2, 2))  # two parts, which may overlap or leave the image
        polygons.append([(ends + c).ravel().tolist() for c in centres])
    images = [{"id": 1, "file_name": "a.png", "height": shape[0], "width": shape[1]}]
    annotations = [{"id": n, "image_id": 1, "segmentation": p} for n, p in enumerate(polygons)]
    (tmp_path / "x.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    masks = survey([tmp_path], ALL)[0].masks
    for mask, polygon in zip(masks, polygons, strict=True):
        codes = coco_masks.merge(coco_masks.frPyObjects(polygon, *shape))
        expected = coco_masks.decode(codes).astype(bool)
        overlap.append((mask & expected).sum() / (mask | expected).sum())
    assert np.mean(overlap) > {6: 0.9, 25: 0.97, 80: 0.99}[radius]


def test_an_image_of_a_coco_file_that_is_not_there_costs_no_other(tmp_path):
    path = coco(
        tmp_path,
        [{"image_id": i, "segmentation": rectangle(2, 2, 20, 20)} for i in (7, 8)],
    )
    (tmp_path / "b.png").unlink()
    pairs = survey([path], ALL)
    assert len(pairs[0].masks) == 1
    found = inspect(pairs).faults
    assert list(found) == [1]
    assert str(found[1]) == f"{path}, image b.png: the image {tmp_path / 'b.png'} does not exist"


def test_coco_faults(tmp_path):
    path = coco(
        tmp_path,
        [
            {"image_id": 7},
            {"image_id": 7, "segmentation": [1, 2, 3, 4, 5, 6]},
            {"image_id": 7, "segmentation": [[1, 2, 3, 4]]},
            {"image_id": 8, "segmentation": rle(np.ones((5, 5), bool), True)},
            {"image_id": 99, "segmentation": rectangle(1, 1, 5, 5)},
        ],
    )
    (tmp_path / "no.json").write_text('{"images": 3}')
    with pytest.raises(ImageError) as error:
        survey([path, tmp_path / "no.json", tmp_path], ALL)
    expected = [
        f"{path}: annotations of image 99, which is not listed",
        f"{path}, image a.png: annotation 1 has a polygon that is not a list",
        f"{path}, image a.png: annotation 2 has a polygon that is not a list",
        f"{path}, image b.png: annotation 3 is an RLE of size [5, 5]; expected [30, 40]",
        f"{tmp_path / 'no.json'}: not COCO JSON",
        f"{tmp_path}: holds 2 .json files; name the one",
    ]
    assert len(error.value.faults) == len(expected)
    for fault, start in zip(error.value.faults, expected, strict=True):
        assert fault.startswith(start)


def test_coco_of_a_subset_with_boxes(tmp_path):
    """An image without masks need not be there, and a box without a mask is no fault."""
    given = [
        {"image_id": 7, "segmentation": rectangle(4, 6, 20, 26)},
        {"image_id": 7, "segmentation": [], "bbox": [1, 2, 3, 4]},
    ]
    path = coco(tmp_path, given)
    (tmp_path / "b.png").unlink()
    found = survey([path], ALL)
    assert len(found) == len(found[0].masks) == 1
    assert found.notes == (
        f"{path}: 1 annotations have no segmentation: left out",
        f"{path}: 1 of 2 images show no object: left out",
    )


@pytest.mark.parametrize("wrong", [3, {"size": 30, "counts": "x"}, {"size": None}])
def test_coco_that_is_odd_in_kind(tmp_path, wrong):
    given = [
        {"image_id": 7, "segmentation": wrong},
        {"image_id": "a", "segmentation": rectangle(4, 6, 20, 26)},
        {"image_id": 99, "segmentation": rectangle(4, 6, 20, 26)},
    ]
    with pytest.raises(ImageError, match="annotations of image 'a', which is not listed") as error:
        survey([coco(tmp_path, given)], ALL)
    assert "annotation 0" in error.value.faults[2]


def test_coco_image_of_another_size(tmp_path):
    path = coco(tmp_path, [{"image_id": 7, "segmentation": rectangle(4, 6, 20, 26)}])
    Image.fromarray(image(50, 60)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"image a.png: .*a.png has 60x50 pixels, .* says 40x30"):
        survey([path], ALL)[0]


def davis(folder, level, frames, palette=True):
    for name, map_ in frames.items():
        for part in ("JPEGImages", "Annotations"):
            (folder / part / level / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image()).save(folder / "JPEGImages" / level / f"{name}.jpg", quality=95)
        picture = Image.fromarray(map_)
        if palette:
            picture.putpalette(np.arange(768, dtype=np.uint8).tobytes())
        picture.save(folder / "Annotations" / level / f"{name}.png")
    return folder


@pytest.mark.parametrize("level", ["", "480p", "Full-Resolution"])
def test_davis(tmp_path, level):
    map_ = labels(2)
    map_[:2] = 255
    davis(tmp_path, level, {"b/00000": map_, "a/00005": labels(1)})
    if level == "480p":
        davis(tmp_path, "1080p", {"a/00005": labels(1)})
    Image.fromarray(image()).save(tmp_path / "JPEGImages" / level / "a" / "00006.jpg")
    found = survey([tmp_path], ALL)
    annotations = tmp_path / "Annotations" / level
    assert [e.name for e in found.entries] == [
        str(annotations / "a" / "00005.png"),
        str(annotations / "b" / "00000.png"),
    ]
    np.testing.assert_array_equal(found[1].masks, [map_ == 1, map_ == 2])
    np.testing.assert_array_equal(found[1].ignore, map_ == 255)
    with Image.open(tmp_path / "JPEGImages" / level / "b" / "00000.jpg") as picture:
        np.testing.assert_array_equal(found[1].image, np.asarray(picture))


def test_davis_2016_has_255_for_its_object(tmp_path):
    davis(tmp_path, "480p", {"a/00000": labels(1, first=255)}, palette=False)
    np.testing.assert_array_equal(survey([tmp_path], ALL)[0].masks, [labels(1) > 0])


def test_davis_faults(tmp_path):
    davis(tmp_path, "", {"a/00000": labels(), "a/00001": labels(), "b/00000": labels(0)})
    (tmp_path / "JPEGImages" / "a" / "00001.jpg").unlink()
    with pytest.raises(ImageError, match=r"^.*Annotations/a/00001.png: its image .*00001.jpg"):
        survey([tmp_path], ALL)
    (tmp_path / "Annotations" / "a" / "00001.png").unlink()
    found = survey([tmp_path], ALL)
    [fault] = inspect(found).faults.values()
    assert str(fault) == f"{tmp_path}/Annotations/b/00000.png: no object on this frame"
    assert isinstance(fault, NothingToLearnError)  # it has left, which is no fault of the data's


def test_davis_endings_in_capitals(tmp_path):
    davis(tmp_path, "", {"a/00000": labels()})
    for folder, old, new in (("JPEGImages", "jpg", "JPG"), ("Annotations", "png", "PNG")):
        (tmp_path / folder / "a" / f"00000.{old}").rename(tmp_path / folder / "a" / f"00000.{new}")
    assert survey([tmp_path], ALL)[0].masks.shape == (3, H, W)


def test_git_lfs_pointers_are_named_in_every_format(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
    for name in ("x.parquet", "x.json"):
        (tmp_path / name).write_bytes(pointer)
        with pytest.raises(ImageError, match=rf"{name}: is a Git LFS pointer.*git lfs pull"):
            survey([tmp_path / name], ALL)
    davis(tmp_path / "set", "", {"a/00000": labels(), "a/00001": labels()})
    (tmp_path / "set/JPEGImages/a/00000.jpg").write_bytes(pointer)
    (tmp_path / "set/Annotations/a/00001.png").write_bytes(pointer)
    faulty = inspect(survey([tmp_path / "set"], ALL)).faults
    assert [str(each).count("the file is a Git LFS pointer") for each in faulty.values()] == [1, 1]
