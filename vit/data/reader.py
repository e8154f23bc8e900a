"""The interface of readers of labelled images: sets, labels and images, which are not decoded."""

import tarfile
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit import rng
from vit.data.decode import DataError as DataError
from vit.data.decode import Encoded

SPLITS = ("train", "val", "test")
LISTED = 5
"""Number of faults that a message lists; further ones are counted."""
_CIFAR_EXPECTED = (
    "cifar-{0}-python.tar.gz (from https://www.cs.toronto.edu/~kriz/cifar.html), its unpacked "
    "folder, or Parquet files train*.parquet and test*.parquet (val*.parquet if there is one), "
    "with columns image and label"
)
EXPECTED = {
    "digits": "no path: scikit-learn contains them",
    "cifar10": _CIFAR_EXPECTED.format(10),
    "cifar100": _CIFAR_EXPECTED.format(100),
    "imagefolder": "one folder with train/ (and val/, test/ if there are any), each with a folder "
    "of images for every class; or one folder of class folders",
    "parquet": "Parquet files train*.parquet (and val*.parquet, test*.parquet if there are any), "
    "named or in folders, with columns image (bytes of image files) and label (integers from 0, "
    "or names)",
}

Ints = NDArray[np.int64]
Bad = tuple[str, int]
"""A line on what cannot be used, and how many images it has."""


class UnreadableError(DataError):
    """A file that cannot be read, as a whole or in part."""


def fail(faults: Sequence[str], what: str, count: int = 0, remedy: str = "") -> None:
    """Raise one DataError for all `faults` if there are any; it lists the first few.

    Args:
        faults: a line for each.
        what: heading of the message.
        count: how many faults there are, where a line stands for several.
        remedy: last line of the message.
    """
    if faults:
        lines = [f"{what} ({count or len(faults):,}):", *some(faults)]
        raise DataError("\n  ".join(lines) + (f"\n{remedy}" if remedy else ""))


def some(lines: Sequence[str], most: int = LISTED) -> list[str]:
    """Return the first `most` lines, and how many more there are."""
    more = len(lines) - most
    return [*lines[:most], *([f"... and {more:,} more"] if more > 0 else [])]


def normal(name: str) -> str:
    """Return the name of a class with each accent in one character with its letter.

    macOS writes names of files otherwise; both look the same.
    """
    return unicodedata.normalize("NFC", name)


def split(labels: Ints, fraction: float, *key: int | str) -> tuple[Ints, Ints]:
    """Draw `fraction` of the samples, the same share of every class, as a function of `key`.

    round(fraction * N) samples are drawn; a class's share is rounded by largest remainder (as in
    scikit-learn's StratifiedShuffleSplit), and ties go to the lower label.

    Args:
        labels: (N,) int64, at least 0.
        fraction: share to draw, between 0 and 1.
        key: what the draw depends on, such as a seed.

    Returns:
        Rows not drawn and rows drawn, (N - d,) and (d,) int64, each ascending.
    """
    counts, total = np.bincount(labels), round(fraction * len(labels))
    take, rest = np.divmod(counts * total, len(labels))
    take[np.argsort(-rest, kind="stable")[: total - take.sum()]] += 1
    shuffled = rng.permutation(len(labels), "split", *key).numpy()
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    within = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    drawn = within < np.repeat(take, counts)
    return np.sort(by_class[~drawn]), np.sort(by_class[drawn])


@dataclass(frozen=True)
class Survey:
    """What a reader knows of a data set before any pixel is decoded."""

    classes: tuple[str, ...]
    """Names of the classes, by label."""
    parts: dict[str, list[tuple[str, Ints]]]
    """By set, the files in order: the name for messages, and the labels of its images, (n,)."""
    notes: tuple[str, ...] = ()
    """Lines for a person, such as files that are not used."""
    bad: tuple[Bad, ...] = ()
    """Files that cannot be read, with the number of their images."""


class Reader(Protocol):
    """A data set on disk. Sets are named as in `SPLITS`; "train" is always there."""

    @property
    def threads(self) -> int:
        """Number of threads that decode: 1 for small images, for which more are slower."""

    def files(self) -> Iterable[Path]:
        """Files that are read, in order; the key of the cache depends on them."""

    def survey(self) -> Survey:
        """Read the labels and check everything but their range and the pixels."""

    def images(self, name: str) -> Iterator[tuple[str, Encoded | DataError]]:
        """Yield the place of each image of a set, and the image, in the order of the labels.

        A DataError stands for an image that cannot be read, and says why.
        """


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into a DataError that names it."""
    try:
        yield
    except (pa.ArrowException, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UnreadableError(f"{path} cannot be read: {error}") from error
