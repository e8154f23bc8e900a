"""Sweeps on the session's Ray cluster: real trials, a kill, faults, what is left behind."""

import json
import subprocess
import sys
import time

import pandas as pd
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from jobs.classifier.task import TrainConfig
from jobs.run.config import parse
from jobs.storage.location import Location
from jobs.tune import main
from tests.conftest import submit

SMALL = (
    *("--config", "digits_sweep.yaml", "--device", "cpu", "--epochs", "9"),
    *("--optim.warmup-epochs", "0.5", "--model.embed-dim", "48"),
)


def rows(out, number):
    """Rows of a trial that are on record."""
    path = out / f"trials/{number:04}/trial.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


FREE = """
import ray, time
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
while True:
    print(ray.available_resources().get("CPU", 0), flush=True)
    time.sleep(0.5)
"""


def finish(job):
    """Wait for a job; its exit code and what it said."""
    said = job.communicate(timeout=400)[0]
    return job.returncode, said


def records(out):
    """What is on record of every trial, by its name."""
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("trials/*/*.json")}


def kill_in_the_middle(job, out):
    """kill -9 once the third trial has two epochs; what was on record then."""
    deadline = time.monotonic() + 300
    while len(rows(out, 2)) < 2 and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.1)
    job.kill()
    job.wait()
    return records(out)


def test_a_killed_sweep_goes_on(ray_cluster, tmp_path):
    """kill -9 of the driver: nothing finished runs again, at most an epoch a trial is repeated."""
    out = tmp_path / "sweep"
    space = ("--space", "model.depth", "1..3", "optim.lr", "1e-3..1e-2 log")
    flags = (*SMALL, "--out", out, "--trials", "5", *space, "--retrain-top", "1", "--seeds", "2")
    before = kill_in_the_middle(ray_cluster.job(*flags, module="jobs.tune"), out)
    assert len(before) >= 3
    code, said = finish(ray_cluster.job(*flags, module="jobs.tune"))
    assert code == 0, said
    after = records(out)
    assert len(after) == 5
    for name, trial in before.items():
        assert after[name]["sample"] == trial["sample"]
        assert after[name]["rows"][: len(trial["rows"])] == trial["rows"]
        assert after[name] == trial or not trial["fate"]
    for trial in after.values():
        assert trial["fate"] in ("finished", "stopped")
        assert [row["epoch"] for row in trial["rows"]] == list(range(1, len(trial["rows"]) + 1))
        assert not trial["facts"].get("test")
    check_outputs(out, after)

    # Once more: nothing is left to do. And another space in the same folder.
    code, said = finish(ray_cluster.job(*flags, module="jobs.tune"))
    assert code == 0
    assert "trials at once" not in said
    assert records(out) == after
    other = (*flags, "--space", "model.depth", "1..2")
    code, said = finish(ray_cluster.job(*other, module="jobs.tune"))
    assert code == 2
    assert "--space is {'model.depth': '1..2'}, but the run was started with" in said


def check_outputs(out, trials):
    """The files of a sweep agree with its record, and with each other."""
    summary = json.loads((out / "summary.json").read_text())
    assert summary["trials"] == 5
    assert summary["finished"] + summary["stopped"] == 5
    assert 0 < summary["flops_spent"] <= summary["flops_grid"]
    again = summary["retrained"][0]
    assert again["seeds"] == 2
    assert 0.3 < again["test_mean"] <= 1
    assert again["params"] == summary["best"]["params"]
    assert list(pd.read_parquet(out / "trials.parquet")["trial"]) == list(range(5))
    page = (out / "report.html").read_text()
    assert "data:image/png;base64" in page
    assert "http" not in page
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob("trials/*/checkpoints/step-*"))
    best = parse(TrainConfig, ["--config", str(out / "best.yaml"), "--out", "x"], "jobs.train", "")
    params = summary["best"]["params"]
    assert (best.model.depth, best.optim.lr) == (params["model.depth"], params["optim.lr"])
    assert best.epochs == trials[f"{summary['best']['trial']:04}"]["epochs"]


