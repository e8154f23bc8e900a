"""Mask an object in one photograph by clicks, and draw it: a first test of what weights can do.

    python -m jobs.click --image flower --points 320 210 --out runs/click.png

Points are (x, y) in pixels of the image as displayed, origin top left. Runs in this process.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, cast

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from jobs.run.config import ConfigError
from jobs.run.device import choose_device
from jobs.run.main import run_job, working
from jobs.run.submitted import refuse_relative
from jobs.storage.location import Location, check_writable
from jobs.weights.segmenter import announce, load_segmenter
from masking.images.arrays import Bools, Pixels
from masking.images.decode import ImageError, read_image
from masking.manifest.prompt import FramePrompt
from masking.outputs.formats import mask_png, png_bytes
from masking.outputs.overlay import draw_masks
from masking.segmenter.sam import (
    Embeddings,
    PromptError,
    Prompts,
    Segmenter,
    SegmenterWeightsError,
)
from masking.tracking.obeying import Clicks, obey_in_frame
from masking.tracking.prompting import Prompter
from masking.tracking.query import Query

SAMPLES = ("flower", "china")
"""Photographs that scikit-learn ships."""


@dataclass(frozen=True, kw_only=True)
class ClickConfig:
    """Settings of `jobs.click`."""

    image: str
    """Image file, local or s3://, or `flower` or `china`, two photographs that scikit-learn
    ships."""
    points: tuple[tuple[float, float], ...]
    """Clicks on the image in pixels: x y x y ..."""
    out: str
    """PNG file to write, local or s3://: the image with mask and clicks."""
    labels: tuple[Literal[0, 1], ...] = ()
    """One label for each click: 1 on the object, 0 beside it. Default: all are 1."""
    mask: str | None = None
    """PNG file to write the mask to, local or s3://: 255 on the object, 0 elsewhere. Default: the
    mask is only drawn on the image."""
    weights: str = "mini"
    """Weights of the segmenter: mini, vit_b, vit_l, vit_h, sam2.1-tiny, sam2.1-small,
    sam2.1-base-plus, sam2.1-large, edgetam, sam3-tracker; or a file or folder of weights, or a
    run's folder, local or s3://."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on a GPU if there is one, else on the CPU."""

    def __post_init__(self) -> None:
        """Check the values, and that they fit together."""
        if not self.points:
            raise ConfigError("--points: at least one x y is needed")
        for flag, path in (("out", self.out), ("mask", self.mask)):
            if path is not None and not Location.parse(path).name.lower().endswith(".png"):
                raise ConfigError(f"--{flag} {path}: a name that ends in .png is needed")
        if self.labels and len(self.labels) != len(self.points):
            raise ConfigError(
                f"--labels has {len(self.labels)} values, --points has {len(self.points)} clicks;"
                " give one label a click, or none"
            )


def click(config: ClickConfig) -> None:
    """The stages of the job, in order."""
    paths = [path for path in (config.out, config.mask) if path is not None]
    for path in paths:
        refuse_relative(path)
    refuse_same(config)
    for path in paths:
        check_writable(Location.parse(path).parent)
    image = load_image(config.image)
    announce(config.weights)
    segmenter = load_segmenter(config.weights, choose_device(config.device))
    embeddings = segmenter.encode(image[None])
    labels = config.labels or (1,) * len(config.points)
    try:
        prompts = Prompts.of(embeddings.frame_size, [config.points], [labels])
    except PromptError as error:
        raise ConfigError(f"--image {config.image} with --points and --labels: {error}") from error
    # One click may mean several things: choose the best of three masks. More clicks are clear.
    found = segmenter.decode(embeddings, prompts, "best" if len(labels) == 1 else "single")
    mask, score = found.masks[0].cpu().numpy(), float(found.scores[0, 0])
    places, kinds = np.array(config.points, np.float32), np.array(labels, np.int64)
    if Clicks.at(places, kinds, embeddings.frame_size).disobeyed(mask[0]).any():
        mask[0], score = obeying(segmenter, embeddings, FramePrompt(places, kinds))
    drawn = draw_masks(image, mask, [config.points], [labels])
    with working():
        Location.parse(config.out).write_bytes(png_bytes(Image.fromarray(drawn)))
        if config.mask is not None:
            Location.parse(config.mask).write_bytes(mask_png(mask[0]))
    print(f"{mask.mean():.1%} of the image, predicted IoU {score:.2f}: " + ", ".join(paths))


def obeying(
    segmenter: Segmenter, embeddings: Embeddings, prompt: FramePrompt
) -> tuple[Bools, float]:
    """Return a mask (H, W) that obeys all clicks, as videos have on their prompted frames, and the
    IoU that the segmenter predicts."""
    prompter = Prompter(segmenter, embeddings)
    query = cast(Query, prompter.prompted(0, prompt, None, prompt.points[:0]))
    answer = prompter.answer_in_rounds([query])[0]
    logits = segmenter.upsample(answer.logits.to(segmenter.device), embeddings.frame_size)
    mask = obey_in_frame(logits.cpu().numpy(), prompt.points, prompt.labels) > 0
    return mask, answer.predicted


def refuse_same(config: ClickConfig) -> None:
    """Raise ConfigError if two flags name the same file, one of which would be overwritten."""
    places = [("--image", config.image), ("--out", config.out), ("--mask", config.mask)]
    named = [
        (flag, path)
        for flag, path in places
        if path is not None and not (flag == "--image" and path in SAMPLES)
    ]
    for (first, path), (second, other) in combinations(named, 2):
        if _is_same(Location.parse(path), Location.parse(other)):
            raise ConfigError(
                f"{first} {path} and {second} {other} are the same file, which would be"
                f" overwritten; give {second} another name"
            )


def _is_same(place: Location, other: Location) -> bool:
    if place.local_path is None or other.local_path is None:
        return (place.is_s3, place.path) == (other.is_s3, other.path)
    try:
        return place.local_path.samefile(other.local_path)
    except OSError:  # one of them does not exist
        return os.path.realpath(place.path) == os.path.realpath(other.path)


def load_image(image: str) -> Pixels:
    """Return (H, W, 3) uint8 RGB of a file, or of a photograph of `SAMPLES` by its name."""
    if image in SAMPLES:
        return np.asarray(load_sample_image(f"{image}.jpg"))
    place = Location.parse(image)
    source: bytes | Path = place.local_path or place.read_bytes()
    try:
        return read_image(source, 0)[0]
    except (ImageError, OSError) as error:
        raise ConfigError(f"--image {image}: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    return run_job(click, ClickConfig, argv, "jobs.click", __doc__, (SegmenterWeightsError,))


if __name__ == "__main__":
    sys.exit(main())
