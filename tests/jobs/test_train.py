"""`jobs.train` on a Ray cluster: a worker is killed, a job is stopped and submitted again."""

import json
import os

import torch
from ray.job_submission import JobStatus, JobSubmissionClient

from jobs.classifier.predictor import open_classifier
from jobs.run.config import as_yaml
from jobs.train import main
from jobs.weights.classifier import load_weights
from tests.conftest import ROOT
from tests.ranks import on_ranks
from tests.ray_cluster import finish, submit, wait_for
from tests.tasks import SMALL, every_option, train_small, write_digits
from tests.trained import final, rows_of, step_of


def test_every_option_and_a_killed_worker(ray_cluster, run_here, tmp_path):
    """kill -9 of a worker in mid-epoch: the weights of ranks that never knew Ray, bit for bit.

    Every option is on. What comes out is measured by evaluation and prediction too.
    """
    out, images = tmp_path / "run", write_digits(tmp_path / "images")
    recipe = tmp_path / "everything.yaml"
    recipe.write_text(as_yaml(every_option(out, images)))
    relative = os.path.relpath(out, ROOT)  # the workers' folder is another
    flags = ["--config", recipe, "--out", relative, "--workers", "2", "--save-minutes", "0.005"]
    job = ray_cluster.job(*flags)
    wait_for(lambda: step_of(out) >= 0, job)
    ray_cluster.processes("RayTrainWorker")[0].kill()
    output = finish(job)
    assert "from step" in output
    assert "lost rank" in output
    assert "cut.png" in output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["resumed"] == 1
    reference = every_option(tmp_path / "reference", images)
    (result, *_), *_ = on_ranks(2, train_small, reference, folder=tmp_path)
    for part in ("weights", "average", "optimizer"):
        ours, theirs = (final(folder, part) for folder in (out, tmp_path / "reference"))
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert summary["test_accuracy"] == result.test["test_accuracy"]
    rows = (out / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3"]
    for name in ("curves.png", "config.yaml", "versions.json", "export/README.md", "events"):
        assert (out / name).stat().st_size > 0
    again = run_here(main, *flags)
    assert "done: test accuracy" in again
    assert "Ray" not in again  # none is started for a run that is over

    assert evaluated(out, images, tmp_path / "figures.json") == summary["test_accuracy"]
    assert predicted(out, images / "test") == summary["test_accuracy"]


def evaluated(weights, images, figures):
    flags = ["--evaluate", "--weights", weights, "--data", images, "--json", figures]
    assert main([*map(str, [*flags, "--dataset.max-bad-images", "1"])]) == 0
    return json.loads(figures.read_text())["accuracy"]


def predicted(weights, images):
    """The accuracy of `jobs.predict` on images in folders that are called by their class."""
    model, about = open_classifier(load_weights(str(weights)), torch.device("cpu"))
    rows = rows_of([images], model, about.classes)
    return sum(row["class"] == row["path"].split("/")[-2] for row in rows) / len(rows)


def test_submitted_stopped_and_submitted_again(ray_cluster, tmp_path, monkeypatch):
    """`ray job submit`, `ray job stop` (SIGTERM, 3 s), and the same submission once more."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    client = JobSubmissionClient(ray_cluster.http)
    out = tmp_path / "run"
    flags = [*SMALL, "--out", str(out), "--epochs", "300", "--save-minutes", "60"]

    def ended(job):
        return client.get_job_status(job).is_terminal()

    first = submit(client, "jobs.train", *flags)
    wait_for(lambda: step_of(out) > 20 or ended(first))
    client.stop_job(first)
    wait_for(lambda: ended(first), seconds=60)
    assert client.get_job_status(first) == JobStatus.STOPPED, client.get_job_logs(first)
    logs = client.get_job_logs(first)
    assert "saved; the same command resumes" in logs
    stopped_at = step_of(out)
    assert f"stopped after step {stopped_at}" in logs

    soon_over = [*flags, "--patience", "1"]  # patience may change
    second = submit(client, "jobs.train", *soon_over)
    wait_for(lambda: ended(second))
    logs = client.get_job_logs(second)
    assert client.get_job_status(second) == JobStatus.SUCCEEDED, logs
    assert f"from step {stopped_at}" in logs
    assert json.loads((out / "summary.json").read_text())["resumed"] == 1


def test_more_than_the_cluster_has_is_refused_at_once(run_here, tmp_path):
    output = run_here(main, "--out", tmp_path / "run", *SMALL, "--workers", "64", code=2)
    assert "64 workers need 0.5 CPUs each" in output
    assert "--workers 8" in output
    assert not (tmp_path / "run/checkpoints").exists()
