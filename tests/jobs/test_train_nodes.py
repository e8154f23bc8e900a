"""`jobs.train` on nodes that come late, fall and come back, or stay away."""

import json

from tests.jobs.test_train import SMALL, finish, step_of, wait_for

LONG = [*SMALL, "--epochs", "400", "--save-minutes", "0.005"]
LARGE = ["--workers", "3", "--cpus-per-worker", "2"]
"""Each worker as large as a node."""


def test_a_node_comes_late_falls_comes_back_and_stays_away(ray_cluster, tmp_path):
    out = tmp_path / "run"
    flags = ["--out", out, *LONG, *LARGE]
    assert "--workers 2" in finish(ray_cluster.job(*flags), code=2)
    assert "--wait-for-nodes" in finish(ray_cluster.job(*flags, "--wait-for-nodes", 3), code=2)
    job = ray_cluster.job(*flags, "--wait-for-nodes", 60)
    late = ray_cluster.add()
    wait_for(lambda: step_of(out) > 0 or job.poll() is not None)
    assert job.poll() is None, job.communicate()[0]
    ray_cluster.lose(late)
    seen = step_of(out)
    back = ray_cluster.add()
    wait_for(lambda: step_of(out) > seen + 20 or job.poll() is not None)
    assert job.poll() is None, job.communicate()[0]
    ray_cluster.lose(back)
    output = finish(job, code=1)
    assert "going on from step" in output
    assert "a node is lost: 3 workers ask for 2 CPUs each" in output
    assert "--workers 2 would fit" in output

    stopped = step_of(out)
    few = [*SMALL, "--out", out, "--epochs", "400", "--patience", "1"]
    output = finish(ray_cluster.job(*few, "--workers", 2))
    assert f"going on from step {stopped}" in output
    assert json.loads((out / "summary.json").read_text())["workers"] == 2
