"""Peak memory of masking a long clip and a short one; it should not grow with length.

    python -m benchmarks.masking.video_memory --frames 300 3000 --json FILE
    python -m benchmarks.masking.video_memory --network sam2_video --objects 1 8 --json FILE

Each clip is made first (a flower that moves over a town, 480 x 270), then masked in a process of
its own, from a click on each object on its first frame: with `mini`, or with a network with a
memory, which has random weights and is as small as those of the tests.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_sample_image

from docs.demo import SIZE, flower
from jobs.run.machine import hardware, versions
from masking.tracking.masking import mask_video
from masking.training.staged import Actor, Pose, Stage, panned
from masking.video.writer import Film
from tests.masking.sam2.tiny import save


def make(path: Path, frames: int) -> None:
    """Write a clip."""
    photograph = load_sample_image("flower.jpg")

    def path_of(t: int) -> Pose:
        return Pose(240 + 120 * np.sin(t / 25), 140 + 40 * np.cos(t / 31), t, 0.4)

    backdrop = panned(load_sample_image("china.jpg"), SIZE, (0.0, 0.0))
    stage = Stage(SIZE, frames, backdrop, [Actor(photograph, flower(photograph), path_of, 1)])
    with Film(path, "overlay", SIZE) as film:
        for index, (image, _) in enumerate(stage):
            film.write(image, index / 25)


def mask(path: Path, weights: str, objects: int) -> dict[str, Any]:
    """Mask it in this process; frames, seconds and peak memory."""
    started, frames = time.perf_counter(), 0
    rows = [
        {"object_id": 1 + row, "frame": 0, "x": 240 - 30 * row, "y": 180} for row in range(objects)
    ]
    for found in mask_video(path, rows, weights, precision="float32"):
        frames += 1
        _ = found.masks
    return {
        "frames": frames,
        "objects": objects,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row a clip and number of objects, and the ratio for each number of objects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[300, 3000])
    parser.add_argument("--objects", type=int, nargs="+", default=[1])
    parser.add_argument("--network", default="mini", help="mini, sam2_video, edgetam_video, ...")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--mask", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.mask:
        print(json.dumps(mask(options.mask, options.network, options.objects[0])))
        return 0
    rows, ratios = [], {}
    with tempfile.TemporaryDirectory() as folder:
        weights = options.network
        if weights != "mini":
            weights = str(save(Path(folder) / "weights", weights))
        for frames in options.frames:
            make(Path(folder) / f"{frames}.mp4", frames)
        for objects in options.objects:
            some = [_alone(Path(folder) / f"{n}.mp4", weights, objects) for n in options.frames]
            ratios[objects] = some[-1]["peak_mb"] / some[0]["peak_mb"]
            print(f"peak memory of {options.frames[-1]} frames over {options.frames[0]}, with")
            print(f"{objects} objects: {ratios[objects]:.3f}", flush=True)
            rows += some
    if options.json:
        facts = {"hardware": hardware(), "versions": versions(), "network": options.network}
        content = {"rows": rows, "ratios": ratios, **facts}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def _alone(path: Path, weights: str, objects: int) -> dict[str, Any]:
    """Mask a clip in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.masking.video_memory", "--mask", str(path)]
    command += ["--network", weights, "--objects", str(objects)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    row: dict[str, Any] = json.loads(output.splitlines()[-1])
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
