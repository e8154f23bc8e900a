"""Measures whether states are true, on made clips: objects are hidden, leave, return and cross.

    python -m benchmarks.masking.states --data voc-00.parquet --backdrops horses-00.parquet

Objects of the first data are cut out and moved over pictures of the second; so it is known where
each object is, and on which frames it can be seen. The table shows:

- of frames on which an object is gone, how many are `lost`, and how many show a mask;
- of frames on which it is there, how many are `lost`, and how many show a mask elsewhere;
- of `recovered` frames how many are right, and how many objects that return are found again.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.masking.tracking import Once
from jobs.cluster.workers import keep_memory
from jobs.run.machine import hardware, versions
from jobs.weights.segmenter import load_segmenter
from masking.images.arrays import Pixels
from masking.images.geometry import deepest
from masking.manifest.prompt import FramePrompt
from masking.tracking.state import Scene, TrackConfig, begin
from masking.tracking.step import advance
from masking.training.pair import Pair
from masking.training.pairs import Pairs, PairsConfig, survey
from masking.training.staged import Actor, Pose, Stage, panned

SIZE, FRAMES, GONE = (270, 480), 60, range(24, 40)
"""The frames on which something is gone, in the scenes that have it."""
LENGTH = 110
"""Pixels that an object's longer side measures."""
THERE, ELSEWHERE, RIGHT = 0.5, 0.1, 0.5
"""Share of its usual area from which an object is there; IoU below which a mask is of something
else; IoU from which a recovery is right."""


def actor(pair: Pair, number: int, path: Callable[[int], tuple[float, float] | None]) -> Actor:
    """Return the first object of a pair as an actor `LENGTH` pixels long."""
    mask = pair.masks[0]
    _, _, width, height = cv2.boundingRect(mask.view(np.uint8))
    zoom = LENGTH / max(width, height)

    def pose(index: int) -> Pose | None:
        place = path(index)
        return None if place is None else Pose(*place, degrees=0.4 * index, zoom=zoom)

    return Actor(pair.image, mask, pose, number)


def screen(picture: Pixels, path: Callable[[int], tuple[float, float] | None]) -> Actor:
    """Return a piece of a picture that is large enough to hide an object."""
    mask = np.ones(picture.shape[:2], dtype=np.bool_)
    zoom = 1.6 * LENGTH / min(picture.shape[:2])
    return Actor(picture, mask, lambda t: Pose(*p, zoom=zoom) if (p := path(t)) else None)


def scenes(objects: Sequence[Pair], backdrops: Sequence[Pair]) -> dict[str, Stage]:
    """Return a clip of each kind, from two objects and three backdrops."""
    first, second = objects
    behind = panned(backdrops[0].image, SIZE, (0.6, 0.2))
    other = panned(backdrops[1].image, SIZE, (0.0, 0.0))

    def cut(index: int) -> Pixels:
        return other(index) if index in GONE else behind(index)

    def drift(t: int) -> tuple[float, float]:
        return 120.0 + 3.5 * t, 135.0 + 20 * np.sin(t / 9)

    def leaves(t: int) -> tuple[float, float]:
        return 240.0 + 360 * np.sin(np.pi * min(1, max(0, (t - 12) / 40))), 140.0

    def gone(t: int) -> tuple[float, float] | None:
        return None if t in GONE else drift(t)

    def crossing(t: int) -> tuple[float, float]:
        return 360.0 - 4 * t, 150.0

    def cover(t: int) -> tuple[float, float] | None:
        return drift(t) if t in GONE else None

    def aside(t: int) -> tuple[float, float]:
        return 400.0 - t, 90.0

    wall = screen(backdrops[2].image, cover)
    casts: dict[str, tuple[Callable[[int], Pixels], list[Actor]]] = {
        "hidden": (behind, [actor(first, 1, drift), wall]),
        "leaves and returns": (behind, [actor(first, 1, leaves)]),
        "shot cut": (cut, [actor(first, 1, gone)]),
        "look-alike": (behind, [actor(first, 9, aside), actor(first, 1, gone)]),
        "crossing": (behind, [actor(second, 2, crossing), actor(first, 1, drift)]),
    }
    return {kind: Stage(SIZE, FRAMES, *cast) for kind, cast in casts.items()}


