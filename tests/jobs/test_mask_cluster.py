"""`jobs.mask` on a cluster that changes: workers killed, nodes that fall and that come late."""

import hashlib
import io
import json

import pyarrow.parquet as pq
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from jobs import mask
from jobs.masks.folder import read_markers
from jobs.masks.plan import settings_of
from jobs.storage.location import Location
from jobs.weights.segmenter import locate
from masking.tracking.state import TrackConfig
from tests.flaky_s3 import flaky
from tests.masked import masker, plan
from tests.masking.tracking.test_masking import film
from tests.moving import picture
from tests.ray_cluster import finish, submit, wait_for

VIDEOS, FRAMES = 6, 10
WORKER = "MapWorker(Map(Masker))"
"""In the title of the processes that mask."""


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
def hashes_without_ray(clips, tmp_path_factory):
    """The hash of each video's masks, made by one worker in this process."""
    settings = settings_of(locate("mini"), "float32", TrackConfig())
    worker = masker(tmp_path_factory.mktemp("masks"), clips, settings)
    todo = plan(clips, settings).work
    records = [json.loads(worker({"work": work.to_json()})["record"]) for work in todo]
    return {record["video_id"]: record["masks_sha256"] for record in records}


def flags(clips, out, workers, cpus, *more):
    found = ["--manifest", clips / "clicks.csv", "--out", out, "--device", "cpu"]
    found += ["--precision", "float32", "--workers", workers, "--cpus-per-worker", cpus]
    return [*found, *more]


def hashes(out):
    """Return the hashes of all masks; each video has them, as its marker says."""
    markers = read_markers(out)
    assert len(markers) == VIDEOS
    for name, marker in markers.items():
        content = (out / f"masks/{name}.parquet").read_bytes()
        assert hashlib.sha256(content).hexdigest() == marker["masks_sha256"]
        assert pq.read_table(io.BytesIO(content))["frame"].to_pylist() == list(range(FRAMES))
    return {name: marker["masks_sha256"] for name, marker in markers.items()}


def begun(out):
    """Attempts that are under way."""
    return list(out.glob(".parts/*/attempts/*/*.json"))


def read_until(job, text):
    """Read what a job prints until a line has `text`; returns all of it."""
    output = ""
    while text not in output:
        line = job.stdout.readline()
        assert line, output
        output += line
    return output


def test_a_node_that_comes_late_and_one_that_falls(
    ray_cluster, clips, hashes_without_ray, tmp_path
):
    """Three workers, of which a node holds one: a node has to come, and falls while it works.

    The masks are those of one worker without Ray: each computes on one thread.
    """
    out = tmp_path / "masks"
    job = ray_cluster.job(*flags(clips, out, 3, 1.5, "--wait-for-nodes", 60), module="jobs.mask")
    read_until(job, "waiting for nodes, 2 of 3 fit")
    late = ray_cluster.add()
    wait_for(lambda: len(begun(out)) == 3, job)
    ray_cluster.lose(late)
    finish(job)
    assert hashes(Location.parse(out)) == hashes_without_ray


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_submitted_over_a_bad_line_with_a_worker_killed(
    ray_cluster, clips, hashes_without_ray, s3_server, s3, monkeypatch
):
    """By the Jobs API: four workers on two GPUs, S3 that refuses and cuts off, and a kill -9."""
    Location.parse(f"{s3}/clips").upload(clips)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    client = JobSubmissionClient(ray_cluster.http)
    with flaky(s3_server) as (address, seen):
        line = f"?endpoint_override={address}&scheme=http"
        found = ["--manifest", f"{s3}/clips/clicks.csv{line}", "--out", f"{s3}/masks{line}"]
        found += ["--workers", "4", "--cpus-per-worker", "0.5", "--device", "cpu"]
        found += ["--gpus-per-worker", "0.5", "--export", "davis", "--precision", "float32"]
        job = submit(client, "jobs.mask", *found)

        def ended():
            return client.get_job_status(job).is_terminal()

        out = Location.parse(f"{s3}/masks")

        def at_work():
            return len(ray_cluster.processes(WORKER)) == 4 and (out / ".parts").list()

        wait_for(lambda: at_work() or ended())
        assert not ended(), client.get_job_logs(job)
        ray_cluster.processes(WORKER)[0].kill()
        wait_for(ended, seconds=400)
        logs = client.get_job_logs(job)
        assert client.get_job_status(job) == JobStatus.SUCCEEDED, logs
        assert seen["refused"] > 5
        assert seen["cut"] > 5
    assert "6 ok, 0 partial, 0 failed" in logs
    assert hashes(out) == hashes_without_ray
    for name in hashes_without_ray:
        assert len((out / f"export/davis/{name}").list()) == FRAMES


@pytest.mark.slow
def test_no_node_is_left(ray_cluster, run_here, clips, tmp_path):
    """The one node that can hold the worker falls: the job waits, says so, and ends with 1."""
    out = tmp_path / "masks"
    large = ray_cluster.add("--num-gpus", "2")
    more = ["--gpus-per-worker", 2, "--wait-for-nodes", 20]
    job = ray_cluster.job(*flags(clips, out, 1, 1, *more), module="jobs.mask")
    wait_for(lambda: list(out.glob("commits/*")), job)
    ray_cluster.lose(large)
    output = finish(job, code=1)
    assert "a node is lost" in output
    assert "no worker fits; use a longer --wait-for-nodes; published videos stay" in output
    done = len(read_markers(Location.parse(out)))
    assert 1 <= done < VIDEOS
    asked = run_here(mask.main, *flags(clips, out, 1, 1), "--check")
    assert f"{done} videos done" in asked  # the same command would mask the others
