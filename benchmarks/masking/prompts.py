"""Accuracy of masks through videos by the kind of prompt on the first frame: click, box, true mask.

    python -m benchmarks.masking.prompts --data vos/ --json FILE

The click is an object's deepest point, the box its bounding box, and the mask the true one. J&F is
that of DAVIS, without the first frame, which the mask is given for, and the last; the mean is over
objects. Objects that the first frame does not show are left out.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.masking.tracking import Clip, Once, clicks, report, score, seen, sequences
from jobs.cluster.workers import keep_memory
from jobs.run.machine import hardware, versions
from jobs.weights.segmenter import load_segmenter
from masking.images.arrays import Bools
from masking.images.masks import box
from masking.manifest.shapes import text_of_mask
from masking.tracking.masking import mask_video

KINDS = ("click", "box", "mask")


def row_of(kind: str, mask: Bools) -> dict[str, Any]:
    """Return the columns of a manifest for a prompt of a kind from the true mask (H, W)."""
    if kind == "mask":
        return {"mask": text_of_mask(mask)}
    if kind == "box":
        x, y, width, height = box(mask)
        return {"x": x, "y": y, "x2": x + width, "y2": y + height, "prompt_type": "box"}
    [(x, y)] = clicks(mask, 1)
    return {"x": float(x), "y": float(y)}


def scores(segmenter: Once, one: Clip, kind: str) -> list[float]:
    """Return J&F of each object of a sequence that is prompted on the first frame."""
    rows = [{"object_id": i, "frame": 0, **row_of(kind, one.truth[0] == i)} for i in one.objects]
    found = np.stack([each.masks for each in mask_video(one.folder, rows, segmenter)], axis=1)
    return score(one, found)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder as DAVIS has it")
    parser.add_argument("--sequences", nargs="*", default=[], help="some of its sequences")
    parser.add_argument("--weights", default="mini")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args(argv)
    keep_memory()
    segmenter = Once(load_segmenter(options.weights, torch.device("cpu")))
    found: dict[str, dict[str, list[float]]] = {}
    started = time.perf_counter()
    for clip in sequences(options.data, options.sequences):
        segmenter.forget()
        one = seen(clip, 0)
        found[one.name] = {kind: scores(segmenter, one, kind) for kind in KINDS}
        print(f"{one.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    report(f"J&F of {options.weights} by the prompt on the first frame", found)
    facts = {"hardware": hardware(), "versions": versions()}
    print(f"\n{json.dumps(facts['hardware'])}\n{json.dumps(facts['versions'])}")
    if options.json:
        options.json.write_text(json.dumps({"j_and_f": found, **facts}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
