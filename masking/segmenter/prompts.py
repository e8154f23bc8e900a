"""Prompts of a segmenter: points, boxes and earlier logits of many objects on many frames.

Points are (x, y) in pixels of the original frame, origin top left; boxes x1 y1 x2 y2 likewise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


class PromptError(ValueError):
    """Prompts that are malformed: a line for each fault, which names the prompt and the point."""


@dataclass(frozen=True)
class Prompts:
    """N prompt sets, each for one object on one frame.

    `of` checks ragged lists and pads them. Tensors given to the constructor are not checked: they
    may lie on a GPU.
    """

    frames: Tensor
    """(N,) int64: index into the embeddings."""
    points: Tensor
    """(N, P, 2) float32 (x, y), pixels of the original frame; P may be 0."""
    labels: Tensor
    """(N, P) int64: 1 foreground, 0 background, -1 nothing here (filler of ragged rows)."""
    boxes: Tensor
    """(N, 4) float32 x1 y1 x2 y2, pixels of the original frame; NaN where a row has none."""
    mask_input: Tensor | None = None
    """(N, h, w) float32 low-resolution logits of an earlier call; a row of NaN: none."""

    def __len__(self) -> int:
        """Return N."""
        return len(self.frames)

    def to(self, device: torch.device) -> "Prompts":
        """Copy the prompts to a device, as `on_device` does."""
        parts = (self.frames, self.points, self.labels, self.boxes)
        frames, points, labels, boxes = (on_device(part, device) for part in parts)
        mask_input = None if self.mask_input is None else on_device(self.mask_input, device)
        return Prompts(frames, points, labels, boxes, mask_input)

    @classmethod
    def of(
        cls,
        frame_size: tuple[int, int],
        points: Sequence[ArrayLike],
        labels: Sequence[ArrayLike],
        *,
        boxes: Sequence[ArrayLike | None] | None = None,
        mask_input: Sequence[NDArray[np.floating[Any]] | None] | None = None,
        frames: Sequence[int] | None = None,
    ) -> "Prompts":
        """Check ragged prompts of N objects and pad them.

        Args:
            frame_size: (H, W) of the frames, in pixels.
            points: (P_i, 2) (x, y) of each object, pixels of the frame; may be empty.
            labels: (P_i,) of each object: 1 foreground, 0 background.
            boxes: x1 y1 x2 y2 of each object, or None.
            mask_input: (h, w) logits of an earlier call for each object, or None.
            frames: index of each object's frame; None: all on the first.

        Raises:
            PromptError: All faults of all prompts: other shapes or labels, NaN, points outside the
                frame, empty boxes, an object with nothing that is part of it.
        """
        n = len(points)
        given = {"labels": labels, "boxes": boxes, "mask_input": mask_input, "frames": frames}
        uneven = [f"{len(v)} {k}" for k, v in given.items() if v is not None and len(v) != n]
        if uneven:
            raise PromptError(
                f"there are points of {n} objects, but {', '.join(uneven)}; one for each object is"
                " needed"
            )
        boxes = boxes if boxes is not None else [None] * n
        given_masks = mask_input if mask_input is not None else [None] * n
        masks = [None if mask is None else np.asarray(mask) for mask in given_masks]
        clicks = [_clicks(*pair) for pair in zip(points, labels, strict=True)]
        corners = [np.full(4, np.nan) if b is None else np.asarray(b, np.float64) for b in boxes]
        faults = [
            f"prompt {i}: {fault}"
            for i, (click, box, mask) in enumerate(zip(clicks, boxes, masks, strict=True))
            for fault in _faults(click, None if box is None else corners[i], mask, frame_size)
        ]
        if faults:
            raise PromptError("\n".join(faults))
        return cls(
            torch.tensor([0] * n if frames is None else list(frames), dtype=torch.int64),
            *_padded(clicks),
            torch.from_numpy(np.array(corners, np.float32).reshape(n, 4)),
            _stacked(masks),
        )


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; to a GPU from pinned memory, without waiting for it."""
    pinned = tensor.device.type == "cpu" and device.type == "cuda"
    return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)


