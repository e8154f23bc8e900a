"""Sets of labelled images from local files, with a validation split.

A data set is decoded once a node if it then fits in `dataset.cache_gb`: every process maps the
same pages into memory. Otherwise it is packed there and decoded ahead of the training
(`vit.data.cache`, `vit.data.feed`). Training and validation set are two lists of rows of one array.

Legend: N images of a decoded array, n of them in a set, S the side of a square image in pixels.
Images are RGB, channels first, origin top left. Rows count from 0, in messages too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vit.config import DatasetConfig
from vit.data import cache as caches
from vit.data.decode import DataError, Pack, Pixels
from vit.data.formats import find
from vit.data.reader import LISTED, Bad, Ints, fail, normal, some, split


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
    train, val = _train_val(config, labels["train"], survey.classes, "val" in labels)
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
        sets = _open_sets(folder, about["splits"], size)
    except (OSError, ValueError) as error:
        raise caches.damaged(folder, error) from error
    good = sum(map(len, sets.values()))
    left_out = _left_out(config, about["bad"], good, f", all in {folder / 'dataset.json'}")
    empty = [name for name, images in sets.items() if not len(images.rows)]
    fail(empty, "sets without a usable image")
    classes = tuple(about["classes"])
    if not training and "train" not in sets:
        hold_out = False
        sets["train"] = replace(next(iter(sets.values())), rows=np.arange(0))
    whole = sets["train"]
    labels = whole.labels[whole.rows]
    untrained = _untrained(classes, labels) if training else []
    train, val = _train_val(config, labels, classes, "val" in sets or not hold_out)
    return Dataset(
        train=replace(whole, rows=whole.rows[train]),
        val=sets.get("val", replace(whole, rows=whole.rows[val])),
        test=sets.get("test"),
        classes=classes,
        notes=(*about["notes"], *untrained, *left_out),
    )


def _open_sets(folder: Path, names: Sequence[str], size: int) -> dict[str, Images]:
    """Open each set with all of its images; packed sets share one array of labels."""
    labels = {name: np.load(folder / f"{name}.labels.npy") for name in names}
    if not (folder / "index.npy").is_file():
        pixels = {name: np.load(folder / f"{name}.images.npy", mmap_mode="c") for name in names}
        return {
            name: Images(pixels[name], labels[name], np.arange(len(labels[name]))) for name in names
        }
    pack, joined, sets = Pack(folder, size), np.concatenate(list(labels.values())), {}
    first = 0
    for name, values in labels.items():
        sets[name] = Images(pack, joined, np.arange(first, first + len(values)))
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


def _train_val(
    config: DatasetConfig, labels: Ints, classes: Sequence[str], all_train: bool
) -> tuple[Ints, Ints]:
    """Split rows of the training array into training and validation (none if `all_train`)."""
    if all_train:
        return np.arange(len(labels)), np.arange(0)
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
