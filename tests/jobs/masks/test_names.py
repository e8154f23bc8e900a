"""Frames of a folder keep the names of their files, in masks, exports, scores and reviews."""

import csv
import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import mask
from jobs.masks import batch, score
from jobs.masks.exports import export_video, named_table
from jobs.masks.folder import file_name, id_path, read_markers, table_of
from jobs.masks.plan import frame_names, state_of
from jobs.storage.location import Location
from masking.images.decode import ImageError
from masking.outputs.formats import davis_png
from masking.outputs.rows import SCHEMA, frames_of, label_map
from tests.masked import mask_without_ray
from tests.moving import picture

FRAMES = 6
NAMES = [f"{5 * number:05d}.jpg" for number in range(FRAMES)]
"""Every fifth frame, as YouTube-VOS has it."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run over a folder of images, and its folder; the object is not asked for at the start."""
    folder = tmp_path_factory.mktemp("names")
    (folder / "clip").mkdir()
    for number, name in enumerate(NAMES):
        shown = picture({1: (30 + 6 * number, 40, 13)})[0]
        Image.fromarray(shown).save(folder / "clip" / name, quality=95)
    (folder / "m.csv").write_text("uri,object_id,frame,x,y\nclip,1,1,36,40\n")
    out = Location.parse(folder / "out")
    with pytest.MonkeyPatch.context() as patch:
        mask_without_ray(patch)
        flags = ["--manifest", str(folder / "m.csv"), "--out", str(out), "--precision", "float32"]
        assert mask.main([*flags, "--export", "davis", "png", "coco", "youtube-vos"]) == 0
    record = (out / "commits/clip.json").read_json()
    return folder, out, record, flags


def labels_of(out, record):
    return {frame: label_map(rows) for frame, rows in frames_of(table_of(out, record))}


def test_exports_have_the_names_of_the_frames(run):
    folder, out, record, _ = run
    export, stems = folder / "out/export", [name.removesuffix(".jpg") for name in NAMES]
    expected = labels_of(out, record)
    for place in ("davis/clip", "png/clip/1"):
        assert sorted(p.name for p in (export / place).iterdir()) == [f"{s}.png" for s in stems]
        for number, stem in enumerate(stems):
            found = np.asarray(Image.open(export / place / f"{stem}.png")) > 0
            assert np.array_equal(found, expected[number] == 1)
    images = json.loads((export / "coco/annotations.json").read_text())["images"]
    assert [image["file_name"] for image in images] == [f"clip/{name}" for name in NAMES]
    assert all((folder / image["file_name"]).exists() for image in images)
    videos = json.loads((export / "youtube-vos/meta.json").read_text())["videos"]
    assert set(videos["clip"]["objects"]["1"]["frames"]) <= set(stems)


def test_masks_and_reviews_name_the_frames_of_folders_only(run, tmp_path):
    _, out, record, _ = run
    table = table_of(out, record)
    assert table["frame_name"].to_pylist() == NAMES
    assert table.select(SCHEMA.names).schema.equals(SCHEMA)
    lines = list(csv.DictReader((out / "review.csv").read_text().splitlines()))
    assert all(line["click_name"] == NAMES[int(line["click_frame"])] for line in lines)
    assert len(lines) == len(record["review"])


def write_truth(folder, names, labels):
    """Write true masks; returns their folder."""
    (folder / "clip").mkdir(parents=True)
    for name, one in zip(names, labels, strict=True):
        (folder / "clip" / f"{name}.png").write_bytes(davis_png(one.astype(np.uint16)))
    return Location.parse(folder)


def test_a_truth_with_the_names_of_the_folder_is_matched_by_name(run, tmp_path, capsys):
    _, out, record, flags = run
    labels = [*labels_of(out, record).values()]
    table = named_table(out, record)
    stems = [name.removesuffix(".jpg") for name in NAMES]
    truth = write_truth(tmp_path / "names", stems, labels)
    found = score.score_video(table, "clip", truth)
    assert (found["matched_by"], found["frames"], found["objects"][1]["j"]) == ("name", 4, 1)
    # A truth of some frames only.
    some = write_truth(tmp_path / "some", stems[1:4], labels[1:4])
    assert score.score_video(table, "clip", some)["objects"][1]["j"] == 1
    assert mask.main([*flags, "--score", str(truth)]) == 0
    said = capsys.readouterr().out
    assert "the true masks of 1 videos are matched by the names of their frames" in said
    assert (out / "score.json").read_json()["videos"]["clip"]["matched_by"] == "name"


