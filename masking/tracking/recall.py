"""Where objects are by what they look like: their shares of earlier frames, carried by similarity.

Label propagation as in "Space-Time Correspondence as a Contrastive Random Walk" (Jabri et al.,
2006.14613) and DINO's video evaluation (Caron et al., 2104.14294), on the keys of the segmenter's
own encoder: no other network, no training. A cell takes the shares of the cells in earlier frames
that look like it. It drifts less than flow, and finds what was hidden.

Shapes: S remembered frames, M = h x w cells of a key map, C channels, K objects.
"""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
RADIUS = 0.25
"""How far an object may move from a remembered frame, as a share of the map's longer side."""
TILE = 6
"""Cells along the side of a tile: of larger ones more pairs are compared in vain, smaller ones cost
more in calls."""
PROMPTED = 8
"""Frames with prompts that are remembered of an object: every one costs time on every frame."""
FAINT = 0.01
"""Share below which a cell counts as of no object."""
_FAR = -60.0
"""Exponent of cells that are too far apart: as good as nothing. CPUs take eight times as long over
the exponential of what has none in float32."""


@dataclass(frozen=True)
class Remembered:
    """A frame that was masked."""

    keys: Tensor
    """(M, C) unit vectors."""
    shares: Tensor
    """(K, M) float32 in [0, 1]: how much of a cell is of an object."""
    known: Tensor
    """(K,) float32: 1 for objects of which this frame says where they are."""
    trusted: tuple[bool, ...]
    """Of each object, whether that was seen, not only expected."""


@dataclass(frozen=True)
class Memory:
    """Some frames with prompts, the first for good, and some of the last."""

    grid: tuple[int, int]
    """(h, w) of the key maps."""
    prompted: tuple[Remembered, ...] = ()
    recent: tuple[Remembered, ...] = ()
    last_seen: dict[int, Remembered] = field(default_factory=dict)
    """Of objects that were lost, by their number, the last frame that showed them well."""

    def add(self, frame: Remembered, recent: int) -> "Memory":
        """Remember a frame as one of the `recent` last."""
        return replace(self, recent=(*self.recent, frame)[-recent:] if recent else ())

    def keep(self, frame: Remembered) -> "Memory":
        """Remember a frame with prompts; of an object the first and the last of them stay."""
        frames, stay = (*self.prompted, frame), set[int]()
        for told in zip(*(one.trusted for one in frames), strict=True):
            mine = [number for number, known in enumerate(told) if known]
            stay |= {*mine[:1], *mine[1:][1 - PROMPTED :]}
        return replace(self, prompted=tuple(frames[number] for number in sorted(stay)))

    def forget(self, number: int) -> "Memory":
        """Of an object, all but the frames with prompts: they were of something else."""
        frames = []
        for frame in self.recent:
            known = frame.known.clone()
            known[number] = 0
            frames.append(replace(frame, known=known))
        seen = {other: frame for other, frame in self.last_seen.items() if other != number}
        return replace(self, recent=tuple(frames), last_seen=seen)

    def lose(self, number: int) -> "Memory":
        """Keep the last frame that knows an object, until it is lost again."""
        for frame in reversed(self.recent):
            if frame.trusted[number]:
                only = torch.zeros_like(frame.known)
                only[number] = 1
                kept = replace(frame, known=only)
                return replace(self, last_seen={**self.last_seen, number: kept})
        return self

    def read(self, keys: Tensor, anywhere: bool = False) -> Tensor:
        """Shares of the objects in a new frame.

        Args:
            keys: (M, C) of that frame.
            anywhere: look at the prompted frames and those that lost objects were last seen in,
                and everywhere in them; not at the recent ones.

        Returns:
            (K, M) float32; 0 for objects that no remembered frame knows.
        """
        more = self.last_seen.values() if anywhere else self.recent
        frames = (*self.prompted, *more)
        known = torch.stack([frame.known for frame in frames])[:, None]
        shares = torch.stack([frame.shares.T for frame in frames]) * known
        told = torch.cat([shares, known.expand_as(shares)], dim=2)  # (S, M, 2K)
        seen = torch.stack([frame.keys for frame in frames])
        total = torch.zeros(told.shape[2], len(keys), device=keys.device)
        for tile in _tiles(self.grid, keys.device, anywhere):
            weights = told.index_select(1, tile.near)
            if keys.device.type == "cpu" and float(weights[..., : shares.shape[2]].max()) < FAINT:
                continue  # a share is a mean of these
            # Of all frames at once: many small products cost more in calls than in arithmetic.
            wanted = keys.index_select(0, tile.cells).T.expand(len(seen), -1, -1)
            likeness = torch.baddbmm(
                tile.bias, seen.index_select(1, tile.near), wanted, alpha=1 / TEMPERATURE
            ).exp_()
            total[:, tile.cells] = weights.flatten(0, 1).T @ likeness.flatten(0, 1)
        found, weight = total.chunk(2)
        return found / weight.clamp(min=1e-20)


@dataclass(frozen=True)
class _Tile:
    """Cells of a map, and those of remembered frames that they are compared with."""

    cells: Tensor
    """Indices (n,), of M."""
    near: Tensor
    """Indices (m,), of M: all that lie within `RADIUS` of any of them, and others."""
    bias: Tensor
    """(m, n): what is added to the exponent of two cells; much less where they are far apart."""


@lru_cache(maxsize=8)
def _tiles(grid: tuple[int, int], device: torch.device, anywhere: bool) -> tuple[_Tile, ...]:
    """A map in tiles, for processors: most pairs of cells lie too far apart to be looked at.

    A GPU has the whole map in one piece: it waits for small products, not for large ones.
    """
    radius = math.inf if anywhere else RADIUS * max(grid)
    y, x = (axis.flatten() for axis in _places(grid, device))
    far = torch.hypot(y[:, None] - y, x[:, None] - x) > radius
    bias = torch.where(far, _FAR, -1 / TEMPERATURE)  # of vectors alike: exp(0)
    if device.type != "cpu":
        everything = torch.arange(len(y), device=device)
        return (_Tile(everything, everything, bias),)
    of = y.long() // TILE * grid[1] + x.long() // TILE
    tiles = []
    for number in of.unique():
        cells = (of == number).nonzero()[:, 0]
        near = (~far[:, cells]).any(dim=1).nonzero()[:, 0]
        tiles.append(_Tile(cells, near, bias[near][:, cells]))
    return tuple(tiles)


def _places(grid: tuple[int, int], device: torch.device) -> list[Tensor]:
    """Rows and columns of the cells, each (h, w) float32."""
    axes = (torch.arange(n, device=device).float() for n in grid)
    return list(torch.meshgrid(*axes, indexing="ij"))


def shares(logits: Tensor, grid: tuple[int, int]) -> Tensor:
    """(K, h, w) low-resolution logits to (K, M): the probability that a cell is of an object."""
    cells = F.adaptive_avg_pool2d(torch.sigmoid(logits)[:, None], grid)
    return cells[:, 0].flatten(1)
