"""`jobs.finetune` and `jobs.click` without a cluster: batches, frozen parts, recipes, bad input."""

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from jobs import click
from jobs.finetune import main
from jobs.run.config import parse
from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.data import load, spread
from jobs.segmenter.task import SegmentTask
from jobs.training.ranks import Ranks
from jobs.weights.segmenter import load_segmenter
from masking.segmenter.mini import Mini
from tests.squares import SIDE, finetune_small, small, write_squares
from tests.trained import final, png


def test_ranks_share_the_samples_of_one(tmp_path):
    """The same batches, whatever the number of ranks; gradients: tests/masking/training."""
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
    weights.unlink()  # a checkpoint needs nothing else to resume
    assert finetune_small(replace(config, epochs=2)).state.step == 10


@pytest.mark.parametrize(
    "recipe",
    [
        "masking/weights/recipes/mini.yaml",
        "masking/weights/recipes/mini_longer.yaml",
        "masking/weights/recipes/mini_clicks.yaml",
        "masking/weights/recipes/mini_larger.yaml",
        "masking/weights/recipes/mini_centred.yaml",
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
    task.apply(model, task.decide(model, 2))
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
        (["--frozen-stages", "0", "--encoder-lr", "0"], "scratch has no pretrained stages"),
        (["--val-images", "0"], "--val-images is 0; at least 1 is needed"),
        (["--weight-decay", "-1"], "--weight-decay is -1.0; at least 0 is needed"),
        (["--lr", "nan"], "--lr: nan is not a finite number"),
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