def judge(segmenter: Once, stage: Stage, config: TrackConfig) -> Counter[str]:
    """Count frames of each kind over the clicked objects (1 and 2) of a clip."""
    clip = list(stage)
    numbers = [n for n in (1, 2) if (clip[0][1] == n).any()]
    usual = {n: np.median([a for _, m in clip if (a := (m == n).sum())]) for n in numbers}
    tracker, counts = begin(len(numbers)), Counter[str]()
    away = dict.fromkeys(numbers, False)
    for index, (image, labels) in enumerate(clip):
        embeddings = segmenter.encode(image[None])
        here = Scene(embeddings, segmenter.keys(embeddings)[0])
        prompts = {}
        if index == 0:
            for row, number in enumerate(numbers):
                place = deepest(labels == number) or (0, 0, 1)
                prompts[row] = FramePrompt(np.array([place[:2]], np.float32), np.ones(1, np.int64))
        tracker, found = advance(segmenter, config, tracker, here, prompts)
        masks = (segmenter.upsample(found.logits, SIZE) > 0).numpy()
        for row, number in enumerate(numbers):
            truth, mask, state = labels == number, masks[row], found.states[row]
            union = (truth | mask).sum()
            iou = (truth & mask).sum() / union if union else 1.0
            if not truth.any():
                away[number] = True
                counts["gone"] += 1
                counts["gone, lost"] += state == "lost"
                counts["gone, drawn"] += bool(mask.any())
            elif truth.sum() >= THERE * usual[number]:
                if away[number]:
                    counts["returns"] += 1
                    away[number] = False
                    counts["waiting"] += 1
                counts["there"] += 1
                counts["there, lost"] += state == "lost"
                counts["there, elsewhere"] += int(mask.any() and iou < ELSEWHERE)
                if counts["waiting"] and iou >= RIGHT:
                    counts["found again"] += 1
                    counts["waiting"] = 0
            if state == "recovered":
                counts["recovered"] += 1
                counts["recovered, right"] += int(iou >= RIGHT)
    del counts["waiting"]
    return counts


def choose(pairs: Pairs, least: float, most: float) -> list[Pair]:
    """Return the pairs whose first object is whole and covers a share from `least` to `most`."""
    found = []
    for pair in (pairs[i] for i in range(len(pairs))):
        mask = pair.masks[0]
        edges = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
        if least <= mask.mean() <= most and not edges:
            found.append(pair)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table by kind of clip and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="pairs whose objects are cut out")
    parser.add_argument("--backdrops", type=Path, required=True, help="pairs whose pictures are")
    parser.add_argument("--clips", type=int, default=5, help="of each kind")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args(argv)
    keep_memory()
    segmenter = Once(load_segmenter("mini", torch.device("cpu")))
    objects = choose(survey([options.data], PairsConfig()), 0.05, 0.4)
    pictures = survey([options.backdrops], PairsConfig())
    backdrops = [pictures[i] for i in range(3 * options.clips)]
    table: dict[str, dict[str, Any]] = {}
    for number in range(options.clips):
        made = scenes(objects[2 * number : 2 * number + 2], backdrops[3 * number : 3 * number + 3])
        for kind, stage in made.items():
            segmenter.forget()
            table.setdefault(kind, Counter()).update(judge(segmenter, stage, TrackConfig()))
    columns = (
        ("gone, lost", "gone"),
        ("gone, drawn", "gone"),
        ("there, lost", "there"),
        ("there, elsewhere", "there"),
        ("recovered, right", "recovered"),
        ("found again", "returns"),
    )
    print(f"| clips | {' | '.join(c for c, _ in columns)} |\n| --- |{' ---: |' * len(columns)}")
    for name, counts in table.items():
        cells = (f"{counts[c]}/{counts[of]}" for c, of in columns)
        print(f"| {name} | {' | '.join(cells)} |")
    if options.json:
        facts = {"hardware": hardware(), "versions": versions()}
        options.json.write_text(json.dumps({"counts": table, **facts}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
