"""The manifest of DAVIS, as `jobs.mask` reads it."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.masking import davis
from jobs.masks.plan import plan_batch


@pytest.fixture
def folder(tmp_path):
    """Two sequences of three frames; the second object of one comes on its second frame."""
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("bear\nswan\n")
    for name in ("bear", "swan"):
        frames, truth = (tmp_path / part / "480p" / name for part in ("JPEGImages", "Annotations"))
        frames.mkdir(parents=True)
        truth.mkdir(parents=True)
        for i in range(3):
            labels = np.zeros((24, 32), np.uint8)
            labels[2:10, 3 + i : 15 + i] = 1
            if name == "swan" and i:
                labels[14:20, 4:12] = 2
            Image.fromarray(labels * 60).convert("RGB").save(frames / f"{i:05}.jpg")
            Image.fromarray(labels).save(truth / f"{i:05}.png")
    return tmp_path


@pytest.mark.parametrize("count", [0, 3])
def test_objects_are_prompted_on_their_first_frames(folder, tmp_path, count):
    out = tmp_path / "davis.csv"
    assert davis.main([str(folder), "--out", str(out), "--clicks", str(count)]) == 0
    plan = plan_batch([str(out)], None, "settings")
    assert plan.faults == []
    found = {
        (work.video_id, row.object_id, row.frame, row.mask is not None)
        for work in plan.work
        for row in work.rows
    }
    mask = count == 0
    assert found == {("bear", 1, 0, mask), ("swan", 1, 0, mask), ("swan", 2, 1, mask)}
    assert sum(len(work.rows) for work in plan.work) == 3 * max(count, 1)
