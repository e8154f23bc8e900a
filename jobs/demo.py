"""A clip with a known truth, masked from three clicks: what `make demo` shows of video.

    python -m jobs.demo --out runs/demo/video

Two things cut out of one photograph (both come with scikit-learn) move over another and pass each
other. Written are the clip, its prompts as a manifest, and an overlay video; printed is J&F.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pandas as pd
from sklearn.datasets import load_sample_image

from jobs import segmenters
from jobs.config import ConfigError, parse
from jobs.evaluate import choose_device
from jobs.storage import Location, StorageError, check_writable
from masking.clicks import deepest
from masking.decode import Bools, Pixels
from masking.film import Film
from masking.masks import davis
from masking.overlay import draw_masks
from masking.propagate import mask_video
from masking.sam import CheckpointError
from masking.staged import Actor, Pose, Stage, panned

SIZE, FRAMES, RATE = (270, 480), 60, 25
LEAF = [(0, 95), (60, 85), (143, 62), (135, 120), (110, 200), (60, 290), (20, 330), (0, 320)]
"""Outline of a leaf in the photograph of the flower."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of `jobs.demo`."""

    out: str
    """Local folder for the clip, its manifest and the overlay video."""
    weights: str = "mini"
    """mini, vit_b, vit_l or vit_h; or a path or s3:// of a checkpoint or a run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""


def flower(photograph: Pixels) -> Bools:
    """(H, W): the large dahlia, by its colour."""
    hue, saturation, value = cv2.split(cv2.cvtColor(photograph, cv2.COLOR_RGB2HSV))
    warm = ((hue < 25) | (hue > 150)) & (saturation > 80) & (value > 80)
    _, parts, facts, _ = cv2.connectedComponentsWithStats(warm.astype(np.uint8))
    largest = (parts == 1 + facts[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    return cv2.morphologyEx(largest, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)) > 0


def stage() -> Stage:
    """The clip: a flower that turns and comes nearer, and a leaf that it passes in front of."""
    photograph, town = load_sample_image("flower.jpg"), load_sample_image("china.jpg")
    leaf = np.zeros(photograph.shape[:2], np.uint8)
    cv2.fillPoly(leaf, [np.array(LEAF, np.int32)], 1)
    return Stage(
        SIZE,
        FRAMES,
        panned(town, SIZE, (0.7, 0.2)),
        [
            Actor(photograph, leaf > 0, lambda t: Pose(360 - 3 * t, 110 + t, 0.7 * t, 0.5), 2),
            Actor(
                photograph,
                flower(photograph),
                lambda t: Pose(110 + 4.2 * t, 150 - 30 * np.sin(t / 12), 2 * t, 0.42 + 0.003 * t),
                1,
            ),
        ],
    )


def prompts(labels: Pixels) -> pd.DataFrame:
    """Two clicks on the flower and one on the leaf, on the first frame."""
    x, y, _ = deepest(labels == 1) or (0, 0, 0)
    rows = [(1, "flower", x, y), (1, "flower", x - 30, y + 10)]
    x, y, _ = deepest(labels == 2) or (0, 0, 0)
    table = pd.DataFrame([*rows, (2, "leaf", x, y)], columns=["object_id", "object_name", "x", "y"])
    return table.assign(uri="clip.mp4", frame=0, label=1)


def show(config: DemoConfig) -> None:
    """The stages of the job, in order: make the clip, mask it, draw it, score it."""
    out = Path(config.out).absolute()
    check_writable(Location.parse(str(out)))
    segmenters.announce(config.weights)
    segmenter = segmenters.bring(config.weights, choose_device(config.device))
    out.mkdir(parents=True, exist_ok=True)
    clip = list(stage())
    with Film(out / "clip.mp4", "overlay", SIZE) as film:
        for index, (image, _) in enumerate(clip):
            film.write(image, index / RATE)
    table = prompts(clip[0][1])
    table.to_csv(out / "manifest.csv", index=False)
    masks = []
    with Film(out / "overlay.mp4", "overlay", SIZE, out / "clip.mp4") as film:
        for frame in mask_video(out / "clip.mp4", table, segmenter):
            masks.append(frame.masks)
            film.write(draw_masks(frame.image, frame.masks), frame.time_s)
    truth = np.stack([labels for _, labels in clip])
    for place, name in enumerate(("flower", "leaf")):
        j, f = davis(list(truth == place + 1), [mask[place] for mask in masks])
        print(f"{name}: J&F {(j + f) / 2:.3f} (J {j:.3f}, F {f:.3f}) over {len(masks)} frames")
    print(f"overlay: {out / 'overlay.mp4'}")
    manifest = f"{Path(config.out) / 'manifest.csv'}"
    print(f"its clicks in a browser: python -m jobs.prompt {manifest} --out {manifest}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        show(parse(DemoConfig, argv, "jobs.demo", __doc__))
    except (ConfigError, CheckpointError, StorageError) as error:
        sys.stderr.write(f"jobs.demo: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
