"""`jobs.predict` on a Ray cluster, killed and started again, with weights and output in S3."""

import io
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.predict import main
from jobs.storage.location import Location
from tests.ray_cluster import finish, wait_for
from tests.trained import right, write_images, write_table

PARTS = 45 + 1
"""Parts of 359 digits in row groups of 8, and of a folder."""


def test_killed_and_started_again(ray_cluster, run_here, trained, digits, s3, tmp_path):
    """kill -9 of the job; the same command makes the rest."""
    Location.parse(f"{s3}/run/export").upload(trained.out / "export")
    write_table(tmp_path / "digits.parquet", digits, group=8)
    write_images(tmp_path / "more", digits[:1])
    (tmp_path / "more/bad.png").write_text("no image")
    out = Location.parse(f"{s3}/predictions")
    flags = ["--weights", f"{s3}/run", "--out", str(out), "--device", "cpu", "--workers", "2"]
    flags += ["--cpus-per-worker", "0.5"]
    flags += ["--data", f"{tmp_path}/*.parquet", str(tmp_path / "more")]

    job = ray_cluster.job(*flags, module="jobs.predict")
    wait_for(lambda: len((out / "predictions").list()) > 2, job)
    job.kill()
    job.communicate()
    made = {entry.name: entry.mtime_ns for entry in (out / "predictions").list()}
    assert len(made) < PARTS
    assert not (out / "summary.json").exists()

    finish(ray_cluster.job(*flags, module="jobs.predict"))
    summary = (out / "summary.json").read_json()
    assert (summary["n"], summary["errors"], len(summary["parts"])) == (361, 1, PARTS)
    assert summary["made"] <= 361 - 8 * (len(made) - 2)  # two parts are smaller
    tables = [
        pq.read_table(io.BytesIO((out / "predictions" / name).read_bytes()))
        for name in summary["parts"]
    ]
    rows = pa.concat_tables(tables).to_pylist()
    by_place = {(row["path"], row["row"]): row for row in rows}
    ours = [by_place[str(tmp_path / "digits.parquet"), number] for number in range(359)]
    assert right(ours, digits) == trained.correct
    assert Counter(row["error"] is None for row in rows) == {True: 360, False: 1}

    output = run_here(main, *flags)
    assert f"{PARTS} of them done" in output
    assert "Ray" not in output  # none is started for what is done
    output = run_here(main, *flags, "--format", "csv", code=2)
    assert "--format is csv, but the run was started with parquet" in output
