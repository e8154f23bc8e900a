"""The array types that every room of `masking` speaks of."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]
"""Of uint8, which OpenCV's stubs do not say."""


Bools = NDArray[np.bool_]


Points = NDArray[np.float32]
