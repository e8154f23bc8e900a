"""What a reader of labelled images is: the sets, labels and images of a data set, undecoded."""

import tarfile
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
"""Faults that a message lists before it only counts them."""
_CIFAR_EXPECTED = (
    "cifar-{0}-python.tar.gz (from https://www.cs.toronto.edu/~kriz/cifar.html), its unpacked "
    "folder, or Parquet files train*.parquet and test*.parquet (val*.parquet if there is one), "
    "with columns image and label"
)
EXPECTED = {
    "digits": "no path: scikit-learn brings them along",
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
"""A line on what cannot be used, and how many images that is."""


class UnreadableError(DataError):
    """A file that cannot be read, whole or in part."""


def fail(faults: Sequence[str], what: str, count: int = 0, remedy: str = "") -> None:
    """Raise one DataError for all `faults`, the first few listed, if there are any.

    Args:
        faults: a line for each.
        what: the heading.
        count: how many there are, where a line stands for several.
        remedy: the last line.
    """
    if faults:
        rest = [f"... and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
        lines = [f"{what} ({count or len(faults):,}):", *faults[:LISTED], *rest]
        raise DataError("\n  ".join(lines) + (f"\n{remedy}" if remedy else ""))


def split(labels: Ints, fraction: float, *key: int | str) -> tuple[Ints, Ints]:
    """Draw `fraction` of the samples, the same share of every class, as a function of `key`.

    The whole draw has round(fraction * N) samples; a class's share is rounded by largest remainder
    (as in scikit-learn's StratifiedShuffleSplit), ties going to the lower label.

    Args:
        labels: (N,) int64, at least 0.
        fraction: between 0 and 1.

    Returns:
        Rows left and rows drawn, (N - d,) and (d,) int64, each ascending.
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
    """What a reader finds out without decoding a pixel."""

    classes: tuple[str, ...]
    parts: dict[str, list[tuple[str, Ints]]]
    """By set, the labels of each file (its name for messages) in the order of its images."""
    notes: tuple[str, ...] = ()
    """What a person should know: files that are left aside."""
    bad: tuple[Bad, ...] = ()
    """Files that cannot be read."""


class Reader(Protocol):
    """A data set on disk. Sets are named as in `SPLITS`; "train" is always there."""

    @property
    def threads(self) -> int:
        """Threads that decode: 1 where images are so small that Python's lock makes more slower."""

    def files(self) -> Iterable[Path]:
        """What is read, in order: the cache's key."""

    def survey(self) -> Survey:
        """Read labels, and check all but their range and the pixels."""

    def images(self, name: str) -> Iterator[tuple[str, Encoded | DataError]]:
        """The images of a set, with where each lies, in the order of the labels.

        A DataError stands for one that cannot be had, and says why.
        """


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what reading a file raises into a DataError with its name."""
    try:
        yield
    except (pa.ArrowException, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UnreadableError(f"{path} cannot be read: {error}") from error
