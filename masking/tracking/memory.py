"""Memory of earlier frames: where objects are expected on a new one, by similar features.

Label propagation as in "Space-Time Correspondence as a Contrastive Random Walk" (Jabri et al.,
2006.14613) and DINO's video evaluation (Caron et al., 2104.14294), on the keys of the segmenter
(`masking.segmenter.matching`). A cell takes the shares of the cells in earlier frames that resemble
it. This drifts less than optical flow, and finds objects that were hidden.

Shapes: S remembered frames, M = h x w cells of a key map, C channels, K objects.
"""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from masking.segmenter.matching import FAR, RADIUS, TEMPERATURE, distances, places

TILE = 6
"""Cells along the side of a tile: in larger tiles more pairs are compared for nothing, smaller ones
cost more calls."""
PROMPTED = 8
"""Frames with prompts that are remembered for an object: each costs time on every frame."""
FAINT = 0.01
"""Share below which a cell counts as belonging to no object."""


@dataclass(frozen=True)
class Remembered:
    """A frame whose masks are remembered."""

    keys: Tensor
    """(M, C) unit vectors."""
    shares: Tensor
    """(K, M) float32 from 0 to 1: how much of a cell belongs to an object."""
    known: Tensor
    """(K,) float32: 1 for objects whose place on this frame is known, else 0."""
    trusted: tuple[bool, ...]
    """For each object, whether its mask was seen, not only expected."""


@dataclass(frozen=True)
class Memory:
    """Remembered frames: some with prompts, always the first, and some recent ones."""

    grid: tuple[int, int]
    """(h, w) of the key maps."""
    prompted: tuple[Remembered, ...] = ()
    """Frames with prompts, in order."""
    recent: tuple[Remembered, ...] = ()
    """The most recent frames, in order."""
    last_seen: dict[int, Remembered] = field(default_factory=dict)
    """For objects that were lost, by number, the last frame with a trusted mask."""

    def add(self, frame: Remembered, recent: int) -> "Memory":
        """Add a frame to the recent ones, of which the last `recent` stay."""
        return replace(self, recent=(*self.recent, frame)[-recent:] if recent else ())

    def keep(self, frame: Remembered) -> "Memory":
        """Add a frame with prompts, if it is not remembered yet, as from an earlier pass; for each
        object the first and the last of them stay."""
        for one in self.prompted:
            is_new = any(b and not a for a, b in zip(one.trusted, frame.trusted, strict=True))
            if not is_new and torch.equal(one.keys, frame.keys):
                return self
        frames, stay = (*self.prompted, frame), set[int]()
        for prompted in zip(*(one.trusted for one in frames), strict=True):
            mine = [number for number, is_prompted in enumerate(prompted) if is_prompted]
            stay |= {*mine[:1], *mine[1:][1 - PROMPTED :]}
        return replace(self, prompted=tuple(frames[number] for number in sorted(stay)))

    def forget(self, number: int) -> "Memory":
        """Forget an object except on frames with prompts: the others showed something else."""
        frames = []
        for frame in self.recent:
            known = frame.known.clone()
            known[number] = 0
            frames.append(replace(frame, known=known))
        seen = {other: frame for other, frame in self.last_seen.items() if other != number}
        return replace(self, recent=tuple(frames), last_seen=seen)

    def lose(self, number: int) -> "Memory":
        """Keep the last frame with a trusted mask of an object, until it is lost again."""
        for frame in reversed(self.recent):
            if frame.trusted[number]:
                only = torch.zeros_like(frame.known)
                only[number] = 1
                kept = replace(frame, known=only)
                return replace(self, last_seen={**self.last_seen, number: kept})
        return self

    def read(self, keys: Tensor, anywhere: bool = False) -> "Recall":
        """Return what the remembered frames say of a new one.

        Args:
            keys: (M, C) unit vectors of that frame.
            anywhere: compare all cells, however far apart, with the frames with prompts and the
                last ones of lost objects; otherwise near cells, also with the recent frames.
        """
        more = tuple(self.last_seen.values()) if anywhere else self.recent
        frames = (*self.prompted, *more)
        known = torch.stack([frame.known for frame in frames])[:, None]
        shares = torch.stack([frame.shares.T for frame in frames]) * known
        known_shares = torch.cat([shares, known.expand_as(shares)], dim=2)  # (S, M, 2K)
        old_keys = torch.stack([frame.keys for frame in frames])
        totals = [torch.zeros(known_shares.shape[2], len(keys), device=keys.device) for _ in "12"]
        parts = (slice(len(self.prompted)), slice(len(self.prompted), None))
        for tile in _tiles(self.grid, keys.device, anywhere):
            weights = known_shares.index_select(1, tile.near)
            if keys.device.type == "cpu" and float(weights[..., : shares.shape[2]].max()) < FAINT:
                for total in totals:  # a share is a mean of these: known to be no object
                    total[shares.shape[2] :, tile.cells] = 1.0
                continue
            # All frames at once: many small products cost more in calls than in arithmetic.
            new_keys = keys.index_select(0, tile.cells).T.expand(len(old_keys), -1, -1)
            similarity = torch.baddbmm(
                tile.bias, old_keys.index_select(1, tile.near), new_keys, alpha=1 / TEMPERATURE
            ).exp_()
            for total, part in zip(totals, parts, strict=True):
                if len(frames[part]):
                    of_part = weights[part].flatten(0, 1).T @ similarity[part].flatten(0, 1)
                    total[:, tile.cells] = of_part
        prompted, rest = (total.chunk(2) for total in totals)
        return Recall(prompted[0] + rest[0], prompted[1] + rest[1], *prompted)


