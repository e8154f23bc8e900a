"""Masks that obey a person's clicks: what a segmenter does not do is cut out or filled in.

A click says that a pixel belongs to the object, or does not. A segmenter may ignore it. Then the
part of the mask that was clicked is changed: by what other outputs of the segmenter have there, or
else by what resembles the click, and at least in a disc. Where clicks of both labels are near each
other, each pixel follows the nearest one.

Maps are (H, W) logits; places of clicks are (row, column) of the map. Shapes: P clicks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from masking.images.arrays import Bools, Points

Map = NDArray[np.float32]

DISC = 1 / 120
"""Radius of the smallest change round a click, as a share of the frame's longer side."""
FORCED = 8.0
"""Logit that a pixel gets which is filled in; negated, one that is cut out."""


@dataclass(frozen=True)
class Clicks:
    """Clicks on one object in a map."""

    places: NDArray[np.int64]
    """(P, 2) row and column."""
    labels: NDArray[np.int64]
    """(P,) 1 on the object, 0 beside it."""

    @classmethod
    def at(
        cls,
        points: Points,
        labels: NDArray[np.int64],
        size: tuple[int, int],
        scale: tuple[float, float] = (1.0, 1.0),
    ) -> "Clicks":
        """Take points (P, 2) as (x, y) in pixels of a frame.

        Args:
            points: the points; a pixel reaches from its number to the next.
            labels: (P,) 1 on the object, 0 beside it.
            size: (H, W) of the map.
            scale: cells of the map per pixel of the frame, down and across.
        """
        centres = np.floor(points[:, ::-1].astype(np.float64)) + 0.5
        cells = np.floor(centres * np.array(scale))
        places = np.clip(cells, 0, np.array(size) - 1).astype(np.int64).reshape(-1, 2)
        return cls(places, np.asarray(labels, np.int64))

    def __len__(self) -> int:
        """Return the number of clicks."""
        return len(self.labels)

    def disobeyed(self, mask: Bools) -> Bools:
        """Return which (P,) clicks a mask (H, W) does not obey."""
        wrong: Bools = mask[self.places[:, 0], self.places[:, 1]] != (self.labels == 1)
        return wrong

    def territory(self, number: int, size: tuple[int, int]) -> Bools:
        """Return the pixels (H, W) that are nearer to a click than to any of the other label; of
        the pixel itself the later click decides."""
        place, others = self.places[number], self.places[self.labels != self.labels[number]]
        y, x = np.ogrid[: size[0], : size[1]]
        mine = _squared(y, x, place)
        free = np.ones(size, dtype=np.bool_)
        for other in others:
            free &= mine < _squared(y, x, other)
        free[tuple(place)] = True
        return free


def _squared(y: NDArray[np.int64], x: NDArray[np.int64], place: NDArray[np.int64]) -> Map:
    squared: Map = (y - place[0]) ** 2 + (x - place[1]) ** 2
    return squared


def disc_radius(size: tuple[int, int]) -> float:
    """Return the radius in pixels of the smallest change round a click in a frame (H, W)."""
    return max(2.0, DISC * max(size))


def obey(
    logits: Map, clicks: Clicks, radius: float, candidates: Sequence[Iterable[Bools]] = ()
) -> Map:
    """Return logits whose mask obeys all clicks; those given are returned if it does already.

    A click is obeyed in a region, not in a pinhole: one that is smaller than the disc grows to it.

    Args:
        logits: (H, W).
        clicks: the clicks; of two in the same pixel the later one is obeyed.
        radius: of the disc, in pixels of the map.
        candidates: for each click, regions (H, W) to change with it, the best one first. The first
            one that holds the click and is larger than the disc is taken, together with the disc.
    """
    found = logits
    for number in range(len(clicks)):
        wrong = clicks.disobeyed(found > 0)[number]
        if not wrong and not _is_pinhole(found > 0, clicks.places[number], radius):
            continue
        regions = candidates[number] if len(candidates) and wrong else ()
        change = _region(found.shape, clicks, number, radius, regions)
        if found is logits:
            found = logits.copy()
        value = FORCED if clicks.labels[number] == 1 else -FORCED
        found[change] = np.where((found[change] > 0) == (value > 0), found[change], value)
    return found


