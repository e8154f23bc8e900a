"""An image with the masks that a segmenter learns from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from masking.images.arrays import Bools, Pixels
from masking.images.decode import ImageError, objects_of, shown

MOST = 4 << 30
"""Largest number of bytes that the masks of one image may take."""


class NothingToLearnError(ImageError):
    """A sound pair in which no object has a size that is wanted."""


@dataclass(frozen=True)
class Pair:
    """An image and the masks of its objects."""

    image: Pixels
    """(H, W, 3) uint8 RGB."""
    masks: Bools
    """(K, H, W), at least one, none of them empty; they may overlap."""
    ignore: Bools
    """(H, W): pixels whose object is not known."""
    name: str
    """File and row, for messages."""
    regions: bool
    """Whether the masks are parts of the picture (sky, road), not objects."""
    turned: bool = False
    """Whether the image has an EXIF orientation that turned or mirrored it."""


def check_room(objects: int, shape: Sequence[int]) -> None:
    """Raise ImageError if the masks of so many objects, each of shape (H, W), take too much memory.

    A label map of few kilobytes may have 65,535 objects.
    """
    if objects * math.prod(shape) > MOST:
        raise ImageError(
            f"{objects:,} objects of {shown(shape)} pixels take"
            f" {objects * math.prod(shape) / (1 << 30):,.0f} GB; at most {MOST >> 30} GB are taken"
            " for one image: shrink it, or mark fewer objects"
        )


def masks_of(labels: NDArray[Any]) -> Bools:
    """Return a mask (H, W) for each number above 0 in labels; ImageError if they are too many."""
    check_room(int(np.count_nonzero(np.bincount(labels.ravel())[1:])), labels.shape)
    return objects_of(labels)


def vanished() -> NothingToLearnError:
    """Return the error of an image whose objects have no pixel."""
    return NothingToLearnError(
        "its objects have no pixels left at this size: they are smaller than a pixel, or outside"
        " the image; pairs.longest sets the size of images"
    )


class Entry(Protocol):
    """A pair on disk."""

    @property
    def name(self) -> str:
        """File and row, for messages."""

    def load(self, longest: int) -> Pair:
        """Decode the pair with all its masks, whatever their size.

        Args:
            longest: as `PairsConfig.longest`.

        Raises:
            ImageError: The image or its masks cannot be used; the message leaves out the name.
        """


@dataclass
class Survey:
    """Pairs that were found so far, and what is wrong with others."""

    entries: list[Entry] = field(default_factory=list)
    """The pairs."""
    faults: list[str] = field(default_factory=list)
    """Lines about pairs that cannot be used."""
    notes: list[str] = field(default_factory=list)
    """Lines about what was left out."""
