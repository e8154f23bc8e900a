"""Images and label maps for tests of training data."""

import io

import numpy as np
from PIL import Image

from masking.training.pairs import PairsConfig

ALL = PairsConfig(longest=0, smallest=0, largest=1)
H, W = 30, 40


def encoded(array, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def image(height=H, width=W, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def labels(count=3, height=H, width=W, dtype=np.uint8, first=1):
    """Upright stripes, background between them."""
    map_ = np.zeros((height, width), dtype)
    for k in range(count):
        left = width * k // count
        map_[2:-2, left : left + max(1, width // count - 2)] = first + k
    return map_
