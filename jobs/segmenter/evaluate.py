"""Measure a segmenter with simulated clicks: mean IoU after 1, 3 and 5 of them.

    python -m jobs.finetune --evaluate --weights mini --data held-back.parquet --json out.json

A click is the deepest point of the larger error (`masking.images.geometry.deepest`). An object that
is not masked well after ten clicks counts as ten. Runs in this process, without Ray or --out.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from jobs.run.config import ConfigError
from jobs.run.device import choose_device
from jobs.run.machine import hardware, versions
from jobs.run.main import run_job
from jobs.segmenter.data import local_paths, spread, with_objects
from jobs.segmenter.task import CLICKS
from jobs.storage.location import Location, StorageError, check_writable
from jobs.weights.segmenter import announce, load_segmenter
from masking.segmenter.sam import SegmenterWeightsError
from masking.training.measure import measure, summarize
from masking.training.pairs import ImageError, PairsConfig, survey

FORMAT = 1
"""Version of the JSON file."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Settings of `jobs.finetune --evaluate`."""

    weights: str
    """Weights to measure: mini, vit_b, vit_l, vit_h, or a file or a run's folder, local or s3://."""
    data: tuple[str, ...]
    """Images with masks, in the formats of the training's --data; every mask is measured."""
    json: str | None = None
    """JSON file to write the figures to, local or s3://. Default: they are only printed."""
    images: int = 0
    """Number of images to measure on, evenly spread over the data; 0: all."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on a GPU if there is one, else on the CPU."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision to compute in; auto: bfloat16 if the processor multiplies it, else float32."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.images < 0:
            raise ConfigError(f"--images is {self.images}; at least 0 is needed")


def score(config: ScoreConfig) -> int:
    """Run the stages of the job in order; returns its exit code."""
    target = None if config.json is None else Location.parse(config.json)
    if target is not None:
        check_writable(target.parent)
    cv2.setNumThreads(0)
    pairs = survey(local_paths(config.data, 0), PairsConfig(longest=0, smallest=0, largest=1))
    pairs = pairs.subset(spread(len(pairs), config.images or len(pairs)).tolist())
    pairs = with_objects(pairs)
    announce(config.weights)
    segmenter = load_segmenter(config.weights, choose_device(config.device), config.precision)
    sums = np.zeros(5)
    for row in range(len(pairs)):
        sums += summarize(measure(segmenter, pairs[row], CLICKS))
    names = ("miou_1", "miou_3", "miou_5", "clicks_to_85")
    found = {name: value / sums[-1] for name, value in zip(names, sums[:-1].tolist(), strict=True)}
    print(
        f"{len(pairs):,} images, {int(sums[-1]):,} masks: mean IoU {found['miou_1']:.3f} /"
        f" {found['miou_3']:.3f} / {found['miou_5']:.3f} after 1 / 3 / 5 clicks;"
        f" {found['clicks_to_85']:.2f} clicks to 0.85 (at most {CLICKS})"
    )
    if target is not None:
        facts: dict[str, Any] = {
            "format": FORMAT,
            "weights": config.weights,
            "data": list(config.data),
            **found,
            "images": len(pairs),
            "masks": int(sums[-1]),
            "precision": segmenter.precision,
            "versions": versions(),
            "hardware": hardware(),
        }
        try:
            target.write_json(facts)
        except StorageError as error:
            sys.stderr.write(f"jobs.finetune --evaluate: the weights were measured, but {error}\n")
            return 1
    return 0


def main(argv: Sequence[str]) -> int:
    """Run the job; returns its exit code."""
    errors = (ImageError, SegmenterWeightsError)
    return run_job(score, ScoreConfig, argv, "jobs.finetune --evaluate", __doc__, errors)
