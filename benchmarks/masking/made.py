"""Writes made clips of several objects as DAVIS has its sequences, for other benchmarks to run on.

    python -m benchmarks.masking.made --pairs sam_val/ --clips 12 --out made/
    python -m benchmarks.masking.tracking --data made/ --clicks 1 --ours

Pictures move as a camera moves, and cut-outs of other pictures move over them, half of them over
one that looks alike (`masking.training.clips`): objects cross, hide one another, leave and come
back. The same arguments give the same clips.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.masking.calibration import VOID, known


def main(argv: Sequence[str] | None = None) -> int:
    """Write the clips."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=Path, required=True, help="images with masks")
    parser.add_argument("--clips", type=int, default=12, help="number of clips (12)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sequences")
    options = parser.parse_args(argv)
    written = 0
    # Some clips show one object alone at their beginning: more are made than are written.
    for one in known([], [], options.pairs, 4 * options.clips):
        objects = [n for n in np.unique(one.truth[0]).tolist() if 0 < n < VOID]
        if len(objects) < 2:
            continue
        images = options.out / "JPEGImages" / one.name
        masks = options.out / "Annotations" / one.name
        for folder in (images, masks):
            folder.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(one.images):
            Image.fromarray(image).save(images / f"{index:05d}.jpg", quality=92)
            Image.fromarray(one.truth[index]).save(masks / f"{index:05d}.png")
        written += 1
        if written == options.clips:
            return 0
    print(f"{options.out}: only {written} clips of {options.clips} have several objects")
    return 1


if __name__ == "__main__":
    sys.exit(main())