def on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors of one type from a device to the host.

    Those of a GPU go in one piece into pinned memory, and the host waits once, for what is queued
    on the current stream.
    """
    if not tensors or tensors[0].device.type != "cuda":
        return [tensor.cpu() for tensor in tensors]
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    pinned = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    pinned.copy_(flat, non_blocking=True)
    torch.cuda.current_stream(flat.device).synchronize()
    # Another copy, in memory that is not pinned: what a caller keeps must not keep all of it.
    parts = pinned.clone().split([tensor.numel() for tensor in tensors])
    return [part.view(one.shape) for part, one in zip(parts, tensors, strict=True)]


def check(prompts: Prompts, count: int, low_res: tuple[int, int]) -> None:
    """Raise PromptError for logits of another size than `low_res`, (h, w), and for a frame that is
    not one of the `count` that are embedded.

    Frame numbers on a GPU are not checked: the host would have to wait for them.
    """
    if prompts.mask_input is not None and prompts.mask_input.shape[1:] != low_res:
        raise PromptError(
            f"mask_input has shape {tuple(prompts.mask_input.shape[1:])}; expected {low_res}, the"
            " shape of low_res_logits of frames of this size"
        )
    frames = prompts.frames
    if frames.device.type != "cpu" or not len(frames):
        return
    if frames.min() < 0 or frames.max() >= count:
        raise PromptError(
            f"prompts are on frames {frames.min()} to {frames.max()}; expected 0 to {count - 1},"
            f" since {count} frames are embedded"
        )


_Clicks = tuple[NDArray[np.float64], NDArray[np.int64]]


def _clicks(points: ArrayLike, labels: ArrayLike) -> _Clicks:
    """Return an object's points (P, 2) and labels (P,) as arrays, which are not checked yet."""
    xy, kinds = np.asarray(points, np.float64), np.asarray(labels)
    return xy.reshape(0, 2) if xy.size == 0 else xy, kinds.astype(np.int64)


def _faults(
    clicks: _Clicks,
    box: NDArray[np.float64] | None,
    mask: NDArray[np.floating[Any]] | None,
    frame_size: tuple[int, int],
) -> Iterator[str]:
    """Yield what is wrong with the prompts of one object."""
    points, labels = clicks
    if points.ndim != 2 or points.shape[1] != 2 or labels.shape != points.shape[:1]:
        yield f"points have shape {points.shape}, labels {labels.shape}; (P, 2) and (P,) are needed"
        return
    h, w = frame_size
    for number, ((x, y), label) in enumerate(zip(points, labels, strict=True)):
        if label not in (0, 1):
            yield f"point {number} has label {label}; expected 1 for foreground, 0 for background"
        if not (0 <= x < w and 0 <= y < h):
            yield (
                f"point {number} at ({x:g}, {y:g}) is not in the frame of {w} x {h} pixels;"
                " (x, y) in pixels from the top left are needed"
            )
    if box is not None:
        yield from _box_faults(box, frame_size)
    if mask is not None and (np.ndim(mask) != 2 or not np.isfinite(mask).all()):
        yield f"mask_input has shape {np.shape(mask)}; finite logits of shape (h, w) are needed"
    if box is None and mask is None and not (labels == 1).any():
        kind = "only background points" if len(labels) else "no points"
        yield f"there are {kind}, no box and no mask; a foreground point is needed"


def _box_faults(box: NDArray[np.float64], frame_size: tuple[int, int]) -> Iterator[str]:
    h, w = frame_size
    if box.shape != (4,):
        yield f"the box has shape {box.shape}; x1 y1 x2 y2 are needed"
    elif not (box[0] < box[2] and box[1] < box[3]):
        yield f"the box is {box.tolist()}; x1 < x2 and y1 < y2 are needed"
    elif not (box[0] < w and box[1] < h and box[2] > 0 and box[3] > 0 and np.isfinite(box).all()):
        yield f"box {box.tolist()} is not in the frame of {w} x {h} pixels"


def _padded(clicks: Sequence[_Clicks]) -> tuple[Tensor, Tensor]:
    """Return (N, P, 2) float32 and (N, P) int64; P is the most points of any object."""
    most = max((len(labels) for _, labels in clicks), default=0)
    points = np.zeros((len(clicks), most, 2), np.float32)
    labels = np.full((len(clicks), most), -1, np.int64)
    for row, (xy, kinds) in enumerate(clicks):
        points[row, : len(kinds)], labels[row, : len(kinds)] = xy, kinds
    return torch.from_numpy(points), torch.from_numpy(labels)


def _stacked(masks: Sequence[NDArray[np.floating[Any]] | None]) -> Tensor | None:
    """Return (N, h, w) float32, NaN for objects without a mask; None if no object has one."""
    shapes = {mask.shape for mask in masks if mask is not None}
    if not shapes:
        return None
    if len(shapes) > 1:
        raise PromptError(f"mask_input has shapes {sorted(shapes)}; they must have one shape")
    none = np.full(shapes.pop(), np.nan)
    rows = [none if mask is None else mask for mask in masks]
    return torch.from_numpy(np.array(rows, np.float32))
