"""The prompt of one object on a frame for the segmenter, and its answer.

Points and boxes are in pixels of the frame, (x, y), origin top left. Shapes: P points, h x w pixels
of low-resolution logits. Tensors are on the host.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masking.images.arrays import Points
from masking.manifest.prompt import FramePrompt

_NONE = np.zeros((0, 2), np.float32)


@dataclass(frozen=True)
class Query:
    """The prompt of one object for the segmenter, and what its outputs are compared with."""

    row: int
    """Number of the object, from 0."""
    points: Points
    """(P, 2) float32."""
    labels: NDArray[np.int64]
    """(P,): 1 on the object, 0 beside it."""
    box: NDArray[np.float32] | None = None
    """(4,) float32 x1, y1, x2, y2."""
    mask: Tensor | None = None
    """(h, w) float32 logits that the segmenter starts from."""
    expected: Tensor | None = None
    """(h, w) float32: the probability, from 0 to 1, that a cell belongs to the object."""
    prompt: FramePrompt | None = None
    """The person's prompt that the query comes from; None: it comes from the tracker."""
    start: "Query | None" = None
    """The tracker's query whose answer the prompt corrects; None: the prompt corrects no mask."""
    followed: "Query | None" = None
    """The tracker's query itself, with points that the person may have taken away."""
    area: float = 0.0
    """Cells of the object's last trusted mask; 0: it has none."""
    doubted: bool = False
    """Whether the mask that the prompt corrects was not trusted: it may show something else."""
    memory: Tensor | None = None
    """(MAPS, ...) what memory says (`masking.segmenter.matching.recalled`); None: nothing."""
    known: Tensor | None = None
    """The same on the host."""


@dataclass(frozen=True)
class Answer:
    """The segmenter's output that was chosen for a query."""

    logits: Tensor
    """(h, w) float32."""
    predicted: float
    """IoU that the segmenter predicts."""
    agreement: float = 1.0
    """Soft IoU with the expected mask. Of a prompt, the IoU with the segmenter's own mask: 1,
    unless that had to be cut or filled to obey a click."""
    similarity: float = 1.0
    """Mean of the expected probabilities inside the mask."""
    by_memory: bool = False
    """Whether the segmenter's part that follows objects gave it: its predicted IoU was learnt on
    clips, and can be taken as it is."""
    denied: Tensor | None = None
    """(h, w) bool: a mask of which a person said that the object is not there; then this answer's
    mask is empty. None: nobody said that."""
    is_judged: bool = False
    """Whether a pass before gave it: `predicted` and `agreement` are the mask's score and quality,
    as `masking.tracking.state.TrackedMasks` has them."""

    @property
    def area(self) -> float:
        """Cells of the mask."""
        return float((self.logits > 0).sum())


def depths(expected: Tensor) -> Tensor:
    """Return the distances (h, w) in cells to the edge of an expected mask; 0 outside of it."""
    inside = np.pad((expected > 0.5).numpy().astype(np.uint8), 1)
    found = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return torch.from_numpy(found)


def clicks_on_others(prompts: Mapping[int, FramePrompt], row: int) -> Points:
    """Return the positive clicks (P, 2) of a frame on other objects than one, except those in a
    pixel where a person clicked on the object, too."""
    mine = prompts[row].points[prompts[row].labels == 1] if row in prompts else _NONE
    others = [one.points[one.labels == 1] for other, one in prompts.items() if other != row]
    points = np.concatenate([_NONE, *others])
    shared = (np.floor(points)[:, None] == np.floor(mine)).all(axis=2).any(axis=1)
    return points[~shared]
