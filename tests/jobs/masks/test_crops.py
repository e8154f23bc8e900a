"""From clicks to a classifier: masks, crops of their objects, a training, classes of tracks."""

import csv
import io
import json
import os
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs import mask, predict
from jobs import train as train_job
from jobs.masks import video as mask_video
from jobs.masks.crops import CropExportConfig, crop_faults, plan_crops
from jobs.masks.folder import read_markers
from jobs.objects.classify import ObjectPredictor
from jobs.objects.plan import VideoPart
from jobs.objects.tracks import tracks_of
from jobs.storage.location import Location
from tests.masked import mask_without_ray
from tests.masking.tracking.test_masking import film
from tests.moving import picture, segmenter
from tests.trained import train_and_conclude
from vit.config import AugmentConfig, DatasetConfig, ModelConfig, OptimConfig
from vit.data.reader import CROPS
from vit.weights import read as read_weights

KINDS = ("cherry", "plum", "apple")
"""Names of red, blue and green discs."""
FRAMES = 4


def write_kinds(folder, first, count):
    """Clips with two discs of different kinds each, and their clicks; every third is unnamed."""
    lines = ["uri,object_id,object_name,frame,x,y"]
    for number in range(first, first + count):
        kinds = number % 3, (number + 1) % 3
        clip = [
            picture(
                {kinds[0] + 1: (30 + 2 * t, 40, 13), kinds[1] + 1: (120 - 2 * t, 60, 15)}, number
            )
            for t in range(FRAMES)
        ]
        film(folder / f"c{number}.mp4", clip)
        places = ((30, 40), (120, 60))
        for place, (kind, (x, y)) in enumerate(zip(kinds, places, strict=True), 1):
            lines.append(f"c{number}.mp4,{10 * place},{KINDS[kind]},0,{x},{y}")
    (folder / f"clicks{first}.csv").write_text("\n".join(lines) + "\n")
    return folder / f"clicks{first}.csv"


def run_mask(manifest, out, *flags):
    """`jobs.mask` in this process, with a segmenter whose masks are right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_video, "load_segmenter", lambda *_: segmenter())
        mask_without_ray(patch)
        return mask.main(["--manifest", str(manifest), "--out", str(out), *flags])


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A run over twelve clips, whose crops are exported: its folder and that of the clips."""
    folder = tmp_path_factory.mktemp("kinds")
    manifest = write_kinds(folder, 0, 12)
    assert run_mask(manifest, folder / "out", "--export", "crops", "--crops.every", "1") == 0
    return folder


@pytest.fixture(scope="module")
def classifier(masked, tmp_path_factory):
    """A small ViT trained on the crops as they are exported."""
    return train_and_conclude(
        tmp_path_factory.mktemp("kinds-vit"),
        data=(str(masked / "out/export/crops"),),
        dataset=DatasetConfig("parquet"),
        model=ModelConfig(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2),
        augment=AugmentConfig(hflip=0.5),
        optim=OptimConfig(lr=1e-2, warmup_epochs=1),
        batch_size=8, epochs=8, device="cpu",
    )  # fmt: skip


