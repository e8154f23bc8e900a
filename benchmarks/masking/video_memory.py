"""Peak memory of masking a long clip and a short one; it should not grow with length.

    python -m benchmarks.masking.video_memory --frames 300 3000 --json FILE

Each clip is made first (a flower that moves over a town, 480 x 270), then masked with
`mini` in a process of its own, from one click on its first frame.
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


def mask(path: Path) -> dict[str, Any]:
    """Mask it in this process; frames, seconds and peak memory."""
    started, frames = time.perf_counter(), 0
    for found in mask_video(path, [{"object_id": 1, "frame": 0, "x": 240, "y": 180}]):
        frames += 1
        _ = found.masks
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"frames": frames, "seconds": time.perf_counter() - started, "peak_mb": peak}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row a clip, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[300, 3000])
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--mask", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.mask:
        print(json.dumps(mask(options.mask)))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for frames in options.frames:
            path = Path(folder) / f"{frames}.mp4"
            make(path, frames)
            command = [sys.executable, "-m", "benchmarks.masking.video_memory", "--mask", str(path)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append(json.loads(output.splitlines()[-1]))
            print(json.dumps(rows[-1]), flush=True)
    ratio = rows[-1]["peak_mb"] / rows[0]["peak_mb"]
    print(f"peak memory of {rows[-1]['frames']} frames over {rows[0]['frames']}: {ratio:.3f}")
    if options.json:
        facts = {"hardware": hardware(), "versions": versions()}
        options.json.write_text(
            json.dumps({"rows": rows, "ratio": ratio, **facts}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
