"""The runs of a mask down its columns, as COCO counts them: their code, their area and their box.

Only where a mask changes is looked at one by one. The changes are found by rows, eight pixels at a
time, and then sorted by columns: turning a whole frame to read it by columns takes far longer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masking.images.arrays import Bools

_MANY = 256
"""Pixels of a mask per eight pixels with a change below which it is read by columns instead."""


@dataclass(frozen=True)
class Runs:
    """Runs of ones of a mask."""

    size: tuple[int, int]
    """(H, W) of the mask."""
    edges: NDArray[np.int64]
    """(2 R,) where the R runs begin, and where each ends, in turn: places in the mask read down
    the columns, from the left one. All differ but for the last, if a run ends with the mask."""

    @classmethod
    def of(cls, mask: Bools) -> "Runs":
        """Return the runs of a mask (H, W)."""
        h, w = mask.shape
        edges = None if mask.T.flags.c_contiguous else _edges_by_rows(mask)
        if edges is None:
            flat = mask.T.ravel()
            edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
            if flat.size and flat[0]:
                edges = np.concatenate([[0], edges])
        if len(edges) % 2:
            edges = np.append(edges, h * w)
        return cls((h, w), edges)

    @property
    def area(self) -> int:
        """Number of pixels of the mask."""
        return int((self.edges[1::2] - self.edges[::2]).sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """COCO's box: (x, y, width, height) in pixels; all 0 for an empty mask."""
        if not len(self.edges):
            return 0, 0, 0, 0
        h = self.size[0]
        first, last = self.edges[::2], self.edges[1::2] - 1
        left, right = int(first[0]) // h, int(last[-1]) // h
        if (first // h != last // h).any():  # a run over the foot of one column and the next's head
            return left, 0, right + 1 - left, h
        top, bottom = int((first % h).min()), int((last % h).max())
        return left, top, right + 1 - left, bottom + 1 - top

    @property
    def counts(self) -> bytes:
        """COCO's packed run lengths: `counts` of pycocotools' `encode`.

        They are the lengths of runs of 0, 1, 0, ...; from the fourth on as differences to the
        length two before; five bits a character, the lowest first (`maskApi.c`, rleToString).
        """
        end = self.size[0] * self.size[1]
        ends_with_ones = len(self.edges) > 0 and self.edges[-1] == end
        places = self.edges if ends_with_ones else np.append(self.edges, end)
        values = np.diff(places, prepend=0)
        values[3:] -= values[1:-2].copy()
        return _pack(values)


def _edges_by_rows(mask: Bools) -> NDArray[np.int64] | None:
    """Return the places, by columns, at which a mask (H, W) differs from the pixel before, which of
    the first one is 0; None: they are so many that it is faster to read the mask by columns."""
    h, w = mask.shape
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return rows
    top, bottom = max(0, int(rows[0]) - 1), min(h, int(rows[-1]) + 2)
    flat = np.ascontiguousarray(mask[top:bottom]).reshape(-1).view(np.uint8)
    differ = flat[w:] ^ flat[:-w] if len(flat) > w else flat[:0]
    whole = len(differ) // 8 * 8
    words = np.flatnonzero(differ[:whole].view(np.uint64))
    if len(words) > mask.size // _MANY:
        return None
    word, byte = np.nonzero(differ[:whole].reshape(-1, 8)[words])
    rest = whole + np.flatnonzero(differ[whole:])
    y, x = np.divmod(np.concatenate([8 * words[word] + byte, rest]), w)
    feet = np.concatenate([[False], mask[-1, :-1]])  # of the column before
    heads = np.flatnonzero(mask[0] != feet)
    places = np.concatenate([x * h + (y + top + 1), heads * h])
    places.sort()
    return places


def _pack(values: NDArray[np.int64]) -> bytes:
    """Write numbers with five bits a character, the lowest first, and a bit for more to come."""
    characters, used, is_open = [], [], np.ones(len(values), dtype=np.bool_)
    while is_open.any():
        bits = values & 31
        values = values >> 5
        more = np.where(bits & 16 > 0, values != -1, values != 0)
        characters.append(bits | (more << 5))
        used.append(is_open)
        is_open = is_open & more
    if not characters:
        return b""
    text = np.stack(characters, axis=1)[np.stack(used, axis=1)] + 48
    return text.astype(np.uint8).tobytes()
