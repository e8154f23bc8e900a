"""The images with masks of a segmenter training, on this node: found, split, checked."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from jobs.masks import pairs as masked
from jobs.run.config import ConfigError
from jobs.segmenter.config import FinetuneConfig
from jobs.storage.cache import localize
from jobs.storage.location import Location
from masking.training.pairs import ImageError, NothingToLearnError, Pairs, inspect, survey
from vit import rng

FEWEST_HELD = 8
"""Images that are held back at least, if that leaves four in five to train on."""


@dataclass(frozen=True)
class Sets:
    """Images with masks to train on, and those held back for validation."""

    train: Pairs
    val: Pairs


def load(config: FinetuneConfig) -> Sets:
    """Find the images with masks on this node, and hold some back; no image is decoded.

    Raises:
        ConfigError: no image is left to train on.
        ImageError: the files cannot be used; names every fault.
    """
    cv2.setNumThreads(0)  # torch's threads have the cores
    found = survey(local_paths(config.data, config.pairs.longest), config.pairs)
    if config.val:
        return Sets(found, survey(local_paths(config.val, config.pairs.longest), config.pairs))
    order = rng.permutation(len(found), "val", config.seed).numpy()
    # A single image would say little, and may be one that cannot be used.
    count = max(1, min(FEWEST_HELD, len(found) // 5), round(config.val_fraction * len(found)))
    if count >= len(found):
        raise ConfigError(f"--data has {len(found)} images; none is left to train on")
    kept, held = (np.sort(part).tolist() for part in (order[count:], order[:count]))
    return Sets(found.subset(kept), found.subset(held))


def local_paths(paths: Sequence[str], longest: int) -> list[Path]:
    """Return the paths of the data on this node; remote ones are downloaded into its cache.

    Args:
        paths: local or s3://. A COCO file in S3 is downloaded with the folder of its images; of a
            mask run, some frames of its videos are written to the cache.
        longest: longer side of those frames, at most, in pixels; 0: as they are.
    """
    return [_local_path(Location.parse(path), longest) for path in paths]


def _local_path(place: Location, longest: int) -> Path:
    if masked.is_run(place):
        return masked.as_pairs(place, longest)
    if place.local_path is not None or not place.name.lower().endswith(".json"):
        return localize(place)
    folder, name = place.parent, place.name
    if folder.name == "annotations":  # COCO's own layout has the images beside this folder
        folder, name = folder.parent, f"annotations/{name}"
    return localize(folder) / name


def check_pairs(config: FinetuneConfig, sets: Sets) -> None:
    """Decode all images once, and print what is left out.

    Raises:
        ConfigError: the images to train on are fewer than a batch.
        ImageError: more images are bad than `max_bad_images`, or a set has none that can be used.
    """
    for note in {*sets.train.notes, *sets.val.notes}:
        print(note)
    if len(sets.train) < config.batch_size:
        raise ConfigError(
            f"--data has {len(sets.train)} images to train on, fewer than a batch of"
            f" --batch-size {config.batch_size}"
        )
    threads, errors = os.cpu_count() or 1, list[ImageError]()
    for what, part in (("to train on", sets.train), ("held back", sets.val)):
        inspection = inspect(part, threads)
        found = inspection.faults
        errors += found.values()
        for note in inspection.notes:
            print(f"images {what}: {note}")
        if len(found) == len(part):
            raise ImageError(
                f"--data, --val: none of the {len(part):,} images {what} can be used;"
                " check --pairs.smallest and --pairs.largest",
                *map(str, found.values()),
            )
    bad = [error for error in errors if not isinstance(error, NothingToLearnError)]
    if len(errors) > len(bad):
        print(
            f"{len(errors) - len(bad):,} images show no object between pairs.smallest and .largest"
        )
    if len(bad) > config.max_bad_images:
        raise ImageError(
            f"--data, --val: {len(bad):,} images cannot be used;"
            f" with --max-bad-images {len(bad)}, others take their place",
            *(str(error) for error in bad),
        )
    for error in bad:
        print(f"cannot be used: {error}")


def with_objects(pairs: Pairs) -> Pairs:
    """Return the pairs that show an object.

    Raises:
        ImageError: an image cannot be used, or none shows an object; names every fault.
    """
    inspection = inspect(pairs, os.cpu_count() or 1)
    found = inspection.faults
    for note in (*pairs.notes, *inspection.notes):
        print(note)
    bad = [str(e) for e in found.values() if not isinstance(e, NothingToLearnError)]
    if bad:
        raise ImageError(*bad)
    if found:
        print(f"{len(found):,} images show no object: left out")
    if len(found) == len(pairs):
        raise ImageError("--data: no image shows an object")
    return pairs.subset(row for row in range(len(pairs)) if row not in found)


def spread(total: int, most: int) -> NDArray[np.int64]:
    """Return up to `most` rows of `total`, evenly spread, since files come source by source."""
    count = min(most, total)
    rows: NDArray[np.int64] = np.linspace(0, total - 1, count).round().astype(np.int64)
    return rows