@dataclass(frozen=True)
class Recall:
    """What remembered frames say of a new one: sums over all cells that resemble one of its own,
    for each object over the frames on which its place is known."""

    weighted: Tensor
    """(K, M) float32 sums of shares, each times how much its cell resembles the new one."""
    weight: Tensor
    """(K, M) float32 sums of how much they resemble it: the more, the better the cell is known."""
    prompted_weighted: Tensor
    """(K, M) float32 of the frames with prompts."""
    prompted_weight: Tensor
    """(K, M) float32 of the frames with prompts."""

    @property
    def shares(self) -> Tensor:
        """(K, M) float32 from 0 to 1, what is expected; 0 for objects known on no frame."""
        return self.weighted / self.weight.clamp(min=1e-20)

    @property
    def prompted_shares(self) -> Tensor:
        """(K, M) float32 from 0 to 1, what the frames with prompts lead to expect."""
        return self.prompted_weighted / self.prompted_weight.clamp(min=1e-20)


@dataclass(frozen=True)
class _Tile:
    """Cells of a key map, and the cells of remembered frames that they are compared with."""

    cells: Tensor
    """(n,) indices into the M cells."""
    near: Tensor
    """(m,) indices into the M cells: at least all within `RADIUS` of one of `cells`."""
    bias: Tensor
    """(m, n): added to the exponent of a pair of cells; very low where they are far apart."""


@lru_cache(maxsize=8)
def _tiles(grid: tuple[int, int], device: torch.device, anywhere: bool) -> tuple[_Tile, ...]:
    """Divide a key map into tiles: most pairs of cells are too far apart to be compared.

    On a GPU the whole map is one tile: there small products cost as much as large ones.
    """
    bias = distances(grid, device, math.inf if anywhere else RADIUS)
    y, x = places(grid, device)
    if device.type != "cpu":
        everything = torch.arange(len(y), device=device)
        return (_Tile(everything, everything, bias),)
    of = y.long() // TILE * grid[1] + x.long() // TILE
    tiles = []
    for number in of.unique():
        cells = (of == number).nonzero()[:, 0]
        near = (bias[:, cells] > FAR).any(dim=1).nonzero()[:, 0]
        tiles.append(_Tile(cells, near, bias[near][:, cells]))
    return tuple(tiles)


def cell_shares(logits: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn low-resolution logits (K, h, w) into shares (K, M): probabilities of the cells."""
    cells = F.adaptive_avg_pool2d(torch.sigmoid(logits)[:, None], grid)
    return cells[:, 0].flatten(1)
