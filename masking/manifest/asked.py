"""What a person asks of one object on one frame."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from masking.images.arrays import Points

AskedRole = Literal["init", "correct", "end", "absent"]


@dataclass(frozen=True)
class Asked:
    """What a person says of an object on a frame."""

    points: Points = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    """(P, 2)."""
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(P,): 1 foreground, 0 background."""
    box: NDArray[np.float32] | None = None
    """x1 y1 x2 y2."""
    role: AskedRole = "init"
    """init and correct: here it is; end: not asked for from here on; absent: not to be seen from
    here on."""

    @property
    def placed(self) -> bool:
        """Whether this alone, with no mask known, says where the object is."""
        return self.box is not None or bool((self.labels == 1).any())
