"""An image with the masks that a segmenter learns from."""

from dataclasses import dataclass, field
from typing import Protocol

from masking.images.arrays import Bools, Pixels
from masking.images.decode import ImageError


class NothingToLearnError(ImageError):
    """A sound pair, but no object in it is of a size that is wanted."""


@dataclass(frozen=True)
class Pair:
    """An image and the masks of its objects."""

    image: Pixels
    """(H, W, 3) uint8 RGB."""
    masks: Bools
    """(K, H, W), at least one, none of them empty; they may overlap."""
    ignore: Bools
    """(H, W): where nobody says what is there."""
    name: str
    """Where it lies, for messages: file and row."""
    regions: bool
    """Whether the masks are parts of the picture (sky, road), not objects."""


class Entry(Protocol):
    """One pair on disk."""

    @property
    def name(self) -> str:
        """File and row."""

    def load(self, longest: int) -> Pair:
        """Decode it; all masks, whatever their size. Raises ImageError, without the name."""


@dataclass
class Found:
    """What a survey has gathered so far."""

    entries: list[Entry] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
