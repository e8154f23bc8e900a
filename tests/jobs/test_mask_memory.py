"""A mask run with a model that has a memory: killed, resumed, reviewed, corrected, exported."""

import csv

import pyarrow.parquet as pq

from jobs import mask
from jobs.masks.folder import masks_place, part_place, read_markers
from jobs.masks.plan import plan_batch, settings_of
from jobs.page.review import MaskRun
from jobs.storage.location import Location
from masking.tracking.state import TrackConfig
from tests.masked import mask_without_ray, masker, write_clips
from tests.masking.sam2.tiny import save
from tests.ray_cluster import finish, wait_for

VIDEOS = ("c0", "c1", "c2", "c3")


def test_from_the_manifest_to_the_export(ray_cluster, run_here, tmp_path, monkeypatch):
    """kill -9 on three workers; then the masks are those of each video masked alone."""
    write_clips(tmp_path)
    weights, out = save(tmp_path / "weights"), Location.parse(tmp_path / "masks")
    flags = ["--manifest", str(tmp_path / "clicks.csv"), "--out", str(out), "--device", "cpu"]
    flags += ["--weights", str(weights), "--precision", "float32", "--max-failed", "1"]
    flags += ["--workers", "3", "--cpus-per-worker", "0.5"]
    job = ray_cluster.job(*flags, module="jobs.mask")
    wait_for(lambda: (out / "commits").list(), job)
    job.kill()
    job.communicate()
    first = read_markers(out)
    finish(ray_cluster.job(*flags, module="jobs.mask"))
    after = read_markers(out)
    assert all(after[name] == marker for name, marker in first.items())  # none was done again
    assert {name: after[name]["status"] for name in VIDEOS} == dict.fromkeys(VIDEOS, "ok")

    # One worker after the other videos, and one that masks a single video, make the same bytes.
    settings = settings_of(weights, "float32", TrackConfig())
    work = plan_batch([str(tmp_path / "clicks.csv")], None, settings).work
    for folder, some in (("one", VIDEOS), ("alone", VIDEOS[3:])):
        worker = masker(tmp_path / folder, tmp_path, settings, weights=str(weights))
        for video in (one for one in work if one.video_id in some):
            assert video.key == after[video.video_id]["key"]
            worker({"work": video.to_json()})
            part = part_place(Location.parse(tmp_path / folder / ".parts/token"), video.video_id)
            assert part.read_bytes() == masks_place(out, video.video_id).read_bytes()

    # A person looks at the run and corrects one video.
    assert MaskRun(out).weights == str(weights)
    list(csv.DictReader((out / "review.csv").read_text().splitlines()))
    lines = (tmp_path / "clicks.csv").read_text() + "c3.mp4,1,5,40,40,1,north\n"
    (tmp_path / "clicks.csv").write_text(lines)
    mask_without_ray(monkeypatch)
    output = run_here(mask.main, *flags, "--export", "davis", "overlay")
    assert "4 videos done" in output
    corrected = read_markers(out)
    assert [name for name in after if corrected[name] != after[name]] == ["c3"]
    table = pq.read_table(tmp_path / "masks/masks/c3.parquet").to_pylist()
    assert [row["frame"] for row in table if row["state"] == "prompted"] == [1, 5]
    assert len((out / "export/davis/c3").list()) == 7
    assert (out / "export/overlay/c3.mp4").exists()
