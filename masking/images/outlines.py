"""Outlines of masks as polygons, and polygons that hold holes and several parts in one ring.

There are two kinds of readers. Some fill what lies inside a polygon, by the middles of pixels: for
them an outline runs along the edges of pixels (`edge_parts`). Others call `cv2.fillPoly`, which
also fills the pixels that the outline touches: for them it runs through the middles of the pixels
at the edge (`pixel_parts`). Each gives the mask back to the pixel.

Masks are (H, W) bool. A ring is (N, 2) x and y, origin top left, without its first point again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from masking.images.arrays import Bools

Ring = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """A connected part of a mask."""

    outer: Ring
    """The ring around it."""
    holes: tuple[Ring, ...]
    """The rings around its holes."""


def edge_parts(mask: Bools) -> list[Part]:
    """Return the parts of a mask with rings along the edges of pixels, the largest part first.

    Coordinates are whole: a pixel reaches from its number to the next. Pixels that only touch at a
    corner are of different parts.
    """
    rings = _edge_rings(mask)
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    by_part: dict[int, list[Ring]] = {}
    for ring in rings:
        (x, y), (other, _) = ring[0].astype(int), ring[1].astype(int)
        x = min(x, other)  # the first step of a ring is along a row
        inside = (y, x) if y < mask.shape[0] and mask[y, x] else (y - 1, x)
        by_part.setdefault(int(parts[inside]), []).append(ring)
    found = []
    for mine in by_part.values():
        outer, *holes = sorted(mine, key=_area, reverse=True)
        found.append(Part(outer, tuple(holes)))
    return sorted(found, key=lambda part: -_area(part.outer))


def _edge_rings(mask: Bools) -> list[Ring]:
    """Return all rings along the edges of pixels; each begins with a step along a row."""
    padded = np.pad(mask, 1)
    above_left, above_right = padded[:-1, :-1], padded[:-1, 1:]
    below_left, below_right = padded[1:, :-1], padded[1:, 1:]
    crossed = (
        (above_left == below_right) & (above_right == below_left) & (above_left != above_right)
    )
    corner = (above_left ^ above_right ^ below_left ^ below_right) | crossed
    y, x = np.nonzero(corner)
    twice = crossed[y, x]
    y, x = np.repeat(y, 1 + twice), np.repeat(x, 1 + twice)
    # Two rings turn at a crossed corner: one comes from the left, the other goes to the right.
    second = np.zeros(len(y), np.int64)
    second[1:] = (y[1:] == y[:-1]) & (x[1:] == x[:-1])
    falling = above_left[y, x]  # the set pixels are above left and below right
    below = np.where(falling, second, 1 - second)
    along = _partners(np.lexsort((second, x, y)))
    down = _partners(np.lexsort((below, y, x)))
    places = np.stack([x, y], axis=1).astype(np.float64)
    rings, is_done = [], np.zeros(len(y), dtype=np.bool_)
    next_along, next_down = along.tolist(), down.tolist()
    for start in range(len(y)):
        if is_done[start]:
            continue
        ring, at = [], start
        while True:
            ring += [at, next_along[at]]
            at = next_down[next_along[at]]
            if at == start:
                break
        is_done[ring] = True
        rings.append(places[ring])
    return rings


def _partners(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the partner of each item, if the items pair up in an order: first and second, ..."""
    partners = np.empty_like(order)
    partners[order[::2]], partners[order[1::2]] = order[1::2], order[::2]
    return partners


def pixel_parts(mask: Bools) -> list[Part]:
    """Return the parts of a mask with rings through the middles of the pixels at the edge, the
    largest part first.

    Coordinates are numbers of pixels and the half: the middle of pixel 0 is 0.5. Each step of a
    ring leads to a pixel beside or diagonally beside the last one.
    """
    found, order = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [ring[:, 0].astype(np.float64) + 0.5 for ring in found]
    parts = []
    for number, ring in enumerate(rings):
        if order[0, number, 3] < 0:
            holes = [r for r, (*_, above) in zip(rings, order[0], strict=True) if above == number]
            parts.append(Part(ring, tuple(holes)))
    return sorted(parts, key=lambda part: -_area(part.outer))


