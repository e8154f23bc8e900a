"""Annotations of other tools become manifests; what this project exports comes back as it was."""

import json

import numpy as np
import pytest
from PIL import Image

from jobs import convert
from masking.imports.items import ImportsError
from masking.imports.read import read_annotations
from masking.manifest.formats.read import parse_table
from masking.manifest.table import read_manifest
from masking.outputs.annotations.cvat import write_cvat
from masking.outputs.annotations.label_studio import write_label_studio
from masking.outputs.annotations.tracks import clip_of
from masking.outputs.annotations.yolo import data_yaml, yolo_lines
from masking.outputs.formats import davis_png, write_coco
from masking.outputs.rows import frames_of, label_map, mask_of
from masking.tracking.masking import resolve_prompts
from masking.tracking.masks import FrameMasks, Mask
from masking.video.reader import Video
from tests.masking.outputs.test_outputs import table
from tests.masking.video.clips import write_video

SIZE = (48, 64)
FRAMES = 8
NAMES = {1: "dog", 2: "cat & co"}
VARIABLE = [0, 0.04, 0.1, 0.4, 0.5, 0.9, 1.0, 1.03]


def masks_at(t):
    """A square that moves by a pixel a frame, and a ring with a dot that is there until frame 4."""
    first, second = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    first[5:20, 4 + t : 20 + t] = True
    if t < 5:
        second[25:40, 30:50] = True
        second[30:34, 36:41] = False
        second[44, 60] = True
    return first, second


@pytest.fixture(scope="module")
def masks():
    frames = []
    for t in range(FRAMES):
        found = tuple(Mask("tracked", mask, 0.9, 0.8, "forward") for mask in masks_at(t))
        image, logits = np.zeros((*SIZE, 3), np.uint8), np.zeros((2, *SIZE), np.float32)
        frames.append(FrameMasks(t, t / 25, image, (1, 2), found, logits))
    return table(*frames)


@pytest.fixture(scope="module", params=["steady", "variable", "late"])
def folder(request, tmp_path_factory):
    """A folder with one clip: with a steady frame rate, a variable one, or one that starts late."""
    path = tmp_path_factory.mktemp(request.param)
    times = VARIABLE if request.param == "variable" else None
    begin = 40 if request.param == "late" else 0
    write_video(path / "clip.mp4", FRAMES, SIZE, times=times, begin=begin)
    with Video.open(path / "clip.mp4") as video:
        assert sum(1 for _ in video) == FRAMES
    return path


def run(source, out, *flags):
    return convert.main([str(source), "--out", str(out), *map(str, flags)])


def plans(out, folder, clip="clip.mp4"):
    """Return the rows of a manifest, and the prompts that a mask job would make of them."""
    content = parse_table(out.name, out.read_bytes())
    (video,), faulty, loose = read_manifest(content)
    assert (faulty, loose) == ({}, [])
    with Video.open(folder / clip) as opened:
        found, size = resolve_prompts(opened, video.rows)
    assert size == SIZE
    return [one for one in content.records if one], {plan.object_id: plan for plan in found}


def assert_masks(plans):
    """Check that prompts are the masks of all frames."""
    for number, plan in plans.items():
        shown = {t: masks_at(t)[number - 1] for t in range(FRAMES)}
        expected = {t for t, mask in shown.items() if mask.any()}
        assert {t for t, prompt in plan.prompts.items() if prompt.role == "init"} == expected
        for t in expected:
            assert np.array_equal(plan.prompts[t].mask, shown[t]), (number, t)


def exported_coco(folder, masks, polygons):
    write_coco(folder / "coco.json", [("clip", masks)], {"clip": NAMES}, polygons)
    return folder / "coco.json"


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_coco_comes_back(folder, masks, tmp_path, polygons, ending):
    out = folder / f"coco{polygons}{ending}"
    assert run(exported_coco(folder, masks, polygons), out) == 0
    records, found = plans(out, folder)
    assert {r["object_id"]: r["object_name"] for r in records} in (
        NAMES,
        {"1": "dog", "2": "cat & co"},
    )
    assert_masks(found)


def test_cvat_comes_back_with_polygons_and_boxes(folder, masks):
    clip = clip_of(masks, "clip", "/elsewhere/clip.mp4", 25.0)
    write_cvat(folder / "polygons.xml", masks, clip, NAMES, polygons=True)
    assert run(folder / "polygons.xml", folder / "polygons.csv") == 0
    _, found = plans(folder / "polygons.csv", folder)
    assert_masks(found)
    assert found[2].prompts[5].role == "absent"
    write_cvat(folder / "boxes.xml", masks, clip, NAMES, polygons=False)
    assert run(folder / "boxes.xml", folder / "boxes.csv") == 0
    _, found = plans(folder / "boxes.csv", folder)
    assert list(found[1].prompts) == [0, FRAMES - 1]  # it moves evenly
    for t, prompt in found[1].prompts.items():
        assert prompt.box.tolist() == [4 + t, 5, 20 + t, 20]


