"""A segmenter beside OpenCV's GrabCut: mean IoU after 1, 3 and 5 simulated clicks.

    python -m benchmarks.masking.clicks --data horses.parquet voc.parquet vos --json clicks.json

It takes the first --masks objects of each path, one of each image first. A path is a Parquet file,
COCO or a DAVIS folder, of which only the first frame of each sequence is used. Clicks are simulated
in the same way for all: the deepest point of the larger error (`masking.images.geometry.deepest`).
Three columns:

- the segmenter, by `masking.training.measure.measure`, as `jobs.finetune --evaluate`;
- GrabCut with clicks on its own errors, as it would be used; the first click is the same;
- GrabCut with exactly the clicks that the segmenter got.

GrabCut starts again after every click, and iterates three times. It starts from a disc of 0.2 of
the longer side round each positive click (probable foreground), 6 pixels round every click
(certain), and the border (certain background); the rest is probable background.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from jobs.run.machine import hardware, versions
from jobs.weights.segmenter import load_segmenter
from masking.images.arrays import Bools, Pixels
from masking.images.geometry import deepest, iou
from masking.segmenter.sam import Masks, Prompts, Segmenter
from masking.training.measure import measure
from masking.training.pair import Pair
from masking.training.pairs import Pairs, PairsConfig, survey

COUNTS = (1, 3, 5)
"""Clicks after which IoU is reported."""
DISC, CERTAIN, ITERATIONS = 0.2, 6, 3
"""Settings of GrabCut, as the head of this file says."""
Click = tuple[int, int, int]


class Recorder(Segmenter):
    """A segmenter that remembers the prompts of its last call."""

    last: Prompts

    def decode(self, embeddings: Any, prompts: Prompts, outputs: Any = "best") -> Masks:
        """Decode as `Segmenter` does, and keep the prompts."""
        self.last = prompts
        return super().decode(embeddings, prompts, outputs)


def grabcut(image: Pixels, clicks: Sequence[Click]) -> Bools:
    """Return the mask (H, W) of clicks (x, y, label) in an image (H, W, 3) uint8 RGB."""
    labels = np.full(image.shape[:2], cv2.GC_PR_BGD, dtype=np.uint8)
    for x, y, label in clicks:
        if label:
            cv2.circle(labels, (x, y), round(DISC * max(labels.shape)), cv2.GC_PR_FGD, -1)
    labels[[0, -1]] = labels[:, [0, -1]] = cv2.GC_BGD
    for x, y, label in clicks:
        cv2.circle(labels, (x, y), CERTAIN, cv2.GC_FGD if label else cv2.GC_BGD, -1)
    models = np.zeros((2, 1, 65))
    cv2.setRNGSeed(0)  # its k-means draws
    cv2.grabCut(image, labels, None, *models, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    found: Bools = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return found


def by_grabcut(pair: Pair, given: Sequence[Click] | None = None) -> list[float]:
    """Return the IoU with the pair's one object after each of five clicks.

    They are those given, or clicks on GrabCut's own errors.
    """
    truth, ious, clicks = pair.masks[0], [], list[Click]()
    mask: Bools | None = None
    for number in range(COUNTS[-1]):
        if given is None:
            click = deepest(truth, mask, pair.ignore)
        else:
            click = given[number] if number < len(given) else None
        if click is not None or mask is None:
            clicks += [click] if click is not None else []
            mask = grabcut(pair.image, clicks)
        found = iou(*map(torch.from_numpy, (truth, mask, pair.ignore)))
        ious.append(float(found))
    return ious


def chosen(pairs: Pairs, most: int) -> Iterator[Pair]:
    """Yield pairs of one object each: at most `most`, the first object of every image first."""
    loaded = [pairs[row] for row in range(len(pairs))]
    order = sorted((k, row) for row, pair in enumerate(loaded) for k in range(len(pair.masks)))
    for k, row in order[: most or None]:
        pair = loaded[row]
        yield Pair(pair.image, pair.masks[k : k + 1], pair.ignore, pair.name, pair.regions)


def first_frames(pairs: Pairs) -> Pairs:
    """Keep the first frame of every sequence of a DAVIS folder, and all other pairs."""
    seen: dict[Path, int] = {}
    for row, entry in enumerate(pairs.entries):
        is_frame = Path(entry.name).suffix == ".png" and Path(entry.name).is_file()
        seen.setdefault(Path(entry.name).parent if is_frame else Path(str(row)), row)
    return pairs.subset(seen.values())


def compare(segmenter: Recorder, pairs: Pairs, most: int) -> dict[str, Any]:
    """Return the IoU of every object after 1, 3 and 5 clicks, for each column of the table."""
    objects, clicks, ious = list(chosen(pairs, most)), [], []
    for pair in objects:
        ious.append(measure(segmenter, pair, COUNTS[-1])[0].tolist())
        points, labels = segmenter.last.points[0], segmenter.last.labels[0]
        rows = torch.cat([points, labels[:, None]], dim=1).round().long().tolist()
        clicks.append([(x, y, label) for x, y, label in rows])
    cv2.setNumThreads(0)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        own, same = pool.map(by_grabcut, objects), pool.map(by_grabcut, objects, clicks)
        sides = {"segmenter": ious, "grabcut": list(own), "grabcut_same_clicks": list(same)}
    return {
        side: [[row[count - 1] for count in COUNTS] for row in rows] for side, rows in sides.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="mini", help="as for jobs.finetune --evaluate (mini)")
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--masks", type=int, default=100, help="objects of a path; 0: all (100)")
    parser.add_argument("--json", type=Path, help="write every IoU, settings, environment here")
    args = parser.parse_args(argv)
    plain = load_segmenter(args.weights, torch.device("cpu"))
    segmenter = Recorder(plain.network, plain.device, plain.precision)
    start, ious = time.perf_counter(), {}
    print("| mean IoU after 1 / 3 / 5 clicks | n | segmenter | GrabCut | GrabCut, same clicks |")
    print("| --- | --- | --- | --- | --- |")
    for path in args.data:
        pairs = first_frames(survey([path], PairsConfig(longest=0, smallest=0, largest=1)))
        ious[path.name] = compare(segmenter, pairs, args.masks)
        cells = [
            " / ".join(f"{statistics.mean(column):.3f}" for column in zip(*rows, strict=True))
            for rows in ious[path.name].values()
        ]
        print(
            f"| {path.name} | {len(ious[path.name]['grabcut'])} | {' | '.join(cells)} |", flush=True
        )
    facts = {
        "weights": args.weights,
        "precision": segmenter.precision,
        "seconds": round(time.perf_counter() - start),
        "ious": ious,
        "hardware": hardware(),
        "versions": versions(),
    }
    print(f"\n{json.dumps(facts['hardware'])}\n{json.dumps(facts['versions'])}")
    if args.json:
        args.json.write_text(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
