"""Sets of labelled images from local files, with a validation split.

A data set is decoded once a node if it then fits in `dataset.cache_gb`: every process maps the
same pages into memory. Otherwise it is packed there and decoded ahead of the training
(`vit.data.cache`, `vit.data.feed`). Training and validation set are two lists of rows of one array.

Legend: N images of a decoded array, n of them in a set, S the side of a square image in pixels.
Images are RGB, channels first, origin top left. Rows count from 0, in messages too.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vit.config import DatasetConfig
from vit.data import cache as caches
from vit.data.decode import DataError, Pack, Pixels
from vit.data.formats import find
from vit.data.reader import LISTED, Bad, Ints, fail, normal, some, split, split_groups


@dataclass(frozen=True)
class Images:
    """A set of labelled images: rows of arrays that another set may share."""

    images: Pixels | Pack
    """(N, 3, S, S) uint8, mapped from the cache, copy on write so that no process can change
    another's; or N encoded images."""
    labels: Ints
    """(N,) int64, indices into `Dataset.classes`."""
    rows: Ints
    """(n,) int64, ascending: which rows of `images` and `labels` belong to this set."""
    tracks: Ints | None = None
    """(N,) int64, indices into `Dataset.tracks`; None: the data set has no tracks."""

    def __len__(self) -> int:
        """Number of images of the set (n, not N)."""
        return len(self.rows)


@dataclass(frozen=True)
class Dataset:
    """The sets of a data set; every choice is made on `val`, `test` is read once, at the end."""

    train: Images
    val: Images
    test: Images | None
    classes: tuple[str, ...]
    """Names of the classes, by label."""
    notes: tuple[str, ...] = ()
    """Lines for a person, such as images that are left out and files that are not used."""
    tracks: tuple[tuple[str, str], ...] = ()
    """Id of the video, and of the object in it, of each track; empty without tracks."""
    crops: dict[str, Any] | None = None
    """How images were cut out of videos, if the data set says it."""


@dataclass(frozen=True)
class Summary:
    """Classes and sizes of the sets, known before any pixel is decoded."""

    classes: tuple[str, ...]
    train: int
    val: int
    test: int | None
    notes: tuple[str, ...] = ()


def check(config: DatasetConfig, paths: Sequence[Path]) -> Summary:
    """Find every fault that shows without decoding a pixel: in paths, layout, columns, labels.

    Args:
        config: which data set, and how validation is held out.
        paths: local files or folders, as for `load`.

    Raises:
        DataError: a path, file, column or label cannot be used.
    """
    survey = find(config, paths).survey()
    labels = caches.labels_of(survey)
    good = sum(map(len, labels.values()))
    notes = (
        *survey.notes,
        *_untrained(survey.classes, labels["train"]),
        *_left_out(config, survey.bad, good),
    )
    tracks = survey.tracks
    videos = None if tracks is None else _videos(tracks.names, tracks.numbers["train"])
    train, val = _train_val(config, labels["train"], survey.classes, "val" in labels, videos)
    sizes = {name: len(values) for name, values in labels.items()}
    return Summary(survey.classes, len(train), sizes.get("val", len(val)), sizes.get("test"), notes)


def load(
    config: DatasetConfig,
    paths: Sequence[Path],
    image_size: int,
    cache: Path,
    *,
    hold_out: bool = True,
    training: bool = True,
) -> Dataset:
    """Decode or pack a data set into `cache`, unless that has been done, and open it.

    Args:
        config: which data set, whether it is kept decoded, and how validation is held out.
        paths: local files or folders. digits: none. CIFAR: the archive, its folder (or the one
            around either), or Parquet files (or their folders). imagefolder: one folder. parquet:
            files or folders.
        image_size: S, unless config.store_size says otherwise. Other images are resized, bilinear
            with antialiasing, the shorter side to S, and their centre is cut out.
        cache: folder for decoded and packed data sets; made where it is absent.
        hold_out: whether a data set without validation images gets some of its training images for
            validation; else all stay in `train`.
        training: whether a classifier is trained on them. Data that are only measured may lack
            classes, and a training set.

    Raises:
        DataError: a path, file, column, label or image cannot be used, or the cache is not
            writable.
    """
    reader = find(config, paths, training=training)
    size = config.store_size or image_size
    folder = caches.keep(config.name, reader, size, cache, config.cache_gb)
    return _open(folder, config, size, hold_out, training)