def test_label_studio_comes_back(folder, masks, tmp_path):
    clip = clip_of(masks, "clip", "/data/upload/3/0123abcd-clip.mp4", 25.0)
    write_label_studio(tmp_path / "tasks.json", [(clip, masks)], {"clip": NAMES})
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    del tasks[0]["data"]["video_id"]  # as of videos that were uploaded
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    out = folder / "studio.jsonl"
    assert run(tmp_path / "tasks.json", out, "--videos", folder) == 0
    _, found = plans(out, folder)
    assert {t: p.role for t, p in found[2].prompts.items()} == {0: "init", 4: "init", 5: "absent"}
    for t in (0, FRAMES - 1):
        assert found[1].prompts[t].box.tolist() == [4 + t, 5, 20 + t, 20]


def test_yolo_comes_back(folder, masks, tmp_path):
    labels = tmp_path / "yolo/labels/clip"
    labels.mkdir(parents=True)
    categories = ["bird", *NAMES.values()]
    (tmp_path / "yolo/data.yaml").write_text(data_yaml(categories))
    for t, rows in frames_of(masks):
        (labels / f"{t:05d}.txt").write_text(yolo_lines(rows, NAMES, categories))
    out = folder / "yolo.csv"
    assert run(tmp_path / "yolo", out, "--videos", folder) == 0
    _, found = plans(out, folder)
    assert {plan.name: len(plan.prompts) for plan in found.values()} == {
        "dog": FRAMES,
        "cat & co": 5,
    }
    by_name = {plan.name: plan.prompts for plan in found.values()}
    for t, rows in frames_of(masks):
        assert np.array_equal(by_name["dog"][t].mask, mask_of(rows[0]))
        if t < 5:  # a line of pixels joins the dot to the ring
            assert not (mask_of(rows[1]) & ~by_name["cat & co"][t].mask).any()
            assert (
                np.count_nonzero(by_name["cat & co"][t].mask)
                < np.count_nonzero(mask_of(rows[1])) + 20
            )
    first = folder / "yolo_first.csv"
    assert run(tmp_path / "yolo", first, "--videos", folder, "--frames", "first") == 0
    assert [list(plan.prompts) for plan in plans(first, folder)[1].values()] == [[0], [0]]


@pytest.mark.parametrize("layout", ["DAVIS", "YouTube-VOS"])
def test_label_maps_come_back(masks, tmp_path, layout):
    between = "480p/clip" if layout == "DAVIS" else "clip"
    maps, frames = tmp_path / "Annotations" / between, tmp_path / "JPEGImages" / between
    maps.mkdir(parents=True)
    frames.mkdir(parents=True)
    for t, rows in frames_of(masks):
        (maps / f"{5 * t:05d}.png").write_bytes(davis_png(label_map(rows)))
    for number in range(5 * FRAMES):
        Image.new("RGB", SIZE[::-1]).save(frames / f"{number:05d}.jpg")
    if layout == "YouTube-VOS":
        objects = {str(number): {"category": name} for number, name in NAMES.items()}
        meta = {"videos": {"clip": {"objects": objects}}}
        (tmp_path / "meta.json").write_text(json.dumps(meta))
    out = tmp_path / "clicks.csv"
    assert run(tmp_path, out) == 0
    _, found = plans(out, tmp_path, f"JPEGImages/{between}")
    assert list(found[1].prompts) == [5 * t for t in range(FRAMES)]
    for t in range(FRAMES):
        assert np.array_equal(found[1].prompts[5 * t].mask, masks_at(t)[0])
    assert [plan.name for plan in found.values()] == (
        [*NAMES.values()] if layout == "YouTube-VOS" else ["", ""]
    )


def test_frames_have_the_names_of_their_files(masks, tmp_path):
    frames = tmp_path / "clip"
    frames.mkdir()
    for t in range(FRAMES):
        Image.new("RGB", SIZE[::-1]).save(frames / f"shot_{100 + t}.png")
    images = [{"id": 7, "file_name": "clip\\shot_103.png", "height": 48, "width": 64}]
    annotation = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [4, 5, 10, 12]}
    coco = {"images": images, "annotations": [annotation], "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    assert run(tmp_path / "coco.json", tmp_path / "clicks.csv") == 0
    _, found = plans(tmp_path / "clicks.csv", tmp_path, "clip")
    assert found[1].prompts[3].box.tolist() == [4, 5, 14, 17]


def coco_of(folder, annotations, **image):
    about = {"id": 1, "video_id": "clip", "frame": 2, "height": 48, "width": 64} | image
    content = {
        "images": [about],
        "annotations": [{"image_id": 1, "category_id": 1} | a for a in annotations],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "Dog "}],
    }
    (folder / "odd.json").write_text(json.dumps(content))
    return folder / "odd.json"


