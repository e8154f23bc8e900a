"""Readers of data sets: digits, CIFAR's archives, Parquet, folders of images.

A reader knows the files of a data set, its classes and labels, and yields its images, which it does
not decode. Rows count from 0, in messages too.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vit.config import DatasetConfig
from vit.data.cifar import CIFAR, find_cifar
from vit.data.decode import DataError, Encoded, Pixels
from vit.data.folder import find_folder
from vit.data.parquet import find_parquet
from vit.data.reader import EXPECTED, Ints, Reader, Survey, fail, split
from vit.data.walk import shown


def find(config: DatasetConfig, paths: Sequence[Path], *, training: bool = True) -> Reader:
    """Find the reader for the data set at `paths`.

    Args:
        config: which data set.
        paths: local files or folders.
        training: whether a classifier is trained on it, so that no class may lack images.

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
        if len(paths) > 1 or not paths[0].is_dir():
            given = ", ".join(map(shown, paths))
            raise DataError(f"dataset imagefolder: got {given}; expected {EXPECTED[name]}")
        return find_folder(paths[0], training)
    if name == "parquet":
        return find_parquet(name, paths, None, training)
    classes = tuple(CIFAR[name].classes.split())
    return find_cifar(name, paths) or find_parquet(name, paths, classes, training)


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
