"""Pictures of 16 bits as 8 bits.

Pillow gives grey of 16 bits, but of colours only the upper 8 bits, as of any other picture. Cameras
and microscopes often fill 10, 12 or 14 of the 16 bits, so that the upper 8 are nearly black.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

_BITS = (8, 10, 12, 14, 16)
"""Numbers of bits that cameras have."""


def deep_pixels(picture: Image.Image, source: bytes | Path | None) -> NDArray[Any] | None:
    """Return pixels (H, W) or (H, W, 3) RGB of 16 bits, without alpha; None: there are only 8 bits.

    Args:
        picture: the picture, opened but not loaded.
        source: content or path of its file; None: it is one of a stack, where only grey is read.
    """
    if picture.format == "PPM" and picture.mode == "I":  # 16 bits, whatever Pillow says
        picture = picture.convert("I;16")
    if picture.mode.startswith("I;16"):
        return np.asarray(picture)
    tiles = getattr(picture, "tile", None)  # of a picture that was opened from a file
    args = tiles[0].args if tiles else ""
    if source is None or ";16" not in str(args if isinstance(args, str) else args and args[0]):
        return None
    picture.load()  # OpenCV fills up what is cut off; Pillow refuses it
    content = source if isinstance(source, bytes) else source.read_bytes()
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    found = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if found is None or found.dtype != np.uint16 or found.shape[1::-1] != picture.size:
        return None
    return found if found.ndim == 2 else found[..., 2::-1]


def used_bits(pixels: NDArray[Any]) -> int:
    """Return how many of 16 bits pixels use: 8, 10, 12, 14 or 16."""
    largest = int(pixels.max(initial=0))
    return next(bits for bits in _BITS if largest < 1 << bits)


def eight_bits(pixels: NDArray[Any], bits: int) -> Image.Image:
    """Return pixels that use a number of bits as a picture of 8 bits; larger ones are clipped."""
    return Image.fromarray(np.minimum(pixels >> (bits - 8), 255).astype(np.uint8))
