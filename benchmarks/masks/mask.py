"""How much of a GPU's time `jobs.mask` uses, and how fast it is compared with a notebook's loop.

    python -m benchmarks.masks.mask --json benchmarks/results/masks/mask.json

1. Overlap: a sleep of 25 ms per frame replaces encoder and decoder; it leaves the CPU idle, as a
   GPU at work does. The result is the rate of the job over the ideal rate, workers / 25 ms, from
   the start of the first video to the end of the last one, and with the start-up of the job. One
   worker has the machine to itself; several share it, each as if it had a GPU of its own.
2. The same with `mini` and the largest number of workers: the time in which encoder and decoder
   work, each in a thread of its own and thus counted twice where they overlap, over the workers'
   time.
3. vit_b (random weights, which take as long) in `mask_video` against a plain loop that calls
   segment_anything's SamPredictor, set_image then predict, on each frame in float32. They take
   turns, frame by frame, in one process.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from segment_anything import SamPredictor, sam_model_registry

from benchmarks import stand_in
from jobs.cluster.workers import keep_memory
from jobs.masks.folder import read_markers
from jobs.run.machine import hardware, versions
from jobs.storage.location import Location
from masking.segmenter.build import build
from masking.segmenter.sam import Segmenter
from masking.tracking.masking import mask_video
from masking.video.reader import Video

SIZE = (270, 480)


def run_job(
    kind: type[stand_in.Worker], videos: int, frames: int, workers: int
) -> dict[str, float]:
    """Run the job on generated videos, on a Ray of its own; returns rates of its workers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = stand_in.write_clip(folder / "v0.mp4", frames, SIZE)
        names = [f"v{number}.mp4" for number in range(videos)]
        for other in names[1:]:
            shutil.copy(clip, folder / other)
        manifest = stand_in.write_manifest(folder / "clicks.csv", names, SIZE)
        started = time.time()
        flags = ("--manifest", manifest, "--out", folder / "out", "--workers", workers)
        assert stand_in.run(kind, *flags) == 0
        whole = time.time() - started
        records = list(read_markers(Location.parse(folder / "out")).values())
    wall = max(r["ended"] for r in records) - min(r["begun"] for r in records)
    busy, total = sum(r["busy"] for r in records), sum(r["frames"] for r in records)
    return {
        "videos": videos,
        "frames": total,
        "workers": workers,
        "frames_per_s": total / wall,
        "network_ms_a_frame": 1000 * busy / total,
        "share_of_ideal": busy / (workers * wall),
        "share_with_start_up": busy / (workers * whole),
    }


def compare_with_loop(frames: int, threads: int, folder: Path) -> dict[str, Any]:
    """Measure vit_b in `mask_video` and in a plain loop, in turns; seconds per frame of both."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    sam = sam_model_registry["vit_b"]().eval()
    network = build(sam.state_dict(), "sam", Path("random weights"))
    segmenter = Segmenter(network, torch.device("cpu"), "auto")
    clips = [stand_in.write_clip(folder / f"{turn}.mp4", 1, SIZE, turn) for turn in range(frames)]
    click = [{"object_id": 1, "frame": 0, "x": SIZE[1] // 2, "y": SIZE[0] // 2}]
    predictor, ours, theirs = SamPredictor(sam), [], []
    for clip in clips:  # one frame each, as further ones would be encoded in the turn of the loop
        started = time.perf_counter()
        list(mask_video(clip, click, segmenter))
        ours.append(time.perf_counter() - started)
        with Video.open(clip) as video:
            [image] = [frame.image for frame in video]
        started = time.perf_counter()
        predictor.set_image(image)
        point = np.array([[SIZE[1] // 2, SIZE[0] // 2]])
        predictor.predict(point, np.array([1]), multimask_output=True)
        theirs.append(time.perf_counter() - started)
        print(f"  {ours[-1]:.1f} s, {theirs[-1]:.1f} s", flush=True)
    return {
        "frames": frames,
        "threads": threads,
        "precision": segmenter.precision,
        "ours_s_a_frame": ours,
        "loop_s_a_frame": theirs,
        "times_as_fast": statistics.median(theirs) / statistics.median(ours),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=4, help="number per worker")
    parser.add_argument("--frames", type=int, default=500, help="per video, with the stand-in")
    parser.add_argument("--mini-frames", type=int, default=50, help="per video, with mini")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="runs of the job with the stand-in")
    parser.add_argument("--sam-frames", type=int, default=3, help="with vit_b; 0: skip vit_b")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args(argv)
    keep_memory()
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.masks.mask --videos {options.videos}"
        f" --frames {options.frames} --mini-frames {options.mini_frames}"
        f" --sam-frames {options.sam_frames}"
        f" --repeats {options.repeats} --workers {' '.join(map(str, options.workers))}",
        "load_before": psutil.getloadavg()[0],
        "stand_in": [],
    }
    for workers in options.repeats * options.workers:
        one = run_job(stand_in.SleepingWorker, options.videos * workers, options.frames, workers)
        result["stand_in"].append(one)
        share = one["share_of_ideal"]
        print(f"stand-in of 25 ms, {workers} workers: {share:.3f} of the ideal rate", flush=True)
    most = max(options.workers)
    if options.mini_frames:
        videos = options.videos * most
        result["mini"] = run_job(stand_in.MiniWorker, videos, options.mini_frames, most)
        print(f"mini: {result['mini']['share_of_ideal']:.3f} of the workers' time in its network")
    if options.sam_frames:
        with tempfile.TemporaryDirectory() as folder:
            result["vit_b"] = compare_with_loop(options.sam_frames, most, Path(folder))
        print(f"vit_b: {result['vit_b']['times_as_fast']:.2f} times as fast as the plain loop")
    result |= {"hardware": hardware(), "versions": versions()}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
