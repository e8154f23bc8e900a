"""A mask run's files for annotation tools, its frames, and films in which objects are hidden."""

import hashlib
import io
import json

import numpy as np
import pytest
import yaml
from PIL import Image

from jobs import convert
from jobs.masks.annotations import Labels, delete_annotations, encoded, plan_labels
from jobs.masks.exports import delete_exports, export_all
from jobs.masks.finish import FRAMES, finish_video
from jobs.storage.location import Location
from masking.outputs.rows import MaskFile
from masking.tracking.masks import FrameMasks, Mask
from masking.video.reader import Video
from tests.masking.tracking.test_masking import film
from tests.moving import SIZE, picture

FRAMES_OF_CLIP = 6
STATES = ["prompted", "tracked", "lost", "lost", "recovered", "tracked"]
LABELS = Labels({1: "face"}, ("car", "face", "object 2"))


def shown(t):
    return picture({1: (30 + 4 * t, 40, 13), 2: (120, 60, 15)})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a clip of two objects, the first of which is lost for two frames."""
    folder = tmp_path_factory.mktemp("run")
    film(folder / "c.mp4", [shown(t) for t in range(FRAMES_OF_CLIP)])
    return folder, *write_run(folder, folder / "c.mp4", None)


def write_run(folder, video, names):
    out = Location.parse(folder / "out")
    path = folder / "masks.parquet"
    file = MaskFile(str(path), names)
    for t, state in enumerate(STATES):
        image, labels = shown(t)
        first = (labels == 1) & (state != "lost")
        found = (
            Mask(state, first, 0.9, 0.8, "forward"),
            Mask("tracked", labels == 2, 0.9, 1, "both"),
        )
        logits = np.zeros((2, *SIZE), np.float32)
        file.add(FrameMasks(t, None if names else t / 10, image, (1, 2), found, logits))
    file.close()
    content = path.read_bytes()
    (out / "masks/c.parquet").write_bytes(content)
    record = {
        "video_id": "c", "uri": str(video), "frames": FRAMES_OF_CLIP, "objects": {"1": {}, "2": {}},
        "rate": None if names else 10.0, "codec": "images" if names else "h264",
        "masks_sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    return out, record


def files(place):
    return sorted(entry.path for entry in place.walk())


def test_annotations_and_frames_come_back(run):
    folder, out, record = run
    kinds = ["yolo", "cvat", "cvat-polygons", "mot", FRAMES]
    done = finish_video(out, record, kinds, None, None, LABELS)
    assert (done["errors"], done["notes"]) == ([], [])
    export_all(out, [record], {"c": {1: "face"}}, ["yolo", "coco-polygons", "label-studio"])
    export = out / "export"
    frames = [f"{t:05d}" for t in range(FRAMES_OF_CLIP)]
    assert files(export / "yolo/labels/c") == [f"{name}.txt" for name in frames]
    assert files(export / "yolo/images/c") == [f"{name}.jpg" for name in frames]
    assert files(export / "mot/c/img1") == [f"{t + 1:06d}.jpg" for t in range(FRAMES_OF_CLIP)]
    assert not (export / "frames").exists()
    listed = yaml.safe_load((export / "yolo/data.yaml").read_bytes())["names"]
    assert [*listed.values()] == ["face", "object 2"]
    sources = ["yolo", "cvat/c.xml", "cvat-polygons/c.xml", "coco-polygons/annotations.json",
               "label-studio/tasks.json"]  # fmt: skip
    for number, source in enumerate(sources):
        argv = [f"{export}/{source}", "--out", f"{folder}/{number}.csv", "--videos", record["uri"]]
        if source != "yolo":  # whose classes are those of LABELS, not of data.yaml here
            assert convert.main(argv) == 0, source


def test_frames_of_a_folder_keep_their_names(tmp_path):
    (tmp_path / "c").mkdir()
    names = [f"shot_{t}.png" for t in range(FRAMES_OF_CLIP)]
    for t, name in enumerate(names):
        Image.fromarray(shown(t)[0]).save(tmp_path / "c" / name)
    out, record = write_run(tmp_path, tmp_path / "c", names)
    assert (
        finish_video(out, record, ["davis", FRAMES, "others"], None, None, LABELS)["errors"] == []
    )
    assert files(out / "export/frames/c") == names
    content = (out / "export/frames/c/shot_3.png").read_bytes()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), shown(3)[0])


def test_a_hidden_film_keeps_its_timing_and_lists_what_is_not_safe(run):
    _, out, record = run
    done = finish_video(out, record, ["blur", "pixelate"], None)
    assert done["errors"] == []
    assert done["notes"] == [
        f"c as {kind}: not safe: frames 2 to 3: object 1 is lost" for kind in ("blur", "pixelate")
    ]
    spans = (out / "export/blur/c.csv").read_bytes().decode().splitlines()
    assert spans[1:] == ["1,2,3,0.2,0.3,lost"]
    with Video.open(record["uri"]) as source, Video.open(str(out / "export/blur/c.mp4")) as hidden:
        for t, (before, after) in enumerate(zip(source, hidden, strict=True)):
            assert after.time_s == pytest.approx(before.time_s)
            for number in (1, 2):
                place = shown(t)[1] == number
                # The texture of the discs is gone, also where the first one is lost.
                assert after.image[place].std() < 0.8 * before.image[place].std()


def test_exports_go_with_their_masks(run):
    _, out, record = run
    kinds = ["yolo", "mot", "cvat", "blur", FRAMES, "others"]
    assert finish_video(out, record, kinds, None, None, LABELS)["errors"] == []
    (out / "export/yolo/labels/c/d/00000.txt").write_bytes(b"of a video c/d")
    delete_exports(out, ["c"])
    left = [path for path in files(out / "export") if "/c" in path]
    assert [path for path in left if "polygons" not in path and "pixelate" not in path] == [
        "yolo/labels/c/d/00000.txt"
    ]
    delete_annotations(out / "export", "never exported")


def test_labels_go_to_workers(run):
    _, _, record = run
    (labels,) = plan_labels([record], {"c": {1: "face"}}).values()
    assert labels == Labels({1: "face"}, ("face", "object 2"))
    assert Labels.from_json(json.loads(json.dumps(labels.to_json()))) == labels


def test_a_video_with_other_frames_than_were_masked_is_not_shown(run, tmp_path):
    _, out, record = run
    film(tmp_path / "c.mp4", [shown(t) for t in range(FRAMES_OF_CLIP + 1)])
    other = record | {"uri": str(tmp_path / "c.mp4")}
    for kind in ("blur", FRAMES):
        done = finish_video(out, other, [kind, *(["others"] if kind == FRAMES else [])], None)
        assert "more frames than were masked" in done["errors"][0]


@pytest.mark.parametrize("name", ["a.jpg", "a.JFIF", "a.png", "a.webp", "a.bmp", "a.tif"])
def test_frames_are_pictures_of_the_kind_that_their_names_say(name):
    image = shown(0)[0]
    with Image.open(io.BytesIO(encoded(image, name))) as picture:
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - image).mean() < 5
