"""The small segmenter: milliseconds for a frame and for eight prompts; its masks in bfloat16.

    python -m benchmarks.masking.mini --frames vos --json mini.json

Times are wall time, for a square frame of the default size (the largest canvas) and for one of
16:9; a decode is one call for eight clicks, masks upsampled. Masks in bfloat16 are compared with
those in float32 on the first frames of the sequences of --frames, a DAVIS folder, with one click an
object.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.masking.clicks import first_frames
from jobs.cluster.workers import keep_memory
from jobs.run.machine import hardware, versions
from jobs.weights.segmenter import load_segmenter
from masking.images.geometry import deepest, iou
from masking.segmenter.sam import Prompts, Segmenter
from masking.training.pairs import PairsConfig, survey

SIZES = {"square": (480, 480), "16:9": (270, 480)}
"""(H, W) of the frames that are timed."""
PROMPTS = 8


def milliseconds(call: Callable[[], object], repeats: int) -> list[float]:
    """Time repeated calls; three more before them warm up."""
    times = []
    for number in range(repeats + 3):
        start = time.perf_counter()
        call()
        if number >= 3:
            times.append(1000 * (time.perf_counter() - start))
    return times


def timed(segmenter: Segmenter, repeats: int) -> dict[str, list[float]]:
    """Return the milliseconds for encoding a frame, and for decoding eight prompts on it."""
    rng, times = np.random.default_rng(0), {}
    for name, size in SIZES.items():
        frame = rng.integers(0, 256, (1, *size, 3), dtype=np.uint8)
        embeddings = segmenter.encode(frame)
        points = rng.uniform((0, 0), size[::-1], (PROMPTS, 1, 2))
        prompts = Prompts.of(size, list(points), [[1]] * PROMPTS)
        times[f"encode, {name}"] = milliseconds(lambda f=frame: segmenter.encode(f), repeats)
        times[f"decode {PROMPTS}, {name}"] = milliseconds(
            lambda e=embeddings, p=prompts: segmenter.decode(e, p), repeats
        )
    return times


def agreement(exact: Segmenter, fast: Segmenter, folder: Path) -> list[float]:
    """Return the IoU of both segmenters' masks, of every object on the first frames, one click."""
    pairs, ious = first_frames(survey([folder], PairsConfig(0, 0, 1))), []
    for row in range(len(pairs)):
        pair = pairs[row]
        clicks = [deepest(mask) or (0, 0, 1) for mask in pair.masks]
        points = [[click[:2]] for click in clicks]
        found = []
        for segmenter in (exact, fast):
            embeddings = segmenter.encode(pair.image[None])
            prompts = Prompts.of(embeddings.frame_size, points, [[1]] * len(points))
            found.append(segmenter.decode(embeddings, prompts).masks[:, 0])
        ious += iou(*found).tolist()
    return ious


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="mini", help="mini, or a run of that shape (mini)")
    parser.add_argument("--frames", type=Path, help="a DAVIS folder, for the masks in bfloat16")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    parser.add_argument("--repeats", type=int, default=30, help="how often each is timed (30)")
    parser.add_argument("--json", type=Path, help="write times, settings and environment here")
    args = parser.parse_args(argv)
    keep_memory()  # as in a job's workers
    torch.set_num_threads(args.threads)
    cpu = torch.device("cpu")
    auto = load_segmenter(args.weights, cpu)
    result: dict[str, Any] = {"precision": auto.precision, "n": args.repeats}
    result["milliseconds"] = timed(auto, args.repeats)
    print(f"| mini, {auto.precision}, {args.threads} threads | ms, median (least to most) |")
    print("| --- | --- |")
    for name, times in result["milliseconds"].items():
        print(f"| {name} | {statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f}) |")
    if args.frames:
        single, half = (load_segmenter(args.weights, cpu, p) for p in ("float32", "bfloat16"))
        result["bfloat16_iou"] = agreement(single, half, args.frames)
        mean, least = statistics.mean(result["bfloat16_iou"]), min(result["bfloat16_iou"])
        count = len(result["bfloat16_iou"])
        print(f"\nbfloat16 against float32: mean IoU {mean:.4f}, least {least:.4f}, n {count}")
    result |= {"hardware": hardware(), "versions": versions()}
    print(f"\n{json.dumps(result['hardware'])}\n{json.dumps(result['versions'])}")
    if args.json:
        args.json.write_text(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
