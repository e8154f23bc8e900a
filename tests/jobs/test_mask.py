"""`jobs.mask` on a Ray cluster, killed and started again, with videos and masks in S3."""

import csv
import io
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from jobs import mask
from jobs.masks.folder import read_markers
from jobs.storage.location import Location
from tests.masked import write_clips
from tests.ray_cluster import finish, wait_for


def test_killed_and_started_again(ray_cluster, run_here, s3, tmp_path):
    """kill -9 of the job; the same command does the rest; masks and manifest lie in S3."""
    Location.parse(f"{s3}/clips").upload(write_clips(tmp_path))
    out = Location.parse(f"{s3}/masks")
    flags = ["--manifest", f"{s3}/clips/clicks.csv", "--out", str(out), "--device", "cpu"]
    flags += ["--workers", "2", "--cpus-per-worker", "0.5", "--max-failed", "1"]
    job = ray_cluster.job(*flags, module="jobs.mask")
    wait_for(lambda: (out / "commits").list(), job)
    job.kill()
    job.communicate()
    first = read_markers(out)

    finish(ray_cluster.job(*flags, module="jobs.mask"))
    after = read_markers(out)
    assert all(after[name] == marker for name, marker in first.items())  # none was done again
    assert Counter(marker["status"] for marker in after.values()) == {"ok": 4, "failed": 1}
    for name in ("c0", "c1", "c2", "c3"):
        table = pq.read_table(io.BytesIO((out / f"masks/{name}.parquet").read_bytes()))
        assert len(table) == 4 + int(name[1])
    ledger = pq.read_table(io.BytesIO((out / "videos.parquet").read_bytes())).to_pylist()
    assert [row["video_id"] for row in ledger] == ["c0", "c1", "c2", "c3", "none"]
    assert ledger[4]["code"] == "not_a_video"
    list(csv.DictReader(io.StringIO((out / "review.csv").read_text())))

    export = ["--export", "davis", "overlay", "coco", "youtube-vos"]
    output = run_here(mask.main, *flags, *export)
    assert "5 videos done" in output
    assert "device:" not in output  # no worker was started
    png = (out / "export/davis/c3/00006.png").read_bytes()
    assert np.asarray(Image.open(io.BytesIO(png))).shape == (96, 160)
    assert len((out / "export/davis/c3").list()) == 7
    assert len((out / "export/coco/annotations.json").read_json()["images"]) == 22
    assert (out / "export/overlay/c0.mp4").exists()
    output = run_here(mask.main, *flags, "--precision", "bfloat16", code=2)
    assert "--precision is bfloat16, but the run was started with auto" in output
