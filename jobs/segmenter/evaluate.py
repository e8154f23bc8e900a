"""Measure a segmenter by simulated clicks: mean IoU after 1, 3 and 5 of them.

    python -m jobs.finetune --evaluate --weights mini --data held-back.parquet --json out.json

A click is the deepest point of the larger error (`masking.images.geometry.deepest`); an object that
is not masked well after ten counts as ten clicks. Runs in this process: no Ray, no --out.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from jobs.run.config import ConfigError, parse
from jobs.run.device import choose_device
from jobs.run.machine import hardware, versions
from jobs.segmenter.task import CLICKS, local, spread
from jobs.storage.location import Location, StorageError, check_writable
from jobs.weights.segmenter import announce, load_segmenter
from masking.segmenter.sam import SegmenterWeightsError
from masking.training.pairs import (
    ImageError,
    NothingToLearnError,
    Pairs,
    PairsConfig,
    faults,
    survey,
)
from masking.training.steps import measure, summarize

FORMAT = 1
"""Version of the JSON file."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Settings of `jobs.finetune --evaluate`."""

    weights: str
    """What to measure: mini, vit_b, vit_l, vit_h, or a file or a run's folder, local or s3://."""
    data: tuple[str, ...]
    """Images with masks, as of the training; every mask counts."""
    json: str | None = None
    """File for the figures, local or s3://."""
    images: int = 0
    """Only so many of the images, evenly spread; 0: all."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on a GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the processor multiplies it."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.images < 0:
            raise ConfigError(f"--images is {self.images}; at least 0 is needed")


def score(config: ScoreConfig) -> int:
    """The stages of the job, in order; returns its exit code."""
    target = None if config.json is None else Location.parse(config.json)
    if target is not None:
        check_writable(target.parent)
    cv2.setNumThreads(0)
    pairs = survey(local(config.data, 0), PairsConfig(longest=0, smallest=0, largest=1))
    pairs = pairs.subset(spread(len(pairs), config.images or len(pairs)).tolist())
    pairs = usable(pairs)
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
            sys.stderr.write(f"jobs.finetune --evaluate: measured, but {error}\n")
            return 1
    return 0


def usable(pairs: Pairs) -> Pairs:
    """Those that show an object; raises ImageError with every fault before anything is measured."""
    found = faults(pairs, os.cpu_count() or 1)
    bad = [str(e) for e in found.values() if not isinstance(e, NothingToLearnError)]
    if bad:
        raise ImageError(*bad)
    if found:
        print(f"{len(found):,} images show no object: left out")
    if len(found) == len(pairs):
        raise ImageError("--data: no image shows an object")
    return pairs.subset(row for row in range(len(pairs)) if row not in found)


def main(argv: Sequence[str]) -> int:
    """Run the job; returns its exit code."""
    prog = "jobs.finetune --evaluate"
    try:
        return score(parse(ScoreConfig, argv, prog, __doc__))
    except (ConfigError, ImageError, SegmenterWeightsError, StorageError) as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 2
