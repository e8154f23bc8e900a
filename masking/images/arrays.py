"""Array types that all of `masking` uses."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]
"""An image: uint8, which OpenCV's stubs do not say."""
Bools = NDArray[np.bool_]
"""A mask or masks."""
Points = NDArray[np.float32]
"""Points (P, 2): x and y in pixels, origin top left."""
