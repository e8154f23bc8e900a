"""`jobs.train` as people start it: on a Ray cluster, killed, stopped, submitted, on two nodes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from ray.job_submission import JobStatus, JobSubmissionClient
from safetensors.torch import load, load_file

from jobs.run.config import ConfigError, as_yaml
from jobs.storage.location import Location
from jobs.train import main
from tests.conftest import ROOT, submit
from tests.ranks import on_ranks
from tests.tasks import every_option, train_small, write_digits

SMALL = [
    *("--config", "digits.yaml", "--model.patch-size", "4", "--model.embed-dim", "32"),
    *("--model.depth", "2", "--model.num-heads", "2", "--optim.warmup-epochs", "1"),
    *("--cpus-per-worker", "0.5", "--device", "cpu"),
]


def finish(job, code=0):
    output, _ = job.communicate(timeout=200)
    assert job.returncode == code, output
    return output


def wait_for(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def step_of(out):
    try:
        return json.loads((out / "checkpoints/last.json").read_text())["step"]
    except (OSError, ValueError):
        return -1


def final(out, part):
    name = json.loads((out / "checkpoints/last.json").read_text())["checkpoint"]
    return load_file(out / "checkpoints" / name / f"{part}.safetensors")


def training_workers(ray_cluster):
    found = [psutil.Process(node.pid).children(recursive=True) for node in ray_cluster.nodes]
    return [p for node in found for p in node if "RayTrainWorker" in " ".join(p.cmdline())]


def test_every_option_ctrl_c_and_a_killed_worker(ray_cluster, tmp_path):
    """SIGINT, then kill -9 in mid-epoch: the weights of ranks that never knew Ray, bit for bit.

    Every option is on. What comes out is measured by evaluation and prediction too.
    """
    out, images = tmp_path / "run", write_digits(tmp_path / "images")
    recipe = tmp_path / "everything.yaml"
    recipe.write_text(as_yaml(every_option(out, images)))
    relative = os.path.relpath(out, ROOT)  # the workers' folder is another
    flags = ["--config", recipe, "--out", relative, "--workers", "2", "--save-minutes", "0.005"]
    job = ray_cluster.job(*flags)
    wait_for(lambda: step_of(out) >= 0)
    job.send_signal(signal.SIGINT)
    output = finish(job, code=130)
    stopped_at = step_of(out)
    assert f"stopped after step {stopped_at}" in output

    job = ray_cluster.job(*flags)
    wait_for(lambda: step_of(out) > stopped_at)
    training_workers(ray_cluster)[0].kill()
    output = finish(job)
    assert f"going on from step {stopped_at}" in output
    assert "lost rank" in output
    assert "cut.png" in output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["resumed"] == 2
    reference = every_option(tmp_path / "reference", images)
    (facts, *_), *_ = on_ranks(2, train_small, reference, folder=tmp_path)
    for part in ("weights", "average", "optimizer"):
        ours, theirs = (final(folder, part) for folder in (out, tmp_path / "reference"))
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert summary["test_accuracy"] == facts["test"]["test_accuracy"]
    rows = (out / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3"]
    for name in ("curves.png", "config.yaml", "versions.json", "export/README.md", "events"):
        assert (out / name).stat().st_size > 0
    again = finish(ray_cluster.job(*flags))
    assert "done: test accuracy" in again
    assert "Ray" not in again  # none is started for a run that is over

    assert evaluated(out, images, tmp_path / "figures.json") == summary["test_accuracy"]
    assert predicted(ray_cluster, out, images / "test", tmp_path) == summary["test_accuracy"]


def evaluated(weights, images, figures):
    flags = ["--evaluate", "--weights", weights, "--data", images, "--json", figures]
    assert main([*map(str, [*flags, "--dataset.max-bad-images", "1"])]) == 0
    return json.loads(figures.read_text())["accuracy"]


def predicted(ray_cluster, weights, images, folder):
    out = folder / "predicted"
    flags = ["--weights", weights, "--data", images, "--out", out, "--device", "cpu"]
    finish(ray_cluster.job(*flags, module="jobs.predict"))
    table = pd.concat(map(pd.read_parquet, sorted(out.glob("predictions/*.parquet"))))
    labels = [Path(path).parent.name for path in table["path"]]
    return (table["class"] == labels).mean()


def test_submitted_stopped_and_submitted_again(ray_cluster, tmp_path):
    """`ray job submit`, `ray job stop` (SIGTERM, 3 s), and the same submission once more."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    client = JobSubmissionClient(ray_cluster.http)
    out = tmp_path / "run"
    flags = [*SMALL, "--out", str(out), "--epochs", "300", "--save-minutes", "60"]

    def ended(job):
        return client.get_job_status(job).is_terminal()

    first = submit(client, "jobs.train", *flags)
    wait_for(lambda: step_of(out) > 20 or ended(first))
    client.stop_job(first)
    wait_for(lambda: ended(first), 60)
    assert client.get_job_status(first) == JobStatus.STOPPED, client.get_job_logs(first)
    logs = client.get_job_logs(first)
    assert "saved; the same command goes on" in logs
    stopped_at = step_of(out)
    assert f"stopped after step {stopped_at}" in logs

    second = submit(
        client, "jobs.train", *flags, "--patience", "1"
    )  # patience may change: it ends soon
    wait_for(lambda: ended(second))
    logs = client.get_job_logs(second)
    assert client.get_job_status(second) == JobStatus.SUCCEEDED, logs
    assert f"going on from step {stopped_at}" in logs
    assert json.loads((out / "summary.json").read_text())["resumed"] == 1


def test_relative_out_is_refused_when_submitted(monkeypatch, capsys):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main(["--out", "runs/x", *SMALL]) == 2
    assert "--out" in capsys.readouterr().err


def test_two_nodes_with_gpus_and_a_run_in_s3(ray_cluster, s3):
    """One (fake) GPU a node and one a worker, so two nodes; --out is a bucket."""
    out = Location.parse(f"{s3}/runs/one")
    flags = ["--workers", "2", "--gpus-per-worker", "1", "--epochs", "2"]
    finish(ray_cluster.job("--out", out, *SMALL, *flags))
    summary = (out / "summary.json").read_json()
    assert summary["nodes"] == 2
    assert summary["epochs"] == 2
    weights = load((out / "export" / "model.safetensors").read_bytes())
    assert weights["patch_embed.proj.weight"].shape == (32, 3, 4, 4)
    names = {entry.name for entry in out.list()}
    assert names >= {"metrics.csv", "events", "curves.png", "checkpoints", "config.yaml"}
    last = (out / "checkpoints" / "last.json").read_json()
    assert last["step"] == 2 * (1294 // 128)


def test_more_than_the_cluster_has_is_refused_at_once(ray_cluster, tmp_path):
    output = finish(ray_cluster.job("--out", tmp_path / "run", *SMALL, "--workers", "64"), code=2)
    assert "64 workers ask for 0.5 CPUs each" in output
    assert "--workers 8" in output
    assert not (tmp_path / "run/checkpoints").exists()


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