def one_ring(part: Part) -> Ring:
    """Return a part as one ring: a seam of no width leads to each hole and back.

    The seam runs along the middle of a row of pixels, inside the part.
    """
    ring = part.outer
    for hole in sorted(part.holes, key=lambda hole: float(hole[:, 0].min())):
        hole = _turned(hole, _leftmost(hole))
        x, y = hole[0]
        step = hole[1] - hole[0]
        if step[0] == 0 and abs(step[1]) >= 1 and y == round(y):  # along an edge of pixels
            y += float(np.sign(step[1])) / 2
            hole = np.concatenate([[[x, y]], hole[1:], hole[:1]])
        place, at = _left_of(ring, x, y)
        there = np.array([[at, y]])
        ring = np.concatenate([ring[: place + 1], there, hole, hole[:1], there, ring[place + 1 :]])
    return straightened(ring)


def _leftmost(ring: Ring) -> int:
    """Return the place of a leftmost point from which the ring runs down or up its left side."""
    left = np.flatnonzero(ring[:, 0] == ring[:, 0].min())
    following = ring[(left + 1) % len(ring), 0]
    return int(left[np.argmax(following == ring[left, 0])])


def _left_of(ring: Ring, x: float, y: float) -> tuple[int, float]:
    """Return where a ring is next on the left of a point, in the same row.

    Returns:
        The place of the point of the ring after which that is, and its x.
    """
    ends = np.roll(ring, -1, axis=0)
    low, high = np.minimum(ring[:, 1], ends[:, 1]), np.maximum(ring[:, 1], ends[:, 1])
    share = np.where(
        high > low, (y - ring[:, 1]) / np.where(high > low, ends[:, 1] - ring[:, 1], 1), 0
    )
    at = ring[:, 0] + share * (ends[:, 0] - ring[:, 0])
    usable = (low <= y) & (y <= high) & (at <= x)
    best = int(np.where(usable, at, -np.inf).argmax())
    return best, float(at[best])


def joined(rings: Sequence[Ring]) -> Ring:
    """Return several rings as one: a seam of no width leads from each to the nearest before it.

    Readers that fill what lies inside the polygon see nothing of the seams; `cv2.fillPoly` draws
    lines there.
    """
    ring = rings[0]
    for other in rings[1:]:
        apart = ((ring[:, None] - other) ** 2).sum(axis=2)
        here, there = np.unravel_index(int(apart.argmin()), apart.shape)
        turned = _turned(other, int(there))
        ring = np.concatenate([ring[: here + 1], turned, turned[:1], ring[here:]])
    return ring


def straightened(ring: Ring) -> Ring:
    """Return a ring without the points at which it does not turn."""
    if len(ring) < 4:
        return ring
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    backward = (before * after).sum(axis=1) < 0
    kept = ring[turns | backward]
    return kept if len(kept) >= 3 else ring


def _turned(ring: Ring, first: int) -> Ring:
    """Return a ring that begins with another of its points."""
    return np.roll(ring, -first, axis=0)


def _area(ring: Ring) -> float:
    x, y = ring.T
    return abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2


def filled(rings: Sequence[Ring], size: tuple[int, int]) -> Bools:
    """Return the mask (H, W) of the pixels whose middle lies inside of rings: inside of an odd
    number of them, so that a ring within another one is a hole. What is outside of the frame is
    left out."""
    h, w = size
    starts = np.concatenate(rings)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    low, high = np.minimum(starts[:, 1], ends[:, 1]), np.maximum(starts[:, 1], ends[:, 1])
    first = np.clip(np.ceil(low - 0.5), 0, h).astype(np.int64)
    count = np.clip(np.ceil(high - 0.5), 0, h).astype(np.int64) - first
    side = np.repeat(np.arange(len(starts)), count)
    row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[side]
    step = ends[side] - starts[side]
    x = starts[side, 0] + (row + 0.5 - starts[side, 1]) / step[:, 1] * step[:, 0]
    column = np.clip(np.ceil(x - 0.5), 0, w).astype(np.int64)
    crossed = np.bincount(row * (w + 1) + column, minlength=h * (w + 1)).reshape(h, w + 1)
    inside: Bools = crossed[:, :w].cumsum(axis=1) % 2 == 1
    return inside


def touched(shares: Sequence[float], size: tuple[int, int]) -> Bools:
    """Return the mask (H, W) of a polygon as `cv2.fillPoly` fills it, with the pixels on its edge.

    Args:
        shares: x and y of its corners in turn, as shares of the frame.
        size: (H, W) of the frame.
    """
    corners = (np.array(shares, np.float64).reshape(-1, 2) * size[::-1] + 1e-3).astype(np.int32)
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [corners], 1)
    return mask.view(np.bool_)
