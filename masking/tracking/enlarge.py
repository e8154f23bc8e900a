"""Masks and logits of a step at the size of the frame.

On a GPU the masks are made there, and come to the host as bits in one copy: a 32nd of the bytes of
the logits, which the host makes from the small ones if anybody asks for them. Shapes: K objects,
h x w pixels of low-resolution logits, H x W pixels of the frame.
"""

from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from masking.images.arrays import Bools
from masking.segmenter.prompts import on_device, on_host
from masking.segmenter.sam import Segmenter

Map = NDArray[np.float32]


class FrameLogits:
    """Logits of the K objects of a frame, each (H, W) float32, made when they are asked for."""

    def __init__(self, make: Callable[[], NDArray[np.float32]]) -> None:
        """Take a function that returns the logits (K, H, W)."""
        self._make = make
        self._made: NDArray[np.float32] | None = None
        self._others: dict[int, Map] = {}

    @property
    def array(self) -> NDArray[np.float32]:
        """(K, H, W) float32 logits of all objects."""
        if self._made is None:
            self._made = self._make()
        for row, other in self._others.items():
            self._made[row] = other
        self._others = {}
        return self._made

    def __getitem__(self, row: int) -> Map:
        """Return the logits (H, W) of an object."""
        return self._others[row] if row in self._others else self.array[row]

    def __setitem__(self, row: int, logits: Map) -> None:
        """Replace the logits of an object by others (H, W)."""
        self._others[row] = logits


def at_full_size(
    segmenter: Segmenter, logits: Tensor, size: tuple[int, int], frame: tuple[int, int]
) -> tuple[Bools, FrameLogits]:
    """Enlarge masks to the size of a frame.

    Args:
        segmenter: made the logits.
        logits: (K, h, w) float32 on the host.
        size: (H, W) of the video's first frame, to which the frame was scaled for the segmenter.
        frame: (H, W) of the frame.

    Returns:
        The masks (K, H, W), and their logits.
    """

    def make() -> NDArray[np.float32]:
        full: NDArray[np.float32] = segmenter.upsample(logits, size).numpy()
        if size == frame:
            return full
        return np.stack([cv2.resize(one, frame[::-1]) for one in full])

    found = FrameLogits(make)
    if segmenter.device.type == "cpu" or size != frame:
        return found.array > 0, found
    with segmenter.streams.tracking(None, ()):
        masks = segmenter.upsample(on_device(logits, segmenter.device), size) > 0
        [bits] = on_host([_packed(masks)])
    return np.unpackbits(bits.numpy(), axis=-1, count=size[1]).view(np.bool_), found


def _packed(masks: Tensor) -> Tensor:
    """Return bool (..., W) as bits (..., W / 8), rounded up, uint8, as `np.packbits` does."""
    padded = F.pad(masks.to(torch.uint8), (0, -masks.shape[-1] % 8)).unflatten(-1, (-1, 8))
    place = torch.arange(7, -1, -1, dtype=torch.uint8, device=masks.device)
    return (padded << place).sum(dim=-1, dtype=torch.uint8)
