"""Readers of data sets: digits, CIFAR's archives, Parquet, folders of images.

A reader knows the files of a data set, its classes and labels, and yields its images, which it does
not decode. Rows count from 0, in messages too.
"""

import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vit.config import DatasetConfig
from vit.data.cifar import CIFAR, find_cifar
from vit.data.decode import DataError, Encoded, Pixels
from vit.data.parquet import find_parquet
from vit.data.reader import EXPECTED, SPLITS, Ints, Reader, Survey, fail, split

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File names that count as images, torchvision's IMG_EXTENSIONS."""
_VAL = ("valid", "validation")
"""Other names of the folder `val`."""


def find(config: DatasetConfig, paths: Sequence[Path]) -> Reader:
    """Find the reader for the data set at `paths`.

    Raises:
        DataError: paths are missing, or their contents are not those of the data set.
    """
    name = config.name
    if bool(paths) == (name == "digits"):
        given = ", ".join(map(str, paths)) or "no path"
        raise DataError(f"dataset {name}: got {given}; expected {EXPECTED[name]}")
    fail(
        [str(path) for path in paths if not path.exists()],
        f"paths do not exist; dataset {name} expects {EXPECTED[name]}; missing",
    )
    paths = [path.resolve() for path in paths]
    if name == "digits":
        return _Digits()
    if name == "imagefolder":
        return _find_folder(paths)
    if name == "parquet":
        return find_parquet(name, paths, None)
    classes = tuple(CIFAR[name].classes.split())
    return find_cifar(name, paths) or find_parquet(name, paths, classes)


@functools.cache
def _digits() -> tuple[Pixels, Ints, dict[str, Ints]]:
    """Load pixels (1797, 8, 8), labels (1797,) and the rows of each set; test has a fifth."""
    from sklearn.datasets import load_digits  # takes a second to import

    data = load_digits()
    labels = data.target.astype(np.int64)
    train, test = split(labels, 0.2, "digits")
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    return pixels, labels, {"train": train, "test": test}


class _Digits:
    """scikit-learn's handwritten digits, 8x8 in 17 levels of grey, without an official test set.

    They are the 1,797 digits of the test part of UCI's "Optical recognition of handwritten digits".
    """

    threads = 1

    def files(self) -> list[Path]:
        return []

    def survey(self) -> Survey:
        _, labels, rows = _digits()
        parts = {name: [("digits", labels[part])] for name, part in rows.items()}
        return Survey(tuple("0123456789"), parts)

    def images(self, name: str) -> Iterator[tuple[str, Encoded]]:
        pixels, _, rows = _digits()
        return ((f"digit {row}", pixels[row]) for row in rows[name])


def _find_folder(paths: Sequence[Path]) -> "_Folder":
    """List an image folder; its classes are the sorted names of the folders in train."""
    root = paths[0]
    if len(paths) > 1 or not root.is_dir():
        given = ", ".join(map(str, paths))
        raise DataError(f"dataset imagefolder: got {given}; expected {EXPECTED['imagefolder']}")
    roots, unused = _roots(root)
    classes = _subfolders(roots.get("train", root)) if "train" in roots else []
    if not classes:
        raise DataError(
            f"{roots.get('train', root / 'train')}: no class folders; "
            f"dataset imagefolder expects {EXPECTED['imagefolder']}"
        )
    listing: dict[str, dict[str, list[str]]] = {}
    aside = {}
    for name, folder in roots.items():
        found = {label: _image_files(folder / label) for label in _subfolders(folder)}
        listing[name] = {label: images for label, (images, _) in found.items()}
        loose = sum(path.is_file() and path.name[0] != "." for path in folder.iterdir())
        aside[folder] = loose + sum(others for _, others in found.values())
    faults = [
        f"{roots[name] / label}: "
        + ("no image in it" if label in classes else "not a class of train")
        for name, by_class in listing.items()
        for label, files in by_class.items()
        if not files or label not in classes
    ]
    faults += [
        f"{str(roots['train'] / label)!a}: a name that is not UTF-8; rename it"
        for label in classes
        if not _is_text(label)
    ]
    fail(faults, "class folders that cannot be used")
    notes = [
        f"{folder}: {others:,} files that are not images in a class folder are not used"
        for folder, others in aside.items()
        if others
    ]
    notes += [f"{root / name}: neither train, val nor test; it is not used" for name in unused]
    return _Folder(tuple(classes), roots, listing, tuple(notes))


def _roots(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Find the folders of the sets (`root` is train if there are none), and names of others."""
    names = {split: split for split in SPLITS if (root / split).is_dir()}
    if not names:
        return {"train": root}, []
    for name in _VAL:
        if "val" not in names and (root / name).is_dir():
            names["val"] = name
    unused = [name for name in _subfolders(root) if name not in names.values()]
    return {split: root / names[split] for split in SPLITS if split in names}, unused


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _image_files(folder: Path) -> tuple[list[str], int]:
    """List images in `folder` and below, in torchvision's order, and count other files.

    Hidden files are neither: ._cat.jpg is no image, and .ipynb_checkpoints holds copies.
    """
    files = [
        str(Path(root, name))
        for root, _, names in sorted(_visible(folder))
        for name in sorted(names)
        if not name.startswith(".")
    ]
    images = [file for file in files if file.lower().endswith(EXTENSIONS)]
    return images, len(files) - len(images)


def _visible(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield root, folders, names


@dataclass(frozen=True)
class _Folder:
    """Images in a folder for each class, as in torchvision's ImageFolder."""

    classes: tuple[str, ...]
    roots: dict[str, Path]
    listing: dict[str, dict[str, list[str]]]
    """Image files by set and class."""
    notes: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        return os.cpu_count() or 1  # Pillow frees Python's lock; 1.7 times faster on two cores

    def files(self) -> Iterable[Path]:
        return (path for name in self.listing for path in self._paths(name))

    def survey(self) -> Survey:
        label = {name: index for index, name in enumerate(self.classes)}
        parts = {
            name: [
                (str(self.roots[name] / key), np.full(len(files), label[key]))
                for key, files in by_class.items()
            ]
            for name, by_class in self.listing.items()
        }
        return Survey(self.classes, parts, self.notes)

    def images(self, name: str) -> Iterator[tuple[str, Encoded]]:
        return ((str(path), path) for path in self._paths(name))

    def _paths(self, name: str) -> Iterator[Path]:
        return map(Path, itertools.chain.from_iterable(self.listing[name].values()))
