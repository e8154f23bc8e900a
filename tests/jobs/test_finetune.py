"""`jobs.finetune` on a Ray cluster: interrupted and resumed, with its run in S3."""

import json
import signal

import numpy as np
import torch
from PIL import Image

from jobs import click
from jobs.finetune import main
from jobs.storage.location import Location
from tests.ranks import on_ranks
from tests.ray_cluster import finish, wait_for
from tests.squares import SIDE, finetune_small, small, write_squares
from tests.trained import final, step_of


def test_ctrl_c_costs_nothing(ray_cluster, s3, tmp_path, capsys):
    """SIGINT on two nodes, a worker and a (fake) GPU on each, and the same command once more.

    The weights are those of ranks that never knew Ray, bit for bit; then they are measured and
    used.
    """
    data, out = write_squares(tmp_path / "a.parquet"), Location.parse(f"{s3}/runs/one")
    flags = [
        *("--data", data, "--out", out, "--workers", 2, "--gpus-per-worker", 1),
        *("--init-weights", "scratch", "--epochs", 3, "--batch-size", 4, "--val-fraction", 0.1),
        *("--val-images", 1, "--precision", "float32", "--device", "cpu", "--ema-half-life", 20),
        *("--warmup-epochs", 0.5, "--compose.size", SIDE, "--compose.objects", 2),
        *("--save-minutes", 0.002),
    ]
    job = ray_cluster.job(*flags, module="jobs.finetune")
    wait_for(lambda: step_of(out) >= 0, job)
    job.send_signal(signal.SIGINT)
    output = finish(job, code=130)
    stopped_at = step_of(out)
    assert f"stopped after step {stopped_at}" in output
    output = finish(ray_cluster.job(*flags, module="jobs.finetune"))
    assert f"from step {stopped_at}" in output
    assert "done: mean IoU" in output
    summary = (out / "summary.json").read_json()
    assert (summary["resumed"], summary["nodes"]) == (1, 2)
    assert summary["samples_seen"] == 3 * 5 * 4  # 20 images to train on: 5 batches an epoch
    on_ranks(2, finetune_small, small(tmp_path / "reference", data, workers=2), folder=tmp_path)
    for part in ("weights", "average", "optimizer"):
        ours, theirs = (final(folder, part) for folder in (out, tmp_path / "reference"))
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    for name in ("curves.png", "config.yaml", "metrics.csv", "export/README.md"):
        assert (out / name).read_bytes()
    assert (out / "events").list()
    assert str(tmp_path) not in (out / "export/README.md").read_text()
    measure(out, data, tmp_path / "figures.json", capsys)
    use(out, tmp_path, capsys)


def measure(weights, data, figures, capsys):
    argv = ["--evaluate", "--weights", weights, "--data", data, "--json", figures]
    assert main([*map(str, argv)]) == 0
    found = json.loads(figures.read_text())
    assert (found["images"], found["masks"]) == (24, 48)
    assert all(0 <= found[name] <= 1 for name in ("miou_1", "miou_3", "miou_5"))
    assert 1 <= found["clicks_to_85"] <= 10
    assert {"versions", "hardware"} <= found.keys()
    assert f"mean IoU {found['miou_1']:.3f}" in capsys.readouterr().out


def use(weights, folder, capsys):
    picture, mask = folder / "click.png", folder / "mask.png"
    argv = ["--image", "flower", "--points", 320, 210, "--weights", weights, "--out", picture]
    assert click.main([*map(str, argv), "--mask", str(mask)]) == 0
    with Image.open(picture) as drawn, Image.open(mask) as only:
        assert (drawn.size, only.size) == ((640, 427), (640, 427))
        assert set(np.unique(np.asarray(only))) <= {0, 255}
    assert "of the image, predicted IoU" in capsys.readouterr().out