def test_a_truth_with_other_names_is_matched_by_index(run, tmp_path, capsys):
    _, out, record, flags = run
    labels = [*labels_of(out, record).values()]
    truth = write_truth(tmp_path, [f"{n:05d}" for n in range(FRAMES)], labels)
    found = score.score_video(named_table(out, record), "clip", truth)
    assert (found["matched_by"], found["objects"][1]["j"]) == ("index", 1)
    assert mask.main([*flags, "--score", str(truth)]) == 0
    assert "true masks of 1 videos are matched by indices of frames" in capsys.readouterr().out


def test_a_truth_of_jpegs_is_refused(run, tmp_path):
    _, out, record, _ = run
    (tmp_path / "clip").mkdir()
    Image.new("L", (160, 96)).save(tmp_path / "clip/00000.jpg")
    with pytest.raises(ImageError, match=r"00000\.jpg is no PNG; expected PNGs"):
        score.score_video(named_table(out, record), "clip", Location.parse(tmp_path))


def test_a_truth_that_has_neither_is_refused(run, tmp_path):
    _, out, record, _ = run
    labels = [*labels_of(out, record).values()]
    stems = [name.removesuffix(".jpg") for name in NAMES]
    truth = write_truth(tmp_path, [*stems[:-1], "00030"], labels)
    message = r"the true mask 00010\.png is of no frame .* or like the folder's, such as 00000\.png"
    with pytest.raises(ImageError, match=message):
        score.score_video(named_table(out, record), "clip", truth)


def test_masks_of_an_earlier_version_get_the_names_from_the_folder(run, tmp_path, monkeypatch):
    folder, out, record, _ = run
    old = Location.parse(tmp_path / "old")
    table = table_of(out, record).select(SCHEMA.names)
    (tmp_path / "old/.parts/masks").mkdir(parents=True)
    pq.write_table(table, tmp_path / "old/.parts/masks/clip")

    content = (tmp_path / "old/.parts/masks/clip").read_bytes()
    record = record | {"masks_sha256": hashlib.sha256(content).hexdigest()}
    batch.publish(record, old, old / ".parts")
    assert named_table(old, record)["frame_name"].to_pylist() == NAMES
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    (fewer / NAMES[0]).write_bytes((folder / "clip" / NAMES[0]).read_bytes())
    with pytest.raises(ValueError, match="has 1 frames, but 6 were masked"):
        named_table(old, record | {"uri": str(fewer)})


def test_a_truth_with_soft_edges_is_refused_unless_it_is_of_one_object(run, tmp_path):
    _, out, record, _ = run
    size = (record["height"], record["width"])
    y, x = np.mgrid[: size[0], : size[1]]
    soft = np.clip(128 + 30 * (20 - np.hypot(x - 40, y - 40)), 0, 255).astype(np.uint8)
    for place in ("all/clip", "one/clip/1"):
        (tmp_path / place).mkdir(parents=True)
        Image.fromarray(soft).save(tmp_path / place / "00000.png")
    table = named_table(out, record)
    with pytest.raises(ImageError, match=r"00000\.png has soft edges: of its \d+ numbers"):
        score.score_video(table, "clip", Location.parse(tmp_path / "all"))
    assert score.score_video(table, "clip", Location.parse(tmp_path / "one"))["frames"] == 1


def test_folders_in_s3_have_names_and_gaps_too(run, s3):
    folder, out, record, _ = run
    place = Location.parse(f"{s3}/clip")
    place.upload(folder / "clip")
    assert frame_names(str(place)) == NAMES
    assert [name for name, _, _ in state_of(str(place))] == NAMES
    moved = Location.parse(f"{s3}/run")
    hard = record | {"video_id": "a.png/.patchray-x"}
    (moved / ".parts/masks" / file_name(hard["video_id"])).write_bytes(
        (out / "masks/clip.parquet").read_bytes()
    )
    batch.publish(hard, moved, moved / ".parts")
    assert read_markers(moved)[hard["video_id"]] == hard
    export_video(moved, hard, named_table(moved, hard), "davis")
    names = [entry.name for entry in (moved / "export/davis" / id_path(hard["video_id"])).list()]
    assert names == [name.replace(".jpg", ".png") for name in NAMES]
    (place / "00003.heic").write_bytes(b"a picture")
    assert "00003.heic: a format that is not read" in state_of(str(place))
