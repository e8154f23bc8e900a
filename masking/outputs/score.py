"""Masks of a video against their truth: J, F and J&F of each object, as DAVIS counts them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from masking.images.arrays import Bools
from masking.images.decode import read_labels
from masking.images.masks import contour_accuracy, region_similarity
from masking.outputs.rows import mask_of

_VOID = 255
"""Of a palette PNG: nobody says what is there."""


@dataclass(frozen=True)
class Truth:
    """What is to be seen on a frame."""

    objects: Mapping[int, Bools]
    """(H, W) by object; one that is not here is not to be seen."""
    void: Bools | None = None
    """(H, W): where it is not known."""


@dataclass
class _Sums:
    j: float = 0.0
    f: float = 0.0
    seen: bool = False


def scored_frames(frames: Collection[int]) -> list[int]:
    """The frames that count: without the first, which is given, and the last, as DAVIS has it.

    Of less than three frames all count.
    """
    ordered = sorted(frames)
    return ordered[1:-1] if len(ordered) > 2 else ordered


def read_truth(content: bytes, name: str, size: tuple[int, int]) -> Truth:
    """An indexed PNG, or a grey one: ids of objects, 0 for none; of 0 and 255 alone, object 1.

    Args:
        content: of the file.
        name: its name in messages.
        size: (H, W) of the masks.

    Raises:
        ImageError: it does not decode, or has another size.
    """
    labels, palette = read_labels(content, name, size)
    numbers = [int(number) for number in np.unique(labels) if number]
    if not palette and numbers in ([_VOID], [1]):
        return Truth({1: labels > 0})
    void = (labels == _VOID) if palette and _VOID in numbers else None
    objects = {n: labels == n for n in numbers if not (palette and n == _VOID)}
    return Truth(objects, void)


def read_mask(content: bytes, name: str, size: tuple[int, int]) -> Bools:
    """A PNG of one object, (H, W): what is at least half as bright as its brightest pixel, so that
    a softened edge does not count; of a palette, any entry but 0. Arguments as of `read_truth`."""
    labels, palette = read_labels(content, name, size)
    mask: Bools = labels > 0 if palette else labels >= max(1, labels.max() / 2)
    return mask


@dataclass
class Scores:
    """J and F of the objects of a video, frame by frame."""

    frames: int = 0
    unasked: set[int] = field(default_factory=set)
    """Objects of the truth that the masks do not know."""
    _sums: dict[int, _Sums] = field(default_factory=dict)

    def add(self, truth: Truth, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a frame; `rows` are those of its masks, without what belongs to other objects."""
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
        """Means over the frames; of objects that the truth shows anywhere."""
        means = {}
        for number, sums in self._sums.items():
            if sums.seen:
                j, f = sums.j / self.frames, sums.f / self.frames
                means[number] = {"j": j, "f": f, "j_and_f": (j + f) / 2}
        return means
