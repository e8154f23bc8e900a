"""`jobs.train` without a cluster: bad flags, what must not change, and a run in S3."""

import io
import subprocess
import sys

import pytest
from safetensors.torch import load

from jobs.run.config import ConfigError
from jobs.storage.location import Location
from jobs.train import main
from tests.conftest import ROOT
from tests.tasks import SMALL
from tests.trained import train_and_conclude


def test_relative_out_is_refused_when_submitted(monkeypatch, capsys):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main(["--out", "runs/x", *SMALL]) == 2
    assert "--out" in capsys.readouterr().err


def error(capsys, *argv):
    assert main([*map(str, argv)]) == 2
    return capsys.readouterr().err


def test_bad_input_ends_before_anything_starts(capsys, tmp_path):
    folder = tmp_path / "images"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
    out = ["--out", tmp_path / "run"]
    missing = error(capsys, *out, "--dataset.name", "imagefolder", "--data", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in missing
    assert "images" in error(capsys, *out, "--dataset.name", "imagefolder", "--data", folder)
    assert "5000" in error(capsys, *out, "--batch-size", "5000", "--workers", "2")
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert str(blocked) in error(capsys, "--out", blocked / "run", *SMALL)
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_resumed_run_must_not_change(capsys, tmp_path):
    from jobs.classifier.task import TrainConfig
    from jobs.run.config import parse
    from jobs.run.folder import check_same, describe

    out = tmp_path / "run"
    config = parse(TrainConfig, ["--out", str(out), *SMALL], "jobs.train", "")
    describe(Location.parse(out), config)
    changed = [*SMALL, "--model.depth", "3", "--optim.lr", "1e-3"]
    check_same(Location.parse(out), parse(TrainConfig, ["--out", "x", *changed], "", ""))
    (out / "checkpoints/step-1-a").mkdir(parents=True)  # from here on it is a run
    message = error(capsys, "--out", out, *changed)
    assert "--model.depth is 3, but the run was started with 2" in message
    assert "--optim.lr is 0.001, but the run was started with" in message
    less = ["--optim.accumulate", "2", "--dataset.cache-gb", "0", "--dataset.max-bad-images", "3"]
    check_same(Location.parse(out), parse(TrainConfig, ["--out", "x", *SMALL, *less], "", ""))
    with pytest.raises(ConfigError, match="holds a training; give another --out"):
        check_same(Location.parse(out), config, began="predictions")


def test_help_starts_nothing():
    ran = subprocess.run(
        [sys.executable, "-m", "jobs.train", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0
    assert "--model.embed-dim" in ran.stdout
    assert io.StringIO(ran.stderr).read() == ""


def test_a_run_in_s3_is_whole(s3):
    out = Location.parse(f"{s3}/runs/one")
    train_and_conclude(str(out), epochs=2)
    summary = (out / "summary.json").read_json()
    assert summary["epochs"] == 2
    weights = load((out / "export" / "model.safetensors").read_bytes())
    assert weights["patch_embed.proj.weight"].shape == (32, 3, 4, 4)
    names = {entry.name for entry in out.list()}
    assert names >= {"curves.png", "checkpoints"}
    assert (out / "checkpoints" / "last.json").read_json()["step"] == 2 * (1294 // 64)
