"""COCO's run lengths of masks, encoded and decoded by our code and by pycocotools.

    python -m benchmarks.masking.run_lengths --json FILE

Both sides take turns in one process, on a smooth mask and a ragged one, of 480 x 270 pixels and of
1080p. Their bytes and pixels are compared, too.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from jobs.run.machine import hardware, versions
from masking.images.arrays import Bools
from masking.images.masks import decode_rle, encode_rle

SIZES = {"480x270": (270, 480), "1080p": (1080, 1920)}


def masks(size: tuple[int, int]) -> dict[str, Bools]:
    """Return a disc, and islands with ragged edges, each about a fifth of a frame (H, W)."""
    h, w = size
    y, x = np.mgrid[:h, :w]
    noise = np.random.default_rng(0).standard_normal(size)
    ragged = cv2.GaussianBlur(noise, (0, 0), 2)
    return {
        "smooth": (x - w / 2) ** 2 + (y - h / 2) ** 2 <= (0.36 * h) ** 2,
        "ragged": ragged > np.quantile(ragged, 0.8),
    }


def coco_encode(mask: Bools) -> bytes:
    """Encode a mask by pycocotools."""
    counts: bytes = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts


def coco_decode(counts: bytes, size: tuple[int, int]) -> Bools:
    """Decode run lengths by pycocotools."""
    decoded: Bools = coco.decode({"size": size, "counts": counts}).view(np.bool_)
    return decoded


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """Return the CPU seconds of a call, as the mean of some rounds; other programs count little."""
    started = time.process_time()
    for _ in range(rounds):
        call()
    return (time.process_time() - started) / rounds


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Time both sides in turns; return microseconds and the ratio, ours to pycocotools'."""
    rounds = max(1, round(0.02 / max(seconds(ours, 3), seconds(theirs, 3))))
    pairs = [(seconds(ours, rounds), seconds(theirs, rounds)) for _ in range(repeats)]
    ratios = sorted(mine / other for mine, other in pairs)
    return {
        "ours_us": 1e6 * statistics.median(mine for mine, _ in pairs),
        "pycocotools_us": 1e6 * statistics.median(other for _, other in pairs),
        "ratio": statistics.median(ratios),
        "least": ratios[0],
        "most": ratios[-1],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args(argv)
    rows: dict[str, dict[str, Any]] = {}
    print("| | ours | pycocotools | ratio (least to most) |\n| --- | ---: | ---: | ---: |")
    for shown, size in SIZES.items():
        for kind, mask in masks(size).items():
            counts = encode_rle(mask)
            if counts != coco_encode(mask) or (decode_rle(counts, size) != mask).any():
                raise AssertionError(f"{kind}, {shown}: the two sides differ")
            if (coco_decode(counts, size) != mask).any():
                raise AssertionError(f"{kind}, {shown}: pycocotools decodes another mask")
            sides: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
                "encode": (lambda m=mask: encode_rle(m), lambda m=mask: coco_encode(m)),
                "decode": (
                    lambda c=counts, s=size: decode_rle(c, s),
                    lambda c=counts, s=size: coco_decode(c, s),
                ),
            }
            for what, (ours, theirs) in sides.items():
                name = f"{what}, {kind}, {shown}"
                row = rows[name] = compare(ours, theirs, options.repeats)
                spread = f"{row['ratio']:.2f} ({row['least']:.2f} to {row['most']:.2f})"
                print(
                    f"| {name} | {row['ours_us']:.0f} us | {row['pycocotools_us']:.0f} us"
                    f" | {spread} |",
                    flush=True,
                )
    if options.json:
        facts = {"n": options.repeats, "hardware": hardware(), "versions": versions()}
        options.json.write_text(json.dumps({"rows": rows, **facts}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
