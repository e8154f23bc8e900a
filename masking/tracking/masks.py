"""Masks of the objects on a frame, and how the forward and the backward one are merged."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from masking.images.arrays import Bools, Pixels
from masking.images.geometry import iou
from masking.tracking.enlarge import FrameLogits
from masking.tracking.state import VISIBLE, State, TrackedMasks
from masking.tracking.trust import TRACKED, log_odds

Direction = Literal["prompt", "forward", "backward", "both"]

SAME, APART = 0.8, 0.5
"""IoU of two masks from which they are right or wrong together, and up to which at most one of them
is right."""

TORN = 0.6
"""Highest quality of a mask where another one, which is apart from it, comes from another prompt:
one of the two is wrong, however sure it is of itself."""
NEARNESS = 2.0
"""Log odds that a mask gains by being on the frame of a prompt rather than midway to the next."""


@dataclass(frozen=True)
class Mask:
    """The mask of one object on one frame."""

    state: State
    """State of the object on the frame."""
    mask: Bools
    """(H, W) bool."""
    score: float
    """Expected IoU with the truth; 0 for an empty mask."""
    quality: float
    """Probability that the mask is right: that its IoU with the truth is above 0.5."""
    direction: Direction
    """Where the mask comes from."""


@dataclass(frozen=True)
class FrameMasks:
    """The masks of all objects on a frame."""

    index: int
    """Index of the frame, from 0, in presentation order."""
    time_s: float | None
    """Seconds since the first frame; None: unknown."""
    image: Pixels
    """(H, W, 3) uint8 RGB."""
    objects: tuple[int, ...]
    """Ids of the K objects, in the order of the fields below."""
    found: tuple[Mask | None, ...]
    """The mask of each object; None: no mask is wanted on this frame, or no prompt reaches it."""
    full: FrameLogits | NDArray[np.float32]
    """What `logits` are made from."""

    @property
    def logits(self) -> NDArray[np.float32]:
        """(K, H, W) float32 logits of the masks, by which `label_map` decides."""
        return self.full.array if isinstance(self.full, FrameLogits) else self.full

    @property
    def masks(self) -> Bools:
        """(K, H, W) bool, empty for an object without a mask; masks may overlap."""
        empty = np.zeros(self.image.shape[:2], dtype=np.bool_)
        return np.stack([empty if one is None else one.mask for one in self.found])

    @property
    def states(self) -> tuple[State | None, ...]:
        """State of each object; None: no mask is wanted."""
        return tuple(None if one is None else one.state for one in self.found)

    @property
    def scores(self) -> tuple[float, ...]:
        """Expected IoU of each mask with the truth."""
        return tuple(0.0 if one is None else one.score for one in self.found)

    def label_map(self) -> NDArray[np.uint16]:
        """Return the masks as a label map (H, W): at each pixel the id of the object with the
        highest logit, 0 for none."""
        masks = self.masks
        ids = np.array(self.objects, np.uint16)[
            np.where(masks, self.logits, -np.inf).argmax(axis=0)
        ]
        return np.where(masks.any(axis=0), ids, 0).astype(np.uint16)


def absent_mask(size: tuple[int, int]) -> Mask:
    """Return the empty mask (H, W) of an object that a person marked as absent."""
    return Mask("absent", np.zeros(size, dtype=np.bool_), 0.0, 1.0, "prompt")


def forward_masks(masks: TrackedMasks, shown: Bools) -> list[Mask | None]:
    """Return the masks of a step, which are (K, H, W) at the size of the frame."""
    return [
        None if state is None else Mask(state, shown[i], score, quality, "forward")
        for i, (state, score, quality) in enumerate(
            zip(masks.states, masks.scores, masks.quality, strict=True)
        )
    ]


def better_mask(forward: Mask | None, backward: Mask, lateness: float) -> Mask:
    """Return the mask to believe: the one that is more probably right, or comes from a nearer
    prompt.

    Where the passes agree, its quality is that of the better one. Where they do not, at most one is
    right, and the quality is the probability that this one is, given that.

    Args:
        forward: the mask of the forward pass, if there is one.
        backward: the mask of the backward pass.
        lateness: 0 on the frame of the prompt before, 1 on that of the prompt after.
    """
    if forward is None:
        return backward
    visible = [one.state in VISIBLE for one in (forward, backward)]
    if visible[0] != visible[1]:
        return forward if visible[0] else backward
    if not any(visible):
        return replace(forward, direction="both")
    odds = log_odds(backward.quality) - log_odds(forward.quality)
    is_later = odds + NEARNESS * (2 * lateness - 1) > 0
    better, other = (backward, forward) if is_later else (forward, backward)
    agreed = float(iou(torch.from_numpy(better.mask), torch.from_numpy(other.mask)))
    share = min(max((agreed - APART) / (SAME - APART), 0.0), 1.0)
    right = better.quality * (1 - other.quality)
    neither = (1 - better.quality) * (1 - other.quality)
    alone = right / max(right + neither + other.quality * (1 - better.quality), 1e-9)
    alone = min(alone, TORN)
    quality = share * better.quality + (1 - share) * alone
    direction: Direction = "both" if share == 1 else better.direction
    score = better.score * quality / max(better.quality, 1e-9)
    return _with_quality(replace(better, score=score, direction=direction), quality)


def _with_quality(mask: Mask, quality: float) -> Mask:
    """Return a mask with another quality, and the state that follows from it."""
    state = mask.state
    if state in ("tracked", "uncertain", "recovered") and quality < TRACKED:
        state = "uncertain"
    return replace(mask, quality=quality, state=state)


def logit_of(score: float) -> float:
    """Return a logit for the inside of a mask that was kept without its logits: higher for a
    higher score, about as high as segmenters give for such a mask."""
    share = min(max(score, 0.55), 0.995)
    return math.log(share / (1 - share))
