"""The interface of readers of labelled images: sets, labels and images, which are not decoded."""

import json
import tarfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit import rng
from vit.data.decode import DataError as DataError
from vit.data.decode import Encoded

SPLITS = ("train", "val", "test")
CROPS = "patchray_crops"
"""Where a data set of crops from videos says how they were cut out: this key of a Parquet file's
metadata, or the JSON file of this name in an image folder. What it says is carried to the weights,
and means nothing here."""
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

T = TypeVar("T")
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


def split_groups(
    groups: Mapping[str, Mapping[T, int]], fraction: float, *key: int | str
) -> set[str]:
    """Draw whole groups, such as videos, that have about `fraction` of the samples of each class.

    Of each class that is in several groups, at least one is drawn and one is not. Classes that are
    in the fewest groups come first, as in iterative stratification (Sechidis et al. 2011).

    Args:
        groups: number of samples of each class, by the name of the group.
        fraction: share to draw, 0 to 1; 0 draws nothing.
        key: what the draw depends on, such as a seed. The order in which groups are drawn depends
            on their names only, so that others change little when one is added.

    Returns:
        The names of the groups that are drawn.
    """
    order = sorted(groups, key=lambda name: rng.fold("split", *key, name))
    having: dict[T, list[str]] = {}
    for name in order:
        for each, count in groups[name].items():
            if count:
                having.setdefault(each, []).append(name)
    left = {each: len(names) for each, names in having.items()}
    drawn, counts = set[str](), Counter[T]()
    for each, names in sorted(having.items(), key=lambda item: (len(item[1]), str(item[0]))):
        total = sum(groups[name][each] for name in names)
        while (missing := fraction * total - counts[each]) > 0:
            free = [
                name
                for name in names
                if name not in drawn and all(left[c] > 1 for c, n in groups[name].items() if n)
            ]
            fitting = (name for name in free if groups[name][each] <= missing)
            best = next(fitting, None) or min(free, key=lambda n: groups[n][each], default=None)
            if best is None or (counts[each] and groups[best][each] > 2 * missing):
                break
            drawn.add(best)
            for other, count in groups[best].items():
                counts[other] += count
                left[other] -= count > 0
    return drawn


@dataclass(frozen=True)
class Tracks:
    """Which images of a data set show the same object of the same video."""

    names: tuple[tuple[str, str], ...]
    """Id of the video, and of the object in it, of each track."""
    numbers: dict[str, Ints]
    """By set, the number of each image's track, (n,) in the order of the images."""


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
    tracks: Tracks | None = None
    """Tracks, if the data set is made of videos and says of which."""
    crops: dict[str, Any] | None = None
    """How images were cut out of videos, if the data set says it (`CROPS`)."""


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


def crops_of(content: bytes | None) -> dict[str, Any] | None:
    """Return the JSON object that says how crops were cut out; None if there is none."""
    try:
        found = None if content is None else json.loads(content)
    except (ValueError, RecursionError):  # of another program
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into a DataError that names it."""
    try:
        yield
    except (pa.ArrowException, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UnreadableError(f"{path} cannot be read: {error}") from error
