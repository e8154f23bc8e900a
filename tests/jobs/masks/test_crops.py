"""From clicks to a classifier: masks, crops of their objects, a training, classes of tracks."""

import io
import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import mask
from jobs import train as train_job
from jobs.masks import video as mask_video
from jobs.masks.crops import CropExportConfig, crop_faults, plan_crops
from jobs.masks.folder import read_markers
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
