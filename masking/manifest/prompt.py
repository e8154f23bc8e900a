"""A person's prompt for one object on one frame."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from masking.images.arrays import Bools, Points

PromptRole = Literal["init", "correct", "end", "absent"]


@dataclass(frozen=True)
class FramePrompt:
    """What a person says of one object on one frame, in pixels of the frame, origin top left."""

    points: Points = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    """(P, 2) float32 clicks (x, y)."""
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(P,) int64: 1 for a click on the object, 0 for one beside it."""
    box: NDArray[np.float32] | None = None
    """(4,) float32 x1, y1, x2, y2; None: no box."""
    mask: Bools | None = None
    """(H, W) bool, the pixels of the object, which are its mask on the frame; points change it.
    None: the prompt has no mask."""
    role: PromptRole = "init"
    """init and correct: the object is here; end: it is not tracked from this frame on; absent: it
    is not visible from this frame on."""

    @property
    def is_located(self) -> bool:
        """Whether the prompt says where the object is without an earlier mask."""
        is_shown = self.box is not None or self.mask is not None
        return is_shown or bool((self.labels == 1).any())
