"""What is read from a file of another tool: items, each of one object on one frame.

An item names its video and its frame as the file does. Which video and which frame that is, is
known only with the videos.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from masking.images.arrays import Bools
from masking.manifest.shapes import polygon_text, text_of_mask

Cells = Mapping[str, Any]
"""Values of columns of a manifest."""


@dataclass(frozen=True)
class Item:
    """What a file says of an object on a frame."""

    place: str
    """Where it is in the file, for messages."""
    video: str
    """The video, as the file names it; empty: the file names none."""
    track: str
    """Which object of the video it is: items of the same object have the same text."""
    name: str
    """Name of the object's class; may be empty."""
    cells: Cells
    """Columns of the manifest that say what is there: a point, a box, a shape or a role."""
    frame: int | None = None
    """Index of the frame, from 0; None: `frame_name` names it."""
    frame_name: str = ""
    """Name of the frame's file, without folders."""
    size: tuple[int, int] | None = None
    """(H, W) of the frame by the file; None: it does not say."""
    starts: bool = False
    """Whether the object is not there before its first item, as in tools that have tracks."""
    cells_of: Callable[[tuple[int, int]], Cells] | None = None
    """Returns the cells for a frame of (H, W) pixels, where they depend on it; None: they do not,
    and are `cells`."""

    def row(self, size: tuple[int, int]) -> dict[str, Any]:
        """Return the columns for a frame that has (H, W) pixels."""
        if self.cells_of is not None:
            return dict(self.cells_of(size))
        scaled = "x" in self.cells or "polygon" in self.cells
        if self.size is None or self.size == size or not scaled or "coords" in self.cells:
            return dict(self.cells)
        return {**self.cells, "ref_width": self.size[1], "ref_height": self.size[0]}


@dataclass
class Found:
    """What was read from a file or a folder."""

    items: list[Item] = field(default_factory=list)
    """The items, in the order of the file."""
    faults: list[str] = field(default_factory=list)
    """What is wrong; each names the place and what was expected."""
    left_out: dict[str, int] = field(default_factory=dict)
    """How much of each kind was left out because a manifest has nothing like it."""

    def fault(self, place: str, what: str, expected: str) -> None:
        """Add a fault."""
        text = f"{place}: {what}; expected {expected}"
        self.faults.append("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))

    def leave_out(self, kind: str) -> None:
        """Count something that is left out."""
        self.left_out[kind] = self.left_out.get(kind, 0) + 1


class ImportsError(ValueError):
    """A file is not of a kind that is read; the message says what it is and what was expected."""


def box_cells(left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    """Return the columns of a box by its edges."""
    return {"x": left, "y": top, "prompt_type": "box", "x2": right, "y2": bottom}


def mask_cells(mask: Bools) -> dict[str, Any]:
    """Return the columns of a mask (H, W)."""
    return {"prompt_type": "mask", "mask": text_of_mask(mask)}


def polygon_cells(points: list[tuple[float, float]]) -> dict[str, Any]:
    """Return the columns of a polygon by its corners."""
    return {"prompt_type": "polygon", "polygon": polygon_text(points)}
