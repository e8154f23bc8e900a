"""Masks of the objects on a frame, and how the forward and the backward one are merged."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from masking.images.arrays import Bools, Pixels
from masking.images.geometry import iou
from masking.tracking.state import VISIBLE, State, TrackedMasks

Direction = Literal["prompt", "forward", "backward", "both"]

AGREED = 0.8
"""IoU from which the forward and the backward mask count as the same."""


@dataclass(frozen=True)
class Mask:
    """The mask of one object on one frame."""

    state: State
    """State of the object on the frame."""
    mask: Bools
    """(H, W) bool."""
    score: float
    """IoU that the segmenter predicts; 0 for an empty mask."""
    quality: float
    """Agreement with the mask that motion and memory expected, from 0 to 1."""
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
    logits: NDArray[np.float32]
    """(K, H, W) float32 logits of the masks, by which `label_map` decides."""

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
        """Predicted IoU of each mask."""
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


def forward_masks(masks: TrackedMasks, logits: NDArray[np.float32]) -> list[Mask | None]:
    """Return the masks of a step, with logits (K, H, W) at the size of the frame."""
    return [
        None if state is None else Mask(state, logits[i] > 0, score, quality, "forward")
        for i, (state, score, quality) in enumerate(
            zip(masks.states, masks.scores, masks.quality, strict=True)
        )
    ]


def better_mask(forward: Mask | None, backward: Mask, is_later_nearer: bool) -> Mask:
    """Return the mask to believe: the better one where both passes agree, else the one from the
    nearer prompt, as uncertain."""
    if forward is None:
        return backward
    visible = [one.state in VISIBLE for one in (forward, backward)]
    if visible[0] != visible[1]:
        return forward if visible[0] else backward
    pair = torch.from_numpy(np.stack([forward.mask, backward.mask]))
    if float(iou(pair[0], pair[1])) >= AGREED or not any(visible):
        better = forward if forward.score >= backward.score else backward
        return replace(better, direction="both")
    nearer = backward if is_later_nearer else forward
    return replace(nearer, state="uncertain")


def logit_of(score: float) -> float:
    """Return a logit for the inside of a mask that was kept without its logits: higher for a
    higher score, about as high as segmenters give for such a mask."""
    share = min(max(score, 0.55), 0.995)
    return math.log(share / (1 - share))
