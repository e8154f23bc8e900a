"""Make clips with known masks for `make demo`: objects cut out of photographs, which move.

    python -m docs.demo --out runs/demo/clips
    python -m jobs.mask --manifest docs/demo.csv --root runs/demo/clips --out runs/demo/masks

Both photographs come with scikit-learn. The job writes flower.mp4, tower.mp4, two short clips that
show both kinds of things each (docs/kinds.csv), and, for `--score`, the true masks of all in the
format of DAVIS: truth/<video>/00000.png.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_sample_image

from jobs.run.main import run_job
from jobs.storage.location import Location, check_writable
from masking.images.arrays import Bools, Pixels
from masking.outputs.formats import davis_png
from masking.training.staged import Actor, Pose, Stage, panned
from masking.video.writer import Film

SIZE, FRAMES, RATE = (270, 480), 40, 20
SHORT = 10
"""Frames of the clips that a classifier is trained on."""
LEAF = [(0, 95), (60, 85), (143, 62), (135, 120), (110, 200), (60, 290), (20, 330), (0, 320)]
"""Outline of a leaf in the photograph of the flower, as (x, y) in pixels."""
TOWER = [
    (205, 30), (216, 52), (262, 98), (318, 126), (292, 138), (296, 160), (328, 176), (318, 190),
    (320, 236), (351, 257), (338, 272), (346, 302), (348, 322), (370, 336), (330, 372), (212, 368),
    (78, 340), (80, 282), (64, 264), (102, 238), (104, 192), (85, 178), (124, 160), (120, 138),
    (97, 126), (130, 102), (190, 60), (197, 36),
]  # fmt: skip
"""Outline of the tower in the other photograph, as (x, y) in pixels."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of `docs.demo`."""

    out: str
    """Local folder for the clips and their true masks."""


def flower(photograph: Pixels) -> Bools:
    """Return the mask (H, W) of the large dahlia, which is found by its colour."""
    hue, saturation, value = cv2.split(cv2.cvtColor(photograph, cv2.COLOR_RGB2HSV))
    warm = ((hue < 25) | (hue > 150)) & (saturation > 80) & (value > 80)
    _, parts, facts, _ = cv2.connectedComponentsWithStats(warm.astype(np.uint8))
    largest = (parts == 1 + facts[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    return cv2.morphologyEx(largest, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)) > 0


def outlined(photograph: Pixels, outline: Sequence[tuple[int, int]]) -> Bools:
    """Return the mask (H, W) of the pixels inside an outline of (x, y)."""
    mask = np.zeros(photograph.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.array(outline, np.int32)], 1)
    return mask > 0


def stages() -> dict[str, Stage]:
    """Return the clips: a flower that turns and passes a leaf; a flower that passes a tower."""
    bloom, town = load_sample_image("flower.jpg"), load_sample_image("china.jpg")
    dahlia, leaf, tower = flower(bloom), outlined(bloom, LEAF), outlined(town, TOWER)

    def turning(t: int) -> Pose:
        return Pose(110 + 5 * t, 150 - 30 * np.sin(t / 12), 2 * t, 0.42 + 0.003 * t)

    over_town = [
        Actor(bloom, leaf, lambda t: Pose(360 - 3 * t, 110 + t, 0.7 * t, 0.5), 2),
        Actor(bloom, dahlia, turning, 1),
    ]
    over_leaves = [
        Actor(town, tower, lambda t: Pose(120 + 6 * t, 140, 4 * np.sin(t / 8), 0.6), 1),
        Actor(bloom, dahlia, lambda t: Pose(250 - 0.5 * t, 205, -t, 0.36), 2),
    ]
    return {
        "flower": Stage(SIZE, FRAMES, panned(town, SIZE, (0.7, 0.2)), over_town),
        "tower": Stage(SIZE, FRAMES, panned(bloom[:, 450:], SIZE, (-0.8, 0.1)), over_leaves),
    }


def kinds() -> dict[str, Stage]:
    """Return two short clips, each with the flower and the tower: one to train, one to validate."""
    bloom, town = load_sample_image("flower.jpg"), load_sample_image("china.jpg")
    dahlia, tower = flower(bloom), outlined(town, TOWER)
    first = [
        Actor(town, tower, lambda t: Pose(130 + 3 * t, 140, 3 * np.sin(t / 6), 0.5), 1),
        Actor(bloom, dahlia, lambda t: Pose(350 - 2 * t, 150, 3 * t, 0.42), 2),
    ]
    second = [
        Actor(bloom, dahlia, lambda t: Pose(110 + 3 * t, 140, -2 * t, 0.45), 1),
        Actor(town, tower, lambda t: Pose(350 - 3 * t, 140, -3 * np.sin(t / 6), 0.5), 2),
    ]
    return {
        f"both{number}": Stage(SIZE, SHORT, panned(bloom[:, 450:], SIZE, (speed, 0.1)), actors)
        for number, speed, actors in ((1, -0.8, first), (2, -0.3, second))
    }


def make(config: DemoConfig) -> None:
    """Write the clips and their true masks."""
    out = Path(config.out).absolute()
    check_writable(Location.parse(str(out)))
    out.mkdir(parents=True, exist_ok=True)
    for name, stage in {**stages(), **kinds()}.items():
        truth = Location.parse(str(out)) / f"truth/{name}"
        with Film(out / f"{name}.mp4", "overlay", SIZE) as film:
            for index, (image, labels) in enumerate(stage):
                film.write(image, index / RATE)
                png = davis_png(labels.astype(np.uint16))
                (truth / f"{index:05d}.png").write_bytes(png)
        print(f"{out / name}.mp4: {stage.frames} frames")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    return run_job(make, DemoConfig, argv, "docs.demo", __doc__)


if __name__ == "__main__":
    sys.exit(main())
