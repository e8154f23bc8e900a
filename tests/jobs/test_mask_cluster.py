"""jobs.mask on a cluster that changes: workers killed, nodes that fall and that come late."""

import contextlib
import hashlib
import io
import time

import psutil
import pyarrow.parquet as pq
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from jobs.masks.folder import commits
from jobs.storage.location import Location
from tests.conftest import submit
from tests.flaky_s3 import flaky
from tests.jobs.test_mask import finish, wait_for
from tests.masking.tracking.test_masking import film
from tests.moving import picture

VIDEOS, FRAMES = 6, 10


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Videos that take a worker some seconds each, and their manifest."""
    folder = tmp_path_factory.mktemp("clips")
    lines = ["uri,object_id,frame,x,y"]
    for number in range(VIDEOS):
        clip = [picture({1: (20 + t, 40, 13)}, seed=number) for t in range(FRAMES)]
        film(folder / f"c{number}.mp4", clip)
        lines.append(f"c{number}.mp4,1,0,20,40")
    (folder / "clicks.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def alone(clips, ray_cluster, tmp_path_factory):
    """The hash of each video's masks, from one worker."""
    out = tmp_path_factory.mktemp("alone")
    finish(ray_cluster.job(*flags(clips, out, 1, 0.5), module="jobs.mask"), 0)
    return hashes(Location.parse(out))


def flags(clips, out, workers, cpus, *more):
    found = ["--manifest", clips / "clicks.csv", "--out", out, "--device", "cpu"]
    return [*found, "--workers", workers, "--cpus-per-worker", cpus, *more]


def hashes(out):
    """Of the masks of all videos; each is there, and as its marker says."""
    markers = commits(out)
    assert len(markers) == VIDEOS
    for name, marker in markers.items():
        content = (out / f"masks/{name}.parquet").read_bytes()
        assert hashlib.sha256(content).hexdigest() == marker["masks_sha256"]
        assert pq.read_table(io.BytesIO(content))["frame"].to_pylist() == list(range(FRAMES))
    return {name: marker["masks_sha256"] for name, marker in markers.items()}


def workers_of(ray_cluster):
    found = [psutil.Process(node.pid).children(recursive=True) for node in ray_cluster.nodes]
    masking = []
    for process in (each for node in found for each in node):
        with contextlib.suppress(psutil.Error):  # it may end meanwhile
            if "MapWorker(Map(Masker))" in " ".join(process.cmdline()):
                masking.append(process)
    return masking


def begun(out):
    """Attempts that are under way."""
    return list(out.glob(".parts/*/attempts/*/*.json"))


def test_a_node_that_comes_late_and_one_that_falls(ray_cluster, clips, alone, tmp_path):
    """Three workers, of which a node holds one: a node has to come, and falls while it works.

    The masks are those of one worker: each computes on one thread.
    """
    out = tmp_path / "masks"
    few = finish(ray_cluster.job(*flags(clips, out, 3, 1.5), module="jobs.mask"), 2)
    assert "3 workers ask for 1.5 CPUs each" in few  # refused at once
    job = ray_cluster.job(*flags(clips, out, 3, 1.5, "--wait-for-nodes", 60), module="jobs.mask")
    time.sleep(8)
    late = ray_cluster.add()
    wait_for(lambda: len(begun(out)) == 3 or job.poll() is not None)
    assert job.poll() is None, job.communicate()[0]
    ray_cluster.lose(late)
    output = finish(job, 0)
    assert "waiting for nodes, 2 of 3 fit" in output
    assert hashes(Location.parse(out)) == alone


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_submitted_over_a_bad_line_with_a_worker_killed(
    ray_cluster, clips, alone, s3_server, s3, monkeypatch
):
    """By the Jobs API: four workers on two GPUs, S3 that refuses and cuts off, and a kill -9."""
    Location.parse(f"{s3}/clips").upload(clips)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    client = JobSubmissionClient(ray_cluster.http)
    with flaky(s3_server) as (address, seen):
        line = f"?endpoint_override={address}&scheme=http"
        found = ["--manifest", f"{s3}/clips/clicks.csv{line}", "--out", f"{s3}/masks{line}"]
        found += ["--workers", "4", "--cpus-per-worker", "0.5", "--device", "cpu"]
        found += ["--gpus-per-worker", "0.5", "--export", "davis"]
        job = submit(client, "jobs.mask", *found)

        def ended():
            return client.get_job_status(job).is_terminal()

        out = Location.parse(f"{s3}/masks")
        wait_for(lambda: (len(workers_of(ray_cluster)) == 4 and (out / ".parts").list()) or ended())
        assert not ended(), client.get_job_logs(job)
        workers_of(ray_cluster)[0].kill()
        wait_for(ended, 400)
        logs = client.get_job_logs(job)
        assert client.get_job_status(job) == JobStatus.SUCCEEDED, logs
        assert seen["refused"] > 5
        assert seen["cut"] > 5
    assert "6 ok, 0 partial, 0 failed" in logs
    assert hashes(out) == alone
    for name in alone:
        assert len((out / f"export/davis/{name}").list()) == FRAMES


def test_no_node_is_left(ray_cluster, clips, tmp_path):
    """The one node that can hold the worker falls: the job waits, says so, and ends with 1."""
    out = tmp_path / "masks"
    large = ray_cluster.add("--num-gpus", "2")
    more = ["--gpus-per-worker", 2, "--wait-for-nodes", 20]
    job = ray_cluster.job(*flags(clips, out, 1, 1, *more), module="jobs.mask")
    wait_for(lambda: list(out.glob("commits/*")) or job.poll() is not None)
    assert job.poll() is None, job.communicate()[0]
    ray_cluster.lose(large)
    output = finish(job, 1)
    assert "a node is lost" in output
    assert "not one fits; --wait-for-nodes waits longer; what is published stays" in output
    first = commits(Location.parse(out))

    finish(ray_cluster.job(*flags(clips, out, 2, 1), module="jobs.mask"), 0)
    after = commits(Location.parse(out))
    assert len(after) == VIDEOS
    assert all(after[name] == marker for name, marker in first.items())
