"""A manifest of DAVIS 2017, whose masks `jobs.mask --score` then compares with the true ones.

    python -m benchmarks.masking.davis DAVIS --out davis.csv
    python -m jobs.mask --manifest davis.csv --weights sam2.1-base-plus --out runs/davis \\
        --score DAVIS/Annotations/480p

DAVIS is the folder of the data set, with JPEGImages/480p, Annotations/480p and ImageSets/2017. Each
object has its true mask on its first frame as its prompt, or with --clicks simulated clicks there.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.masking.tracking import clicks
from masking.images.masks import encode_rle


def rows_of(folder: Path, truth: Sequence[Path], count: int) -> list[dict[str, Any]]:
    """Return the rows of a sequence.

    Args:
        folder: its frames.
        truth: indexed PNGs of the frames, in order.
        count: clicks on each object; 0: its mask.
    """
    rows: list[dict[str, Any]] = []
    seen: set[int] = set()
    for frame, file in enumerate(truth):
        labels = np.asarray(Image.open(file))
        for number in sorted({int(i) for i in np.unique(labels) if 0 < i < 255} - seen):
            seen.add(number)
            place = {"uri": str(folder.resolve()), "video_id": folder.name, "object_id": number}
            mask = labels == number
            if not count:
                rle = {"size": list(mask.shape), "counts": encode_rle(mask).decode()}
                rows.append(
                    {**place, "frame": frame, "prompt_type": "mask", "mask": json.dumps(rle)}
                )
            for x, y in clicks(mask, count):
                rows.append({**place, "frame": frame, "x": float(x), "y": float(y)})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Write the manifest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("davis", type=Path, help="the folder of DAVIS 2017")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    parser.add_argument("--clicks", type=int, default=0, help="clicks on each object (0: its mask)")
    parser.add_argument("--set", default="val", help="set of ImageSets/2017 (val)")
    options = parser.parse_args(argv)
    names = (options.davis / "ImageSets/2017" / f"{options.set}.txt").read_text().split()
    rows = []
    for name in names:
        truth = sorted((options.davis / "Annotations/480p" / name).glob("*.png"))
        rows += rows_of(options.davis / "JPEGImages/480p" / name, truth, options.clicks)
    pd.DataFrame(rows).to_csv(options.out, index=False)
    print(f"{len(names):,} sequences, {len(rows):,} prompts: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
