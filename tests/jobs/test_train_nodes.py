"""`jobs.train` on nodes that come late, fall and come back, or stay away."""

from jobs.train import main
from tests.ray_cluster import finish, wait_for
from tests.tasks import SMALL
from tests.trained import step_of

LONG = [*SMALL, "--epochs", "400", "--save-minutes", "0.005"]
LARGE = ["--workers", "3", "--cpus-per-worker", "2"]
"""Each worker as large as a node."""


def test_a_node_comes_late_falls_comes_back_and_stays_away(ray_cluster, run_here, tmp_path):
    out = tmp_path / "run"
    flags = ["--out", out, *LONG, *LARGE]
    assert "--workers 2" in run_here(main, *flags, code=2)
    assert "--wait-for-nodes" in run_here(main, *flags, "--wait-for-nodes", 3, code=2)
    job = ray_cluster.job(*flags, "--wait-for-nodes", 60)
    late = ray_cluster.add()
    wait_for(lambda: step_of(out) > 0, job)
    ray_cluster.lose(late)
    seen = step_of(out)
    back = ray_cluster.add()
    wait_for(lambda: step_of(out) > seen + 2, job)
    ray_cluster.lose(back)
    output = finish(job, code=1)
    assert "from step" in output
    assert "a node is lost: 3 workers need 2 CPUs each" in output
    assert "use --workers 2, or a longer --wait-for-nodes" in output
