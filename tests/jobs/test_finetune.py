"""`jobs.finetune` as people start it: killed, resumed, measured; `jobs.click`; and bad input."""

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from jobs import click
from jobs.finetune import main
from jobs.run.config import parse
from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.task import SegmentTask, load, spread
from jobs.storage.location import Location
from jobs.training.loop import run
from jobs.training.ranks import Ranks
from jobs.weights.segmenter import load_segmenter
from masking.segmenter.mini import Mini
from masking.training.compose import ComposeConfig
from tests.jobs.test_train import final, finish, step_of, training_workers, wait_for
from tests.ranks import on_ranks
from tests.tasks import RecordingHooks
from tests.trained import png

SIDE = 64


def write_squares(path, images=24, objects=2):
    """Bright squares on noise, with their label maps; returns the file."""
    draw, rows = np.random.default_rng(0), []
    for number in range(images):
        pixels = draw.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
        labels = np.zeros((SIDE, SIDE), np.uint8)
        for label in range(1, objects + 1):
            x, y = draw.integers(0, SIDE // 2, 2)
            labels[y : y + SIDE // 2, x : x + SIDE // 2] = label
        pixels[labels > 0] += 120
        rows.append({"image": png(pixels), "masks": png(labels), "key": str(number)})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def small(out, data, **changes):
    config = FinetuneConfig(
        out=str(out), data=(str(data),), init_weights="scratch", epochs=3, batch_size=4,
        val_fraction=0.1, precision="float32", device="cpu", ema_half_life=20, warmup_epochs=0.5,
        compose=ComposeConfig(size=SIDE, objects=2),
    )  # fmt: skip
    return replace(config, **changes)


def finetune_small(config):
    """One start of a run on this rank, without Ray."""
    task = SegmentTask(config, load(config), torch.device("cpu"), Ranks.here())
    return run(task, config, Location.parse(config.out) / "checkpoints", RecordingHooks())


def test_a_killed_worker_costs_nothing(ray_cluster, tmp_path, capsys):
    """The weights of ranks that never knew Ray, bit for bit; then they are measured and used."""
    data, out, figures = (
        write_squares(tmp_path / "a.parquet"),
        tmp_path / "run",
        tmp_path / "f.json",
    )
    flags = [
        *("--data", data, "--out", out, "--workers", 2, "--init-weights", "scratch"),
        *("--epochs", 3, "--batch-size", 4, "--val-fraction", 0.1, "--precision", "float32"),
        *("--device", "cpu", "--ema-half-life", 20, "--warmup-epochs", 0.5),
        *("--compose.size", SIDE, "--compose.objects", 2, "--save-minutes", 0.002),
    ]
    job = ray_cluster.job(*flags, module="jobs.finetune")
    wait_for(lambda: step_of(out) > 0 or job.poll() is not None)
    training_workers(ray_cluster)[0].kill()
    output = finish(job)
    assert "going on from step" in output
    assert "done: mean IoU" in output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["resumed"] == 1
    assert summary["samples_seen"] == 3 * 5 * 4  # 20 images to train on: 5 batches an epoch
    on_ranks(2, finetune_small, small(tmp_path / "reference", data, workers=2), folder=tmp_path)
    for part in ("weights", "average", "optimizer"):
        ours, theirs = (final(folder, part) for folder in (out, tmp_path / "reference"))
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    for name in ("curves.png", "config.yaml", "metrics.csv", "export/README.md", "events"):
        assert (out / name).stat().st_size > 0
    assert str(tmp_path) not in (out / "export/README.md").read_text()

    argv = ["--evaluate", "--weights", out, "--data", data, "--json", figures]
    assert main([*map(str, argv)]) == 0
    found = json.loads(figures.read_text())
    assert (found["images"], found["masks"]) == (24, 48)
    assert all(0 <= found[name] <= 1 for name in ("miou_1", "miou_3", "miou_5"))
    assert 1 <= found["clicks_to_85"] <= 10
    assert {"versions", "hardware"} <= found.keys()
    assert f"mean IoU {found['miou_1']:.3f}" in capsys.readouterr().out

    picture, mask = tmp_path / "click.png", tmp_path / "mask.png"
    argv = ["--image", "flower", "--points", 320, 210, "--weights", out, "--out", picture]
    assert click.main([*map(str, argv), "--mask", str(mask)]) == 0
    with Image.open(picture) as drawn, Image.open(mask) as alone:
        assert (drawn.size, alone.size) == ((640, 427), (640, 427))
        assert set(np.unique(np.asarray(alone))) <= {0, 255}
    assert "of the image, predicted IoU" in capsys.readouterr().out


def test_ranks_share_the_samples_of_one(tmp_path):
    """The same batches, whatever the number of ranks; of gradients see test_segment_steps."""
    config = small(tmp_path / "run", write_squares(tmp_path / "a.parquet"))
    sets, cpu = load(config), torch.device("cpu")
    whole = SegmentTask(config, sets, cpu, Ranks(0, 1))._compose(1, 2)
    parts = [SegmentTask(config, sets, cpu, Ranks(rank, 3))._compose(1, 2) for rank in range(3)]
    for one, some in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(some))


def test_a_frozen_encoder_stays_as_it_is(tmp_path):
    data = write_squares(tmp_path / "a.parquet")
    torch.manual_seed(3)
    start = Mini()
    weights = tmp_path / "start.safetensors"
    save_file(start.state_dict(), weights, {"architecture": "mini"})
    config = small(tmp_path / "run", data, epochs=1, init_weights=str(weights), encoder_lr=0.0)
    finetune_small(config)
    before = start.state_dict()
    after = {n.removeprefix("network."): t for n, t in final(tmp_path / "run", "weights").items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not {name for name in changed if name.startswith("encoder.")}
    weights.unlink()  # a checkpoint needs nothing else to go on
    assert finetune_small(replace(config, epochs=2))["step"] == 10


@pytest.mark.parametrize(
    "recipe",
    [
        "mini.yaml",
        "mini_longer.yaml",
        "mini_clicks.yaml",
        "mini_larger.yaml",
        "mini_centred.yaml",
        "mini_once.yaml",
        "mini_whole.yaml",
    ],
)
def test_the_recipes_take_their_first_steps(recipe, tmp_path):
    data = write_squares(tmp_path / "a.parquet")
    flags = ["--config", recipe, "--data", data, "--out", "unused", "--batch-size", 2]
    flags += ["--seed", -(2**40), "--compose.size", SIDE]
    config = parse(FinetuneConfig, list(map(str, flags)), "test", "")
    task = SegmentTask(config, load(config), torch.device("cpu"), Ranks(0, 1))
    model = task.build()
    optimizer, average = task.optimizer(model), task.average(model)
    task.settle(model, task.decide(model, 2))
    before = [parameter.clone() for parameter in model.parameters()]
    for number in range(2):
        sums = task.gradients(model, 0, number, number)
        assert torch.isfinite(sums).all()
        assert task.update(model, optimizer, average, number) > 0
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert changed == [parameter.requires_grad for parameter in model.parameters()]


def test_validation_takes_images_of_all_files():
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(3, 64).tolist() == [0, 1, 2]


def refused(capsys, *argv):
    """What is said of flags that end with 2, before a Ray is started."""
    try:
        code = main([*map(str, argv)])
    except SystemExit as stop:  # of what no config can be
        code = stop.code
    assert code == 2
    said = capsys.readouterr()
    assert "Ray" not in said.out
    return said.err


def test_an_evaluation_names_all_bad_images_before_it_measures(tmp_path, capsys):
    rows = pq.read_table(write_squares(tmp_path / "a.parquet")).to_pylist()[:4]
    rows[1] |= {"image": b"no image"}
    rows[3] |= {"masks": rows[3]["masks"][:30]}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    flags = ["--evaluate", "--weights", "mini", "--data", tmp_path / "b.parquet"]
    said = refused(capsys, *flags)
    assert "row 1 (1): the image does not decode" in said
    assert "row 3 (3): column masks does not decode" in said
    assert "--images is -1; at least 0" in refused(capsys, *flags, "--images", -1)


def test_bad_pairs_are_all_named_before_anything_starts(tmp_path, capsys):
    good = pq.read_table(write_squares(tmp_path / "a.parquet")).to_pylist()
    empty, large = np.zeros((SIDE, SIDE), np.uint8), np.ones((SIDE, 9), np.uint8)
    bad = [
        {**good[0], "masks": png(empty)},
        {**good[0], "masks": png(large)},
        {**good[0], "image": good[0]["image"][:200]},
    ]
    file = tmp_path / "b.parquet"
    pq.write_table(pa.Table.from_pylist([*good, *bad]), file)
    flags = ["--data", file, "--out", tmp_path / "run", "--init-weights", "scratch"]
    said = refused(capsys, *flags, "--compose.size", SIDE)
    for row, reason in ((24, "no object"), (25, "has 9x64 pixels"), (26, "does not decode")):
        assert any(f"b.parquet, row {row}" in line and reason in line for line in said.splitlines())
    assert "--max-bad-images 3" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["--data", "missing.parquet"], r"no such file or folder.*missing\.parquet"),
        (["--init-weights", "vit_x"], r"weights .*vit_x"),
        (["--compose.size", "60"], r"--compose\.size is 60; these weights need a multiple of 32"),
        (["--frozen-stages", "9", "--init-weights", "lite0"], "is 9; this encoder has 8"),
        (["--batch-size", "500"], "20 images to train on, fewer than"),
        (["--pairs.smallest", "0.9"], "none of the 20 images to train on can be used"),
        (["--frozen-stages", "0", "--encoder-lr", "0"], "scratch has learnt nothing"),
        (["--val-images", "0"], "--val-images is 0; at least 1 is needed"),
        (["--weight-decay", "-1"], "--weight-decay is -1.0; at least 0 is needed"),
        (["--lr", "nan"], "--lr is nan"),
        (["--prompts.focal", "-1"], "prompts.focal is -1.0; at least 0 is needed"),
        (["--prompts.boxes", "0.8", "--prompts.stale", "0.9"], "at most 1 together"),
        (["--pairs.longest", "32"], "--pairs.longest is 32, less than"),
        (["--init-weights", "vit_b"], "--compose.size 1024 --pairs.longest 1024"),
    ],
)
def test_bad_flags(tmp_path, capsys, changes, reason):
    data = write_squares(tmp_path / "a.parquet")
    flags = ["--data", data, "--out", tmp_path / "run", "--init-weights", "scratch"]
    flags += ["--compose.size", SIDE, "--val-fraction", 0.1, *changes]
    assert re.search(reason, refused(capsys, *flags), re.DOTALL)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["--weights", "missing"], "neither a name"),
        (["--points", "900", "5"], "900"),
        (["--image", "missing.jpg"], "missing.jpg"),
        (["--points", "3", "5", "--labels", "0"], "only background points"),
    ],
)
def test_a_bad_click(tmp_path, capsys, mini_file, changes, reason):
    flags = ["--image", "flower", "--points", "9", "5", "--weights", mini_file, "--out"]
    assert click.main([*map(str, flags), str(tmp_path / "x.png"), *changes]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("flag", ["--out", "--mask"])
def test_a_picture_that_is_not_called_png_is_refused(tmp_path, capsys, flag):
    flags = {"--out": "x.png", "--mask": "y.png"} | {flag: "z.jpg"}
    argv = ["--image", "flower", "--points", "9", "5"]
    for name, file in flags.items():
        argv += [name, str(tmp_path / file)]
    with pytest.raises(SystemExit, match="2"):
        click.main(argv)
    assert "ends in .png" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.fixture
def mini_file(tmp_path):
    file = tmp_path / "mini.safetensors"
    save_file(Mini().state_dict(), file, {"architecture": "mini"})
    assert load_segmenter(str(file), torch.device("cpu"))
    return file
