"""jobs.mask on a cluster that changes: workers killed, nodes that fall and that come late."""

import io
import time

import pyarrow.parquet as pq
import pytest

from jobs import mask_plan
from jobs.storage import Location
from tests.moving import picture
from tests.test_mask import finish, wait_for
from tests.test_propagate import film

VIDEOS, FRAMES = 6, 20


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
    return hashes(out)


def flags(clips, out, workers, cpus, *more):
    found = ["--manifest", clips / "clicks.csv", "--out", out, "--device", "cpu"]
    return [*found, "--workers", workers, "--cpus-per-worker", cpus, *more]


def hashes(out):
    """Of the masks of all videos; each is there, and as its marker says."""
    markers = mask_plan.commits(Location.parse(out))
    assert len(markers) == VIDEOS
    for name in markers:
        table = pq.read_table(io.BytesIO((out / f"masks/{name}.parquet").read_bytes()))
        assert table["frame"].to_pylist() == list(range(FRAMES))
    return {name: marker["masks_sha256"] for name, marker in markers.items()}


def begun(out):
    """Attempts that are under way."""
    return list(out.glob(".parts/*/attempts/*/*.json"))


def test_a_node_that_comes_late_and_one_that_falls(ray_cluster, clips, alone, tmp_path):
    """Three workers, each as large as a node: one has to come, and falls while it works."""
    out = tmp_path / "masks"
    few = finish(ray_cluster.job(*flags(clips, out, 3, 2), module="jobs.mask"), 2)
    assert "3 workers ask for 2 CPUs each" in few  # refused at once
    job = ray_cluster.job(*flags(clips, out, 3, 2, "--wait-for-nodes", 60), module="jobs.mask")
    time.sleep(8)
    late = ray_cluster.add()
    wait_for(lambda: len(begun(out)) == 3 or job.poll() is not None)
    assert job.poll() is None, job.communicate()[0]
    ray_cluster.lose(late)
    output = finish(job, 0)
    assert "waiting for nodes, 2 of 3 fit" in output
    assert hashes(out) == alone
