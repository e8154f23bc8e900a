"""`jobs.tune` on a Ray cluster: real trials, a kill, faults, what is left behind."""

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
from tests.ray_cluster import finish, submit, wait_for
from tests.sweeps import SMALL

TRIALS = 4
"""Trials of the sweep that is killed."""


def rows(out, number):
    """Rows of a trial that are on record."""
    path = out / f"trials/{number:04}/trial.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


FREE = """
import ray, time
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
while True:
    print(time.time(), ray.available_resources().get("CPU", 0), flush=True)
    time.sleep(0.5)
"""


def records(out):
    """What is on record of every trial, by its name."""
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("trials/*/*.json")}


def kill_in_the_middle(job, out):
    """kill -9 once the third trial has two epochs; what was on record then."""
    wait_for(lambda: len(rows(out, 2)) >= 2, job)
    job.kill()
    job.wait()
    return records(out)


def test_a_killed_sweep_is_resumed(ray_cluster, run_here, tmp_path):
    """kill -9 of the driver: nothing finished runs again, at most an epoch a trial is repeated."""
    out = tmp_path / "sweep"
    space = ("--space", "model.depth", "1..3", "optim.lr", "1e-3..1e-2 log")
    flags = (*SMALL, "--out", out, "--epochs", "6", "--trials", str(TRIALS), "--concurrent", "2")
    flags += (*space, "--retrain-top", "1", "--seeds", "2")
    before = kill_in_the_middle(ray_cluster.job(*flags, module="jobs.tune"), out)
    assert len(before) >= 3
    finish(ray_cluster.job(*flags, module="jobs.tune"))
    after = records(out)
    assert len(after) == TRIALS
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
    assert "trials at once" not in run_here(main, *flags)
    assert records(out) == after
    said = run_here(main, *flags, "--space", "model.depth", "1..2", code=2)
    assert "--space is {'model.depth': '1..2'}, but the run was started with" in said


def check_outputs(out, trials):
    """The files of a sweep agree with its record, and with each other."""
    summary = json.loads((out / "summary.json").read_text())
    assert summary["trials"] == summary["finished"] + summary["stopped"] == TRIALS
    assert 0 < summary["flops_spent"] <= summary["flops_grid"]
    again = summary["retrained"][0]
    assert again["seeds"] == 2
    assert 0.3 < again["test_mean"] <= 1
    assert again["params"] == summary["best"]["params"]
    assert list(pd.read_parquet(out / "trials.parquet")["trial"]) == list(range(TRIALS))
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
    said = finish(job)
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
    # Of trials that learn nothing and are equally good, ASHA stops all but the first.
    flags += ("--trials", "3", "--searcher", "grid", "--space", "optim.lr", "3e-3, 1e-9, 2e-9")
    job = ray_cluster.job(*SMALL, "--out", out, *flags, module="jobs.tune")
    environment = ray_cluster.environment | {"RAY_ADDRESS": ray_cluster.address}
    with subprocess.Popen(
        [sys.executable, "-c", FREE], env=environment, stdout=subprocess.PIPE, text=True
    ) as watch:
        try:
            finish(job)
            during, after, end = [], [], time.time()
            while after[-3:] != [4.0] * 3:
                assert time.time() < end + 30, after
                when, free = map(float, watch.stdout.readline().split())
                (after if when > end else during).append(free)
        finally:
            watch.kill()
    assert min(during) == 0.0  # of the four: two trials of two processes at once
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


def test_more_gpus_than_any_node_has(run_here, tmp_path):
    asked = ("--device", "cuda", "--gpus-per-trial", "3")
    said = run_here(main, *SMALL, *asked, "--out", tmp_path / "sweep", code=2)
    assert "3 GPUs" in said
    assert "--gpus-per-trial 0" in said
    assert not (tmp_path / "sweep/trials").exists()
