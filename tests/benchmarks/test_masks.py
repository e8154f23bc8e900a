"""The stand-in for encoder and decoder, and the expected status of unusual files."""

import json
import time

import numpy as np
import torch

from benchmarks import stand_in
from benchmarks.masking import tracking
from benchmarks.masks import odd_batch
from jobs.masks import plan
from jobs.masks.plan import VideoWork
from jobs.weights.segmenter import load_segmenter, locate
from masking.segmenter.sam import Segmenter
from masking.tracking.masking import mask_video
from masking.tracking.state import TrackConfig

SIZE = (96, 160)


def test_the_disc_of_the_stand_in_is_tracked_and_its_time_counted(tmp_path):
    clip = stand_in.write_clip(tmp_path / "v.mp4", 6, SIZE)
    manifest = stand_in.write_manifest(tmp_path / "clicks.csv", [clip.name], SIZE)
    settings = plan.settings_of(locate("mini"), "float32", TrackConfig())
    [work] = plan.plan_batch([str(manifest)], None, settings).work
    worker = stand_in.SleepingWorker(
        str(tmp_path), "t", "mini", settings, "float32", TrackConfig(), 1,
        torch.device("cpu"), 60.0, node=lambda: "here", alive=lambda name: True,
    )  # fmt: skip
    started = time.perf_counter()
    record = json.loads(worker({"work": VideoWork.to_json(work)})["record"])
    assert time.perf_counter() - started >= record["busy"]
    assert record["status"] == "ok"
    assert record["objects"]["1"] == {"prompted": 1, "tracked": 5}
    assert record["busy"] >= 6 * stand_in.SleepingWorker.seconds * 0.99
    assert record["begun"] < record["ended"]


def test_a_timed_network_answers_as_itself():
    plain = load_segmenter("mini", torch.device("cpu"), "float32")
    timed = stand_in.Timed(plain.network)
    wrapped = Segmenter(timed, torch.device("cpu"), "float32")
    frames = torch.randint(0, 255, (1, 64, 64, 3), dtype=torch.uint8)
    assert wrapped.frames_at_once == plain.frames_at_once
    ours, theirs = (each.encode(frames).features for each in (wrapped, plain))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert timed.busy > 0


def test_frames_that_are_encoded_once_are_those_of_the_segmenter(tmp_path):
    """However `masking.mask_video` passes them on."""
    plain = load_segmenter("mini", torch.device("cpu"), "float32")
    clip = stand_in.write_clip(tmp_path / "v.mp4", 6, SIZE)
    clicks = [{"object_id": 1, "frame": 0, "x": 20, "y": 30}]
    ours, theirs = (
        [frame.masks for frame in mask_video(clip, clicks, weights=each)]
        for each in (tracking.Once(plain), plain)
    )
    assert len(ours) == 6
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_expected_status_of_unusual_files():
    assert odd_batch.expected({"decoded_frames": "0", "decode_errors": "3"}) == "failed"
    assert odd_batch.expected({"decoded_frames": "9", "decode_errors": "1"}) == "partial"
    assert odd_batch.expected({"decoded_frames": "9", "decode_errors": ""}) == "ok"
    for marked, cut_off, fits in ((2, False, True), (0, True, True), (0, False, False)):
        row = {"status": "partial", "corrupt_packets": marked, "cut_off": cut_off}
        assert odd_batch.fits(row, "ok") == fits
    assert not odd_batch.fits({"status": "ok", "corrupt_packets": 0}, "partial")