def test_faults_of_trials_cost_only_them(ray_cluster, tmp_path):
    """Out of memory, and a loss that is not finite: named, and the others are ranked."""
    out = tmp_path / "sweep"
    space = ("--space", "model.mlp_ratio", "2, 1e9", "optim.lr", "3e-3, 1e30")
    budget = ("--budget", "epochs", "--max-budget", "2", "--optim.warmup-epochs", "0.1")
    kind = ("--searcher", "grid", "--scheduler", "none")
    job = ray_cluster.job(*SMALL, "--out", out, *budget, *kind, *space, module="jobs.tune")
    code, said = finish(job)
    assert code == 0, said
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["finished"], summary["diverged"], summary["failed"]) == (1, 1, 2)
    table = pd.read_csv(out / "trials.csv").set_index("fate")
    assert "out of memory" in table.loc["failed", "reason"].iloc[0]
    assert "not finite" in table.loc["diverged", "reason"]
    assert summary["best"]["params"] == {"model.mlp_ratio": 2.0, "optim.lr": 3e-3}
    assert "out of memory" in said


def test_trials_of_several_processes_leave_nothing_behind(ray_cluster, tmp_path):
    """Each holds its whole share while it runs; when it is stopped all of it is free."""
    out = tmp_path / "sweep"
    flags = ("--workers-per-trial", "2", "--cpus-per-trial", "2", "--concurrent", "2")
    job = ray_cluster.job(
        *SMALL, "--out", out, "--trials", "5", "--searcher", "random", *flags, module="jobs.tune"
    )
    environment = ray_cluster.environment | {"RAY_ADDRESS": ray_cluster.address}
    with subprocess.Popen(
        [sys.executable, "-c", FREE], env=environment, stdout=subprocess.PIPE, text=True
    ) as watch:
        code, said = finish(job)
        time.sleep(10)
        watch.kill()
        free = [float(line) for line in watch.stdout.read().split()]
    assert code == 0, said
    assert min(free) == 0.0  # of the four: two trials of two processes at once
    assert set(free[-3:]) == {4.0}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["stopped"] >= 1
    assert summary["finished"] >= 1


@pytest.mark.slow
def test_submitted_with_its_folder_in_s3(ray_cluster, s3, monkeypatch):
    """By the Jobs API; the same submission once more finds nothing left to do."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    client, out = JobSubmissionClient(ray_cluster.http), Location.parse(f"{s3}/sweep")
    argv = [*SMALL, "--out", str(out), "--trials", "3", "--budget", "epochs", "--max-budget", "3"]

    def run():
        job = submit(client, "jobs.tune", *argv)
        deadline = time.monotonic() + 400
        while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
            time.sleep(1)
        assert client.get_job_status(job) == JobStatus.SUCCEEDED, client.get_job_logs(job)
        return client.get_job_logs(job)

    run()
    names = {entry.name for entry in out.list()}
    assert names >= {"trials.csv", "trials.parquet", "best.yaml", "report.html", "curves.png"}
    summary = (out / "summary.json").read_json()
    assert summary["trials"] == 3
    assert summary["finished"] + summary["stopped"] == 3
    assert "trials at once" not in run()
    best = f"{out}/best.yaml"
    assert parse(TrainConfig, ["--config", best, "--out", "x"], "jobs.train", "").epochs == 3


def test_more_gpus_than_any_node_has(ray_cluster, tmp_path):
    asked = ("--device", "cuda", "--gpus-per-trial", "3")
    job = ray_cluster.job(*SMALL, *asked, "--out", tmp_path / "sweep", module="jobs.tune")
    code, said = finish(job)
    assert code == 2
    assert "3 GPUs" in said
    assert "--gpus-per-trial 0" in said
    assert not (tmp_path / "sweep/trials").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--space", "model.dept", "1..3"), "perhaps you meant model.depth"),
        (("--space", "model.depth", "3..1"), "is empty"),
        (("--max-budget", "10"), "one epoch takes"),
        (("--data", "/nowhere"), "--data: no such file or folder: /nowhere"),
    ],
)
def test_bad_input(flags, words, tmp_path, capsys):
    """Said before Ray starts; nothing is left in the folder."""
    assert main([*SMALL, "--out", str(tmp_path / "sweep"), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()
