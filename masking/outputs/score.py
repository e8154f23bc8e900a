"""Scores of a video's masks against their truth: J, F and J&F of each object, as in DAVIS."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from masking.images.arrays import Bools
from masking.images.decode import read_labels
from masking.images.masks import contour_accuracy, refuse_soft_edges, region_similarity
from masking.outputs.rows import mask_of

_VOID = 255
"""Index in a palette PNG of pixels whose object is not known."""


@dataclass(frozen=True)
class Truth:
    """True masks of a frame."""

    objects: Mapping[int, Bools]
    """(H, W) bool by object id; an object without one is not visible."""
    void: Bools | None = None
    """(H, W) bool: pixels whose object is not known; None: there are none."""


@dataclass
class _Sums:
    j: float = 0.0
    f: float = 0.0
    seen: bool = False


def scored_frames(frames: Collection[int]) -> list[int]:
    """Return the frames that count: without the first, which is given, and the last, as in DAVIS.

    All count if there are fewer than three.
    """
    ordered = sorted(frames)
    return ordered[1:-1] if len(ordered) > 2 else ordered


def read_truth(content: bytes, name: str, size: tuple[int, int]) -> Truth:
    """Read an indexed or grey PNG of object ids, 0 for none; grey of only 0 and 255 is object 1.

    Args:
        content: content of the file.
        name: name of the file in messages.
        size: (H, W) in pixels of the masks.

    Raises:
        ImageError: the file does not decode, has another size, or has soft edges.
    """
    labels, palette = read_labels(content, name, size)
    numbers = [int(number) for number in np.unique(labels) if number]
    if not palette and numbers in ([_VOID], [1]):
        return Truth({1: labels > 0})
    void = (labels == _VOID) if palette and _VOID in numbers else None
    refuse_soft_edges(labels if void is None else np.where(void, 0, labels), name)
    objects = {n: labels == n for n in numbers if not (palette and n == _VOID)}
    return Truth(objects, void)


def read_mask(content: bytes, name: str, size: tuple[int, int]) -> Bools:
    """Read a PNG of one object as a mask (H, W): pixels at least half as bright as the brightest,
    so that a soft edge does not count; in a palette, any index but 0. Arguments and errors are
    those of `read_truth`."""
    labels, palette = read_labels(content, name, size)
    mask: Bools = labels > 0 if palette else labels >= max(1, labels.max() / 2)
    return mask


@dataclass
class Scores:
    """Sums of J and F of the objects of a video, frame by frame."""

    frames: int = 0
    """Frames so far."""
    unasked: set[int] = field(default_factory=set)
    """Ids of objects in the truth that the masks do not have."""
    _sums: dict[int, _Sums] = field(default_factory=dict)

    def add(self, truth: Truth, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a frame; `rows` are the rows of its masks (`masking.outputs.rows`)."""
        self.frames += 1
        self.unasked |= truth.objects.keys() - {row["object_id"] for row in rows}
        for row in rows:
            sums = self._sums.setdefault(row["object_id"], _Sums())
            found = mask_of(row, owned=True)
            expected = truth.objects.get(row["object_id"])
            sums.seen |= expected is not None
            right = np.zeros_like(found) if expected is None else expected
            if truth.void is not None:
                found, right = found & ~truth.void, right & ~truth.void
            sums.j += region_similarity(right, found)
            sums.f += contour_accuracy(right, found)

    def objects(self) -> dict[int, dict[str, float]]:
        """Return the mean j, f and j_and_f of each object that the truth shows on any frame."""
        means = {}
        for number, sums in self._sums.items():
            if sums.seen:
                j, f = sums.j / self.frames, sums.f / self.frames
                means[number] = {"j": j, "f": f, "j_and_f": (j + f) / 2}
        return means