RIGHT = {"id": 4, "track_id": 1, "bbox": [4, 5, 10, 12]}


@pytest.mark.parametrize(
    ("annotation", "image", "message"),
    [
        ({}, {"frame": 99}, "odd.json, annotation 4: frame is 99; expected 0 to 7, the last frame"),
        ({"bbox": [4, 5, 100, 12]}, {}, "annotation 4: x2, y2 is (104, 17); expected a place in"),
        ({"segmentation": [[1, 1, 5, 5]]}, {}, "annotation 4: has a polygon that is not a list of"),
        ({"segmentation": [[1, 1, 5, 5, 90, 9]]}, {}, "a corner of the polygon is (90, 9)"),
        ({"segmentation": {"size": [4, 4], "counts": "4<"}}, {}, "is an RLE of size [4, 4]"),
        ({"segmentation": {"size": [48, 64], "counts": "4<"}}, {}, "annotation 4: a mask damaged"),
        ({"category_id": 9}, {}, "annotation 4: category_id is 9; expected the id of one of its"),
        ({"image_id": 9}, {}, "annotation 4: no image of the file"),
        ({"bbox": [4, 5, 0, 12]}, {}, "annotation 4: bbox is [4, 5, 0, 12]; expected left, top"),
        ({}, {"frame": -1}, "odd.json, images[0]: its frame is -1; expected a whole number from 0"),
        ({}, {"height": None}, "images[0]: height and width are [None, 64]; expected pixels"),
    ],
)  # fmt: skip
def test_faults_of_coco_are_named(folder, capsys, annotation, image, message):
    source, out = coco_of(folder, [RIGHT | annotation], **image), folder / "faulty.csv"
    assert run(source, out) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "nothing was written" in error
    assert not out.exists()


def test_objects_with_faults_are_left_out(folder, capsys):
    wrong = RIGHT | {"id": 5, "track_id": 3, "bbox": [4, 5, 100, 12]}
    source, out = coco_of(folder, [RIGHT, wrong]), folder / "some.csv"
    assert run(source, out, "--skip-invalid") == 0
    assert "left out: odd.json, annotation 5: x2, y2" in capsys.readouterr().out
    assert list(plans(out, folder)[1]) == [1]
    assert run(source, out) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_names_that_tools_take_for_the_same_are_a_fault(folder, capsys):
    source = coco_of(folder, [RIGHT, RIGHT | {"id": 5, "track_id": 2, "category_id": 2}])
    assert run(source, folder / "names.csv") == 2
    assert (
        "the name 'Dog ' beside 'dog', which some tools take for the same"
        in capsys.readouterr().err
    )


def test_coordinates_of_another_size_are_scaled(folder):
    source = coco_of(folder, [RIGHT], height=96, width=128)
    assert run(source, folder / "scaled.csv") == 0
    assert plans(folder / "scaled.csv", folder)[1][1].prompts[2].box.tolist() == [2, 2.5, 7, 8.5]


def test_videos_are_found_by_name(folder, tmp_path, capsys):
    write_video(tmp_path / "other.mp4", 3, SIZE)
    write_video(tmp_path / "clip.mp4", FRAMES, SIZE)
    source = coco_of(tmp_path, [RIGHT], video_id="gone")
    assert run(source, tmp_path / "a.csv") == 2
    assert (
        "the video has the name 'gone'; expected one of clip.mp4, other.mp4"
        in capsys.readouterr().err
    )
    source = coco_of(tmp_path, [RIGHT], video_id="C:\\film\\clip.mp4")
    assert run(source, tmp_path / "a.csv") == 0
    assert run(tmp_path / "none.json", tmp_path / "b.csv") == 2
    for out in (tmp_path / "b.txt", "s3://bucket/clicks.csv"):
        with pytest.raises(SystemExit):
            run(source, out)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[1, 2]", "no annotations that are known; expected COCO or Label Studio"),
        ("a.json", b"{" * 100_000, "a.json is n"),
        ("a.json", b"\xff\xfe", "is no JSON"),
        ("a.zip", b"PK\x03\x04", "ZIP archive; unpack it"),
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImportsError, match=message):
        read_annotations(tmp_path / name)