def read_shards(place):
    return [
        row for path in sorted(place.glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def test_a_shard_a_video(masked):
    place = masked / "out/export/crops"
    shards = sorted(place.glob("*.parquet"))
    assert len(shards) == 12
    by_set = {name: {p.stem.split("-")[1] for p in shards if p.name.startswith(name)}
              for name in ("train", "val", "test")}  # fmt: skip
    assert sum(map(len, by_set.values())) == 12  # each video in one set
    rows = read_shards(place)
    for name, videos in by_set.items():
        labels = {row["label"] for row in rows if row["video_id"] in videos}
        assert labels == set(KINDS), name
    assert len(rows) == 12 * 2 * FRAMES
    boxes = {
        (path.stem, row["frame"], row["object_id"]): row["box"]
        for path in (masked / "out/masks").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    for row in rows:
        number = int(row["video_id"][1:])
        assert row["label"] == KINDS[(number + (row["object_id"] == 20)) % 3]
        with Image.open(io.BytesIO(row["image"])) as found:
            pixels = np.asarray(found)
        side = max(boxes[row["video_id"], row["frame"], row["object_id"]][2:])
        assert pixels.shape == (side + 2 * round(0.1 * side),) * 2 + (3,)
        colour = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]
        assert KINDS[[0, 2, 1][int(colour.argmax())]] == row["label"]
    assert {(row["video_id"], row["frame"]) for row in rows if row["object_id"] == 10} == {
        (f"c{n}", t) for n in range(12) for t in range(FRAMES)
    }
    about = json.loads((place / f"{CROPS}.json").read_text())
    assert about["crops"] == {"margin": 0.1, "shape": "square", "background": "kept"}
    counted = Counter()
    for counts in about["sets"].values():
        counted.update(counts)
    assert counted == Counter(row["label"] for row in rows)
    assert about["videos"] == {v: name for name, videos in by_set.items() for v in videos}


def test_folders_of_names(masked, capsys):
    """Another layout replaces the first one; transparent crops are PNGs with alpha."""
    out = masked / "copy"
    Location.parse(out).upload(masked / "out")
    flags = ["--export", "crops", "--crops.layout", "folder", "--crops.every", "2"]
    flags += ["--crops.background", "transparent", "--crops.test-share", "0"]
    assert run_mask(masked / "clicks0.csv", out, *flags) == 0
    printed = capsys.readouterr().out
    place = out / "export/crops"
    assert list(place.glob("*.parquet")) == []
    files = sorted(place.rglob("*.png"))
    assert len(files) == 12 * 2 * FRAMES / 2
    sets = {path.relative_to(place).parts[0] for path in files}
    assert sets == {"train", "val"}
    for path in files:
        _, label, video, number, name = path.relative_to(place).parts
        assert label == KINDS[(int(video[1:]) + (number == "20")) % 3]
        assert name in ("00000.png", "00002.png")
    with Image.open(files[0]) as found:
        alpha = np.asarray(found)[..., 3]
    assert 0 < (alpha == 255).mean() < 0.8
    counts = Counter(path.relative_to(place).parts[0] for path in files)
    assert f"crops: {counts['train']} train, {counts['val']} val, 0 test; 3 names" in printed


def test_the_training_says_the_accuracy_of_tracks(masked, classifier, capsys):
    summary = json.loads((classifier.out / "summary.json").read_text())
    assert summary["test_track_accuracy"] == summary["val_track_accuracy"] == 1.0
    assert "val_track_accuracy" in classifier.result.best_row
    card = (classifier.out / "export/README.md").read_text()
    assert "| test accuracy of tracks | 100.00% |" in card
    about = read_weights(classifier.out).about
    assert about.crops == {"margin": 0.1, "shape": "square", "background": "kept"}
    figures = classifier.out / "figures.json"
    data = masked / "out/export/crops"
    flags = ["--evaluate", "--weights", str(classifier.out), "--data", str(data)]
    assert train_job.main([*flags, "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    rows = [row for row in read_shards(data) if f"test-{row['video_id']}" in
            {path.stem for path in data.glob("test*")}]  # fmt: skip
    tracks = {(row["video_id"], str(row["object_id"])): row["label"] for row in rows}
    assert found["tracks"]["n"] == found["tracks"]["correct"] == len(tracks)
    table = {(row["video_id"], row["object_id"]): row for row in found["tracks"]["table"]}
    assert {place: row["class"] for place, row in table.items()} == tracks
    assert {row["frames"] for row in table.values()} == {FRAMES}
    assert f"100.00% of tracks ({len(tracks)} of {len(tracks)})" in capsys.readouterr().out


def test_faults_of_names(tmp_path, capsys):
    film(tmp_path / "c.mp4", [picture({1: (30, 40, 13)})] * 2)
    manifest = tmp_path / "m.csv"
    argv = ["--manifest", str(manifest), "--out", str(tmp_path / "o"), "--export", "crops"]
    manifest.write_text("uri,object_id,frame,x,y\nc.mp4,1,0,30,40\n")
    assert mask.main(argv) == 2
    assert "no object has a name, which would be its class" in capsys.readouterr().err
    manifest.write_text("uri,object_id,object_name,frame,x,y\nc.mp4,1,a/b,0,30,40\n")
    assert mask.main([*argv, "--check"]) == 0  # shards take any name
    capsys.readouterr()
    assert mask.main([*argv, "--crops.layout", "folder"]) == 2
    assert "object_name 'a/b' cannot be the name of a folder" in capsys.readouterr().err
    folder = CropExportConfig(layout="folder")
    assert len(crop_faults([".hidden", "..", "@eaDir", "x" * 256, "good"], folder)) == 4
    for flags in (
        ("--crops.every", "0"),
        ("--crops.val-share", "0.9", "--crops.test-share", "0.2"),
    ):
        with pytest.raises(SystemExit) as ended:
            mask.main([*argv, *flags])
        assert ended.value.code == 2


def test_objects_without_a_name_are_left_out(masked):
    records = list(read_markers(Location.parse(masked / "out")).values())
    names = {f"c{n}": {10: "cherry"} if n else {} for n in range(12)}
    planned = plan_crops(records, names, CropExportConfig(), seed=0)
    assert set(planned) == {f"c{n}" for n in range(1, 12)}
    assert planned == plan_crops(records[::-1], names, CropExportConfig(), seed=0)
    assert Counter(one.split for one in planned.values()) == {"train": 7, "val": 2, "test": 2}


def test_a_video_that_changed_is_named(masked, capsys):
    """It costs its own crops alone; the job ends with 1."""
    out = masked / "changed"
    Location.parse(out).upload(masked / "out")
    marker = out / "commits/c3.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"content_sha256": "0" * 64}))
    assert run_mask(masked / "clicks0.csv", out, "--export", "crops", "--crops.every", "3") == 1
    assert "not exported: c3 as crops: FileNotFoundError: the video has changed" in (
        capsys.readouterr().out
    )
    place = out / "export/crops"
    assert len(list(place.glob("*.parquet"))) == 11
    assert "c3" not in json.loads((place / f"{CROPS}.json").read_text())["videos"]


@pytest.fixture(scope="module")
def predicted(masked, classifier, tmp_path_factory):
    """Predictions of four further clips, whose objects have no names: (their run, --out)."""
    folder = tmp_path_factory.mktemp("further")
    manifest = write_kinds(folder, 12, 4)
    manifest.write_text(manifest.read_text().replace("plum", ""))
    assert run_mask(manifest, folder / "out") == 0
    predict_here(classifier.out, folder / "out", folder / "names")
    return folder


def predict_here(weights, run, out, *flags, code=0):
    """`jobs.predict` with its worker in this process."""

    def execute(config, todo, wanted, stop):
        worker = ObjectPredictor(config, wanted, 1, torch.device("cpu"))
        for part in todo:
            worker({"part": json.dumps(asdict(part))})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "execute", execute)
        patch.setattr(predict.connect, "connect", nullcontext)
        argv = ["--weights", str(weights), "--data", str(run), "--out", str(out), *flags]
        assert predict.main(argv) == code


def test_further_clips_have_their_kinds(predicted):
    out = predicted / "names"
    tracks = pq.read_table(out / "tracks.parquet").to_pylist()
    assert len(tracks) == 4 * 2
    for row in tracks:
        number = int(row["video_id"][1:])
        assert row["class"] == KINDS[(number + (row["object_id"] == 20)) % 3]
        assert (row["frames"], row["agree"], row["error"]) == (FRAMES, FRAMES, None)
        assert 0.3 < row["probability"] <= 1
    shards = sorted((out / "predictions").glob("*.parquet"))
    rows = [row for path in shards for row in pq.read_table(path).to_pylist()]
    assert [Path(path).name[:10] for path in shards] == [f"part-{n:05d}" for n in range(4)]
    places = {(row["video_id"], row["frame"], row["object_id"]) for row in rows}
    assert places == {
        (f"c{n}", t, k) for n in range(12, 16) for t in range(FRAMES) for k in (10, 20)
    }
    assert list(rows[0]) == [
        "path", "video_id", "frame", "time_s", "object_id", "state", "class", "probability",
        "error", "p_apple", "p_cherry", "p_plum",
    ]  # fmt: skip
    assert {row["state"] for row in rows} == {"prompted", "tracked"}
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["n"], summary["errors"], summary["tracks"], summary["unknown"]) == (32, 0, 8, 0)


def test_what_was_predicted_is_what_was_cut_out(masked, classifier, tmp_path):
    """The crops of the export have the classes of the run's own objects, whatever JPEG changes."""
    predict_here(classifier.out, masked / "out", tmp_path / "o", "--objects.every", "2")
    rows = [row for path in (tmp_path / "o/predictions").iterdir()
            for row in pq.read_table(path).to_pylist()]  # fmt: skip
    assert {row["frame"] for row in rows} == {0, 2}
    labels = {
        (row["video_id"], row["frame"], row["object_id"]): row["label"]
        for row in read_shards(masked / "out/export/crops")
    }
    assert len(rows) == len(labels) / 2
    for row in rows:
        assert row["class"] == labels[row["video_id"], row["frame"], row["object_id"]]


def test_a_video_that_is_gone_costs_its_own_rows(predicted, classifier, tmp_path, capsys):
    """It is predicted again when it is back; csv says the same."""
    clip = predicted / "c13.mp4"
    content, times = clip.read_bytes(), clip.stat()
    clip.unlink()
    out = tmp_path / "o"
    predict_here(classifier.out, predicted / "out", out, "--format", "csv")
    lines = list(csv.DictReader((out / "tracks.csv").open()))
    gone = [line for line in lines if line["error"]]
    assert {line["video_id"] for line in gone} == {"c13"}
    assert {line["error"] for line in gone} == {"the video does not exist"}
    assert {(line["class"], line["frames"], line["agree"]) for line in gone} == {("", "0", "0")}
    assert "32 objects on frames, 8 of them without a class" in capsys.readouterr().out
    clip.write_bytes(content)
    os.utime(clip, ns=(times.st_atime_ns, times.st_mtime_ns))
    predict_here(classifier.out, predicted / "out", out, "--format", "csv")
    assert "32 objects on frames in 4 parts, 3 of them done" in capsys.readouterr().out
    whole = {(row["video_id"], str(row["object_id"])): row["class"]
             for row in pq.read_table(predicted / "names/tracks.parquet").to_pylist()}  # fmt: skip
    lines = list(csv.DictReader((out / "tracks.csv").open()))
    assert {(line["video_id"], line["object_id"]): line["class"] for line in lines} == whole


def test_names_go_back_into_exports(predicted, masked, tmp_path, capsys):
    """What a person named keeps its name; the others get their class."""
    manifest = predicted / "clicks12.csv"
    flags = ["--export", "coco", "youtube-vos", "--names", str(predicted / "names")]
    assert run_mask(manifest, predicted / "out", *flags) == 0
    coco = json.loads((predicted / "out/export/coco/annotations.json").read_text())
    names = {row["id"]: row["name"] for row in coco["categories"]}
    assert set(names.values()) == set(KINDS)
    videos = {row["id"]: row["video_id"] for row in coco["images"]}
    for row in coco["annotations"]:
        number = int(videos[row["image_id"]][1:])
        assert names[row["category_id"]] == KINDS[(number + (row["object_id"] == 20)) % 3]
    meta = json.loads((predicted / "out/export/youtube-vos/meta.json").read_text())
    assert meta["videos"]["c13"]["objects"]["10"]["category"] == "plum"
    capsys.readouterr()
    other = ["--manifest", str(masked / "clicks0.csv"), "--out", str(tmp_path / "o"), "--check"]
    assert mask.main([*other, "--names", str(predicted / "names")]) == 2
    assert "none of its 4 videos is in the manifests" in capsys.readouterr().err
    assert mask.main([*other, "--names", str(predicted)]) == 2
    assert "there is no tracks.parquet or tracks.csv" in capsys.readouterr().err
    (tmp_path / "tracks.csv").write_text("a,b\n1,2\n")
    assert mask.main([*other, "--names", str(tmp_path)]) == 2
    assert "is no table of tracks" in capsys.readouterr().err


def test_faults_of_a_run_to_classify(predicted, classifier, tmp_path, capsys):
    run, out = predicted / "out", tmp_path / "o"
    flags = ["--weights", str(classifier.out), "--out", str(out), "--data", str(run)]
    assert predict.main([*flags, str(predicted)]) == 2
    assert "is a mask run; give it alone" in capsys.readouterr().err
    copy = Location.parse(tmp_path / "run")
    copy.upload(run)
    (copy / "videos.parquet").write_bytes(b"cut")
    flags[-1] = str(copy)
    assert predict.main(flags) == 2
    assert "videos.parquet cannot be read" in capsys.readouterr().err
    for name, value in (("margin", "-1"), ("every", "0"), ("shape", "round")):
        with pytest.raises(SystemExit) as ended:
            predict.main([*flags, f"--objects.{name}", value])
        assert ended.value.code == 2


def test_votes_of_frames():
    """Equal numbers of frames are decided by probability; a frame with an error has no vote."""
    part = VideoPart("", "r", "v", "v.mp4", "", "", (1, 2, 3), 0)
    table = pa.table(
        {
            "object_id": [1, 1, 1, 2, 2, 3],
            "error": [None, None, None, None, None, "gone"],
            "p_a": [0.6, 0.6, 0.0, 0.6, 0.1, None],
            "p_b": [0.4, 0.4, 1.0, 0.4, 0.9, None],
        }
    )
    rows = tracks_of(table, part, ["a", "b"])
    assert [(row["class"], row["frames"], row["agree"]) for row in rows] == [
        ("a", 3, 2), ("b", 2, 1), (None, 0, 0),
    ]  # fmt: skip
    assert rows[0]["probability"] == pytest.approx(0.4)
    assert rows[2]["error"] == "gone"
    (unseen,) = tracks_of(table.slice(0, 0), replace(part, objects=(7,)), ["a", "b"])
    assert unseen["error"] == "its state is prompted or tracked on no frame that was classified"