def relabelled(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Return a data set whose labels are positions in other `classes`, found by their names.

    Raises:
        DataError: a class of the data set is not among them; the message lists these.
    """
    places = {normal(name): place for place, name in enumerate(classes)}
    unknown = [name for name in dataset.classes if normal(name) not in places]
    fail(unknown, f"classes of the data that are not among the {len(classes)} expected ones")
    new = np.array([places[normal(name)] for name in dataset.classes], np.int64)
    parts = {
        name: replace(images, labels=new[images.labels])
        for name in ("train", "val", "test")
        if (images := getattr(dataset, name)) is not None
    }
    return replace(dataset, classes=tuple(classes), **parts)


def _open(
    folder: Path, config: DatasetConfig, size: int, hold_out: bool, training: bool
) -> Dataset:
    """Map the data set in `folder`, if no more of its images are bad than the config allows."""
    about = caches.about(folder)
    try:
        sets = _open_sets(folder, about["splits"], size, about["tracks"] is not None)
    except (OSError, ValueError) as error:
        raise caches.damaged(folder, error) from error
    good = sum(map(len, sets.values()))
    left_out = _left_out(config, about["bad"], good, f", all in {folder / 'dataset.json'}")
    empty = [name for name, images in sets.items() if not len(images.rows)]
    fail(empty, "sets without a usable image")
    classes = tuple(about["classes"])
    tracks = tuple((video, number) for video, number in about["tracks"] or ())
    if not training and "train" not in sets:
        hold_out = False
        sets["train"] = replace(next(iter(sets.values())), rows=np.arange(0))
    whole = sets["train"]
    labels = whole.labels[whole.rows]
    untrained = _untrained(classes, labels) if training else []
    videos = None if whole.tracks is None else _videos(tracks, whole.tracks[whole.rows])
    train, val = _train_val(config, labels, classes, "val" in sets or not hold_out, videos)
    return Dataset(
        train=replace(whole, rows=whole.rows[train]),
        val=sets.get("val", replace(whole, rows=whole.rows[val])),
        test=sets.get("test"),
        classes=classes,
        notes=(*about["notes"], *untrained, *left_out),
        tracks=tracks,
        crops=about["crops"],
    )


def _open_sets(folder: Path, names: Sequence[str], size: int, tracked: bool) -> dict[str, Images]:
    """Open each set with all of its images; packed sets share one array of labels, and tracks."""
    labels = {name: np.load(folder / f"{name}.labels.npy") for name in names}
    tracks = {name: np.load(folder / f"{name}.tracks.npy") for name in names if tracked}
    if not (folder / "index.npy").is_file():
        pixels = {name: np.load(folder / f"{name}.images.npy", mmap_mode="c") for name in names}
        return {
            name: Images(pixels[name], labels[name], np.arange(len(labels[name])), tracks.get(name))
            for name in names
        }
    pack, joined, sets = Pack(folder, size), np.concatenate(list(labels.values())), {}
    all_tracks = np.concatenate(list(tracks.values())) if tracked else None
    first = 0
    for name, values in labels.items():
        rows = np.arange(first, first + len(values))
        sets[name] = Images(pack, joined, rows, all_tracks)
        first += len(values)
    return sets


def _untrained(classes: Sequence[str], labels: Ints) -> list[str]:
    """Write a note on classes without a training image; raises DataError if only one has some."""
    occur = set(np.unique(labels).tolist())
    if len(occur) < 2:
        names = ", ".join(classes[label] for label in occur) or "none"
        raise DataError(f"classes with training images: {names}; a classifier needs at least two")
    missing = [name for label, name in enumerate(classes) if label not in occur]
    if not missing:
        return []
    return ["classes without a training image, which are never learnt: " + ", ".join(some(missing))]


def _left_out(config: DatasetConfig, bad: Sequence[Bad], good: int, more: str = "") -> list[str]:
    """Write notes on images that cannot be used; raises DataError if the config allows fewer.

    Args:
        config: how many it allows.
        bad: what cannot be used.
        good: number of all others.
        more: where a person finds those that are not listed.
    """
    count = sum(number for _, number in bad)
    if count > config.max_bad_images:
        fail(
            [line for line, _ in bad],
            "images cannot be used",
            count,
            f"dataset.max_bad_images is {config.max_bad_images}; set it to {count} to omit them"
            if good
            else "no image of the data set can be used",
        )
    rest = [f"... and {len(bad) - LISTED:,} more{more}"] if len(bad) > LISTED else []
    return [*(f"left out: {line}" for line, _ in bad[:LISTED]), *rest]


def _videos(tracks: Sequence[tuple[str, str]], numbers: Ints) -> list[str]:
    """Return the id of the video of each image, given by the number of its track."""
    return [tracks[number][0] for number in numbers.tolist()]


def _train_val(
    config: DatasetConfig,
    labels: Ints,
    classes: Sequence[str],
    all_train: bool,
    videos: Sequence[str] | None,
) -> tuple[Ints, Ints]:
    """Split rows of the training array into training and validation (none if `all_train`).

    Images of `videos` are held out by whole videos: frames of one are nearly the same image.
    """
    if all_train:
        return np.arange(len(labels)), np.arange(0)
    if videos is not None:
        return _by_video(config, labels, videos)
    train, val = split(labels, config.val_fraction, config.split_seed)
    if not len(val):
        raise DataError(
            f"dataset.val_fraction is {config.val_fraction}; of {len(labels)} training images that "
            "is less than one: raise it, or add a validation set"
        )
    lost = set(np.unique(labels)) - set(np.unique(labels[train]))
    fail(
        [classes[label] for label in sorted(lost)],
        f"classes without a training image at dataset.val_fraction {config.val_fraction}; lower it",
    )
    return train, val


def _by_video(config: DatasetConfig, labels: Ints, videos: Sequence[str]) -> tuple[Ints, Ints]:
    """Hold out whole videos; each class keeps at least one video for the training."""
    counts: dict[str, Counter[int]] = {}
    for video, label in zip(videos, labels.tolist(), strict=True):
        counts.setdefault(video, Counter())[label] += 1
    drawn = split_groups(counts, config.val_fraction, config.split_seed)
    if not drawn:
        raise DataError(
            f"no video of the {len(counts):,} in the training images can be held out for validation"
            " without leaving a class without any; add videos, or a validation set"
        )
    held = np.array([video in drawn for video in videos])
    return np.flatnonzero(~held), np.flatnonzero(held)
