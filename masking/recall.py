"""Where objects are by what they look like: their shares of earlier frames, carried by similarity.

Label propagation as in "Space-Time Correspondence as a Contrastive Random Walk" (Jabri et al.,
2006.14613) and DINO's video evaluation (Caron et al., 2104.14294), on the keys of the segmenter's
own encoder: no other network, no training. A cell takes the shares of the cells in earlier frames
that look like it. It drifts less than flow, and finds what was hidden.

Shapes: S remembered frames, M = h x w cells of a key map, C channels, K objects.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
RADIUS = 0.25
"""How far an object may move from a remembered frame, as a share of the map's longer side."""
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
    """Frames with prompts, which stay, and some of the last, which make place for others."""

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
        """Remember a frame for good."""
        return replace(self, prompted=(*self.prompted, frame))

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
        total = torch.zeros(2 * len(frames[0].known), keys.shape[0], device=keys.device)
        bias = torch.full((), -1 / TEMPERATURE, device=keys.device)  # of vectors alike: exp(0)
        if not anywhere:
            bias = _nearness(self.grid, keys.device)
        for frame in frames:  # one at a time: a map of likeness fits a processor's cache
            likeness = torch.addmm(bias, frame.keys, keys.T, alpha=1 / TEMPERATURE).exp_()
            known = frame.known[:, None].expand_as(frame.shares)
            total.addmm_(torch.cat([frame.shares * known, known]), likeness)
        shares, weight = total.chunk(2)
        return shares / weight.clamp(min=1e-20)


@lru_cache(maxsize=4)
def _nearness(grid: tuple[int, int], device: torch.device) -> Tensor:
    """(M, M): what is added to the exponent of two cells; much less where they are far apart."""
    h, w = grid
    y, x = (torch.arange(n, device=device).float() for n in grid)
    places = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).view(h * w, 2)
    far = torch.cdist(places, places) > RADIUS * max(grid)
    return torch.where(far, _FAR, -1 / TEMPERATURE)


def shares(logits: Tensor, grid: tuple[int, int]) -> Tensor:
    """(K, h, w) low-resolution logits to (K, M): the probability that a cell is of an object."""
    cells = F.adaptive_avg_pool2d(torch.sigmoid(logits)[:, None], grid)
    return cells[:, 0].flatten(1)
