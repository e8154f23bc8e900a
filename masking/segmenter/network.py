"""The network of a `Segmenter`: its methods, the values they exchange, and its precision.

Shapes: T frames of H x W pixels, B images of a batch, N prompt sets of up to P points, K masks of
each, h x w pixels of the canvas or cells of low-resolution logits.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Prepared:
    """T frames of the same size, as `Segmenter.encode` sends them on."""

    canvases: tuple[Tensor, ...]
    """Each (B, h, w, 3) uint8, on the host: frames that go through the network together. For a CPU
    they are resized and padded; for a GPU they are the frames themselves, in pinned memory."""
    count: int
    """T; the last canvas may have room for more."""
    frame_size: tuple[int, int]
    """(H, W) of the original frames, in pixels."""


@dataclass(frozen=True)
class Embeddings:
    """Features of T frames of the same size."""

    features: tuple[Tensor, ...]
    """Each (T, C, h, w); what they mean only the network knows."""
    frame_size: tuple[int, int]
    """(H, W) of the original frames, in pixels."""
    encoded: torch.cuda.Event | None = None
    """After it the features are there for other streams of a GPU (`masking.segmenter.streams`);
    None: they were computed on the stream of the caller."""

    def __len__(self) -> int:
        """Return T."""
        return len(self.features[0])

    def __getitem__(self, frames: slice | Tensor) -> "Embeddings":
        """Select frames by a slice or by (n,) int64 indices."""
        return replace(self, features=tuple(part[frames] for part in self.features))

    def to(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "Embeddings":
        """Return them on another device, or in another floating-point format."""
        moved = tuple(part.to(device=device, dtype=dtype) for part in self.features)
        return replace(self, features=moved)


@dataclass(frozen=True)
class Masks:
    """Masks of N prompt sets."""

    masks: Tensor
    """(N, K, H, W) bool."""
    scores: Tensor
    """(N, K) float32: the IoU with the truth that the network predicts of its masks."""
    low_res_logits: Tensor
    """(N, K, h, w) float32: above 0 inside; a later call takes those of one mask as `mask_input`.
    They cover the padded canvas: `Segmenter.upsample` knows which part is the frame."""


class Network(Protocol):
    """The network of a segmenter: a `torch.nn.Module` with these methods.

    A network that stretches every frame to the whole canvas has an attribute `mask_size`, too: the
    size (h, w) of its low-resolution logits.
    """

    mask_stride: int
    """Pixels of the canvas per cell of low-resolution logits."""
    fill: tuple[float, ...]
    """RGB in [0, 255] of the part of the canvas that is not frame."""
    autocast: bool
    """Whether `Segmenter` runs its float32 weights under autocast when it computes in bfloat16."""

    def lower(self) -> None:
        """Cast to bfloat16, once, what would otherwise be cast for every frame."""

    def scale(self, frame_size: tuple[int, int]) -> float:
        """Return the pixels of the canvas per pixel of a frame of (H, W)."""

    def canvas(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """Return the size (h, w) in pixels of the images that `encode` takes of frames of (H, W).

        The canvas holds the resized frame at its top left; the rest is `fill`.
        """

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map (B, 3, h, w) float32 RGB in [0, 255], of the canvas' size, to features (B, ...)."""

    def decode(
        self,
        features: tuple[Tensor, ...],
        frames: Tensor | None,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor,
        mask_input: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Decode N prompt sets.

        Args:
            features: what `encode` returned.
            frames: (N,) int64, the image of each set; None: `features` has a row for each set.
            points: (N, P, 2) float32 (x, y), pixels of the canvas; the centre of the first is
                (0, 0).
            labels: (N, P) int64: 1 foreground, 0 background, -1 filler.
            boxes: (N, 4) float32 x1 y1 x2 y2, pixels of the canvas; NaN: no box.
            mask_input: (N, h, w) float32 logits of an earlier call; a row of NaN: none.

        Returns:
            Logits (N, 4, h, w) and predicted IoU (N, 4), float32: the single mask, then the three
            masks for ambiguous prompts.
        """

    def keys(self, features: tuple[Tensor, ...]) -> Tensor:
        """Return (B, C, h, w): features whose cosine is high where two frames show one thing."""


class Follower(Network, Protocol):
    """A network with a part of its own for what memory expects on a frame."""

    def follow(
        self,
        features: tuple[Tensor, ...],
        frames: Tensor | None,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor,
        mask_input: Tensor | None,
        maps: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode N objects that are expected.

        Args:
            features, frames, points, labels, boxes, mask_input: as for `decode`.
            maps: (N, MAPS, ...) float32, from `masking.segmenter.matching.recalled`.

        Returns:
            Logits (N, 1, h, w) and predicted IoU (N, 1), float32; the IoU with nothing is 0.
        """


def resolve(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return the precision that is computed in: auto is bfloat16 where it is multiplied natively,
    else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if able else "float32"