def _region(
    size: tuple[int, ...],
    clicks: Clicks,
    number: int,
    radius: float,
    candidates: Iterable[Bools],
) -> Bools:
    """Return the pixels (H, W) that change with a click."""
    (h, w), place = size, clicks.places[number]
    y, x = np.ogrid[:h, :w]
    change: Bools = _squared(y, x, place) <= radius**2
    least = np.count_nonzero(change)
    free = clicks.territory(number, (h, w))
    for region in candidates:
        part = component(region & free, place)
        if np.count_nonzero(part) > least:
            change = change | part
            break
    return change & free


def alike(keys: Tensor, mask: Tensor, clicks: Clicks, number: int) -> Bools:
    """Return the cells (h, w) that may change with a click because they resemble it more than what
    it is not: clicks of the other label, or else the mean of the mask that it takes from (of the
    rest, for a click on the object).

    Args:
        keys: (rows, columns, C) unit vectors that cover the mask.
        mask: (h, w) bool.
        clicks: clicks on the object, as cells of the mask.
        number: of the click.
    """
    grid, size = (keys.shape[0], keys.shape[1]), (mask.shape[0], mask.shape[1])
    side = mask if clicks.labels[number] == 0 else ~mask
    cells = torch.from_numpy(clicks.places) * torch.tensor(grid) // torch.tensor(size)
    at = keys[cells[:, 0], cells[:, 1]]
    others = at[torch.from_numpy(clicks.labels != clicks.labels[number])]
    if not len(others):
        share = F.adaptive_avg_pool2d(side.float()[None], grid)[0]
        others = F.normalize((keys * share[..., None]).sum(dim=(0, 1)), dim=0)[None]
    nearer = keys @ at[number] - (keys @ others.T).amax(dim=2)
    enlarged = F.interpolate(nearer[None, None], size, mode="bilinear")[0, 0]
    y, x = np.ogrid[: size[0], : size[1]]
    # No farther than the object is large, or a tenth of the frame.
    reach = max(float(mask.sum()) / np.pi, (0.1 * max(size)) ** 2)
    near = torch.from_numpy(_squared(y, x, clicks.places[number]) <= reach)
    found: Bools = (side & (enlarged > 0) & near).numpy()
    return found


def component(region: Bools, place: NDArray[np.int64]) -> Bools:
    """Return the connected part (H, W) of a region that holds a place; empty if it holds none."""
    if not region[tuple(place)]:
        return np.zeros_like(region)
    _, parts = cv2.connectedComponents(region.view(np.uint8), connectivity=4)
    part: Bools = parts == parts[tuple(place)]
    return part


def _is_pinhole(mask: Bools, place: NDArray[np.int64], radius: float) -> bool:
    """Return whether the part of the mask, or of the rest, that holds a place is smaller than a
    disc. It is looked for near the place: a larger part reaches out of there."""
    reach = int(2 * radius) + 2
    (top, left), (y, x) = np.maximum(place - reach, 0), place
    near = mask[top : y + reach + 1, left : x + reach + 1]
    at = place - [top, left]
    part = component(near == near[tuple(at)], at)
    return bool(np.count_nonzero(part) < np.pi * radius**2 / 2)


def obey_in_frame(
    logits: Map, points: Points, labels: NDArray[np.int64], scale: tuple[float, float] = (1.0, 1.0)
) -> Map:
    """Return logits (H, W) of a frame whose mask obeys all clicks.

    Enlarged logits of a segmenter may miss clicks by less than one of their cells.

    Args:
        logits: at the size of the frame.
        points: (P, 2) as (x, y); of two in the same pixel the later one is obeyed.
        labels: (P,) 1 on the object, 0 beside it.
        scale: pixels of the frame per pixel that the points are in, down and across.
    """
    size = (logits.shape[0], logits.shape[1])
    return obey(logits, Clicks.at(points, labels, size, scale), disc_radius(size))
