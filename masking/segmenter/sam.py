"""A promptable segmenter in batches: `encode` frames, `decode` prompts; values, no hidden state.

    segmenter = load(Path("sam_vit_b_01ec64.pth"), torch.device("cpu"))
    embeddings = segmenter.encode(frames)                     # (T, H, W, 3) uint8 RGB
    prompts = Prompts.of(embeddings.frame_size, points=[[(320, 200)], [(40, 60), (90, 60)]],
                         labels=[[1], [1, 0]], frames=[0, 3])
    masks = segmenter.decode(embeddings, prompts)             # the best mask of each prompt set

Meta's SAM and the small segmenter of this project go through the same functions. Points are (x, y)
in pixels of the original frame, origin top left; boxes x1 y1 x2 y2 likewise.

Shapes: T frames of H x W pixels, N prompt sets of up to P points, K masks of each, h x w cells of
low-resolution logits. The CUDA path has not been run yet.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from masking.segmenter import weights
from masking.segmenter.build import build
from masking.segmenter.network import (
    Embeddings,
    Follower,
    Masks,
    Network,
    Precision,
    Prepared,
    resolve,
)
from masking.segmenter.prompts import PromptError, Prompts, check
from masking.segmenter.streams import Streams
from masking.segmenter.weights import SegmenterWeightsError

__all__ = [
    "Embeddings",
    "Masks",
    "Network",
    "Precision",
    "Prepared",
    "PromptError",
    "Prompts",
    "Segmenter",
    "SegmenterWeightsError",
    "build",
    "load",
    "resolve",
]

Outputs = Literal["best", "single", "three"]
CUDA_FRAMES = 8
"""Frames that a GPU encodes at a time: more gain little. A CPU takes one at a time: what one frame
needs lies in its caches."""
KEY_CELLS = 48
"""Most cells along the longer side of a map of keys: every cell is compared with every other."""
DECODED = 16
"""Prompt sets decoded at a time; on a GPU four times as many."""


class Segmenter:
    """A network on its device, at its precision; it keeps nothing of the frames that it encodes."""

    def __init__(
        self,
        network: Network,
        device: torch.device,
        precision: Precision = "auto",
        *,
        compile: bool = False,
        metadata: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Move a network to its device, in evaluation mode.

        Args:
            network: the network, which is a `torch.nn.Module`, too.
            device: where frames are encoded and prompts decoded.
            precision: auto is bfloat16 where the processor multiplies it.
            compile: encode through torch.compile. Meant for GPUs, where it has not been run yet;
                on a CPU its compiler takes minutes.
            metadata: what the file of the weights says of them.
        """
        self.device, self.precision = device, resolve(precision, device)
        self.metadata = metadata
        self.network = network
        self._mask_size: tuple[int, int] | None = getattr(network, "mask_size", None)
        module = cast(nn.Module, network)
        module.to(device).eval()
        enabled = network.autocast and self.precision == "bfloat16"
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=enabled)
        self._compiled = compile
        encode = self.network.encode
        self._encode = torch.compile(encode, dynamic=False) if compile else encode
        self.streams = Streams(device, (*module.parameters(), *module.buffers()))

    @property
    def frames_at_once(self) -> int:
        """Number of frames that `encode` takes through the network together."""
        return CUDA_FRAMES if self.device.type == "cuda" else 1

    def prepare(self, frames: NDArray[np.uint8] | Tensor | Sequence[NDArray[np.uint8]]) -> Prepared:
        """Prepare frames (T, H, W, 3) uint8 RGB for `encode`; any thread may do it.

        For a CPU they are resized by Pillow, as SAM was trained and as `SamPredictor` does. For a
        GPU, which resizes them itself, they are copied to pinned memory.

        Args:
            frames: an array, or a sequence of (H, W, 3) arrays, which saves a copy.

        Raises:
            ValueError: The frames have another shape or type.
        """
        images = _frames(frames)
        size = (images[0].shape[0], images[0].shape[1])
        starts = range(0, len(images), self.frames_at_once)
        canvases = [self._canvas(images[at : at + self.frames_at_once], size) for at in starts]
        return Prepared(tuple(canvases), len(images), size)

    @torch.no_grad()
    def encode(self, frames: NDArray[np.uint8] | Tensor | Prepared) -> Embeddings:
        """Embed (T, H, W, 3) uint8 RGB frames, or frames that `prepare` has prepared.

        They are copied to a GPU from pinned memory while it encodes the ones before.

        Raises:
            ValueError: The frames have another shape or type.
        """
        prepared = frames if isinstance(frames, Prepared) else self.prepare(frames)
        left, parts = prepared.count, []
        for canvas in prepared.canvases:
            images = self._images(canvas, prepared.frame_size)
            with self._autocast:
                features = self._encode(images)
            parts.append(tuple(feature[:left] for feature in features))
            left -= len(canvas)
        joined = (
            part[0] if len(part) == 1 else torch.cat(part) for part in zip(*parts, strict=True)
        )
        return Embeddings(tuple(joined), prepared.frame_size)

    def decode(self, embeddings: Embeddings, prompts: Prompts, outputs: Outputs = "best") -> Masks:
        """Return the masks of all prompt sets, on any of the frames.

        Args:
            embeddings: frames from `encode`.
            prompts: the objects to segment, and the frame of each.
            outputs: "single", SAM's output for prompts that are clear (several clicks, a box);
                "three", for an ambiguous one, such as one click on a sleeve: whole, part and part
                of a part; "best", the one of those three with the highest score. K is 1, 3, 1.

        Raises:
            PromptError: A prompt names a frame that is not embedded, or its `mask_input` has
                another size than `low_res` says.
        """
        logits, scores = self.logits(embeddings, prompts)
        if outputs == "single":
            logits, scores = logits[:, :1], scores[:, :1]
        else:
            logits, scores = logits[:, 1:], scores[:, 1:]
        if outputs == "best":
            best = scores.argmax(dim=1, keepdim=True)
            logits = logits.take_along_dim(best[..., None, None], dim=1)
            scores = scores.take_along_dim(best, dim=1)
        size = embeddings.frame_size
        masks = torch.empty(*scores.shape, *size, dtype=torch.bool, device=scores.device)
        for some in self._parts(len(logits)):  # full-size logits of a few sets at a time
            masks[some] = self.upsample(logits[some], size) > 0
        return Masks(masks, scores, logits)

    def _parts(self, sets: int) -> list[slice]:
        """Divide prompt sets into parts that are decoded together."""
        step = 4 * DECODED if self.device.type == "cuda" else DECODED
        return [slice(start, start + step) for start in range(0, sets, step)]

    @torch.no_grad()
    def logits(self, embeddings: Embeddings, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return all four outputs at low resolution: logits (N, 4, h, w) and scores (N, 4).

        The single mask is the first. Raises PromptError as `decode` does.
        """
        return self._decoded(embeddings, prompts, self.network.decode, None, outputs=4)

    @property
    def remembers(self) -> bool:
        """Whether the network has a part of its own that follows objects; see `follow`."""
        return getattr(self.network, "memory", None) is not None

    @torch.no_grad()
    def follow(
        self, embeddings: Embeddings, prompts: Prompts, maps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return masks of objects that memory expects, for a network that `remembers`.

        Args:
            embeddings: the frames.
            prompts: N carried points with the expected masks as `mask_input`.
            maps: (N, MAPS, ...) from `masking.segmenter.matching.recalled`.

        Returns:
            Logits (N, 1, h, w) and predicted IoU (N, 1), float32. Raises PromptError as `decode`.
        """
        network = cast(Follower, self.network)
        return self._decoded(embeddings, prompts, network.follow, maps.to(self.device), outputs=1)

    def _decoded(
        self,
        embeddings: Embeddings,
        prompts: Prompts,
        decode: Callable[..., tuple[Tensor, Tensor]],
        maps: Tensor | None,
        outputs: int,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, outputs, h, w) and scores (N, outputs) of a decoder of the network."""
        size = embeddings.frame_size
        check(prompts, len(embeddings), self.low_res(size))
        prompts = prompts.to(self.device)
        if not len(prompts):
            none = torch.empty(0, outputs, *self.low_res(size), device=self.device)
            return none, none[..., 0, 0]
        points = self._on_canvas(prompts.points, size)
        boxes = self._on_canvas(prompts.boxes.view(-1, 2, 2), size).flatten(1)
        parts = []
        for some in self._parts(len(prompts)):
            mask = None if prompts.mask_input is None else prompts.mask_input[some]
            sets = (prompts.frames[some], points[some], prompts.labels[some], boxes[some], mask)
            more = () if maps is None else (maps[some],)
            with self._autocast:
                parts.append(decode(embeddings.features, *sets, *more))
        logits, scores = (torch.cat(part) for part in zip(*parts, strict=True))
        return logits, scores

    @torch.no_grad()
    def upsample(self, low_res_logits: Tensor, frame_size: tuple[int, int]) -> Tensor:
        """Enlarge (..., h, w) low-resolution logits to (..., H, W) float32, the size of a frame.

        As `Sam.postprocess_masks`: bilinear to the canvas, padding cut off, bilinear to the frame.
        Frames that a network stretches have no padding: then bilinear to the frame at once.
        """
        if self._mask_size is not None:
            flat = low_res_logits.float().reshape(1, -1, *self._mask_size)
            flat = F.interpolate(flat, frame_size, mode="bilinear", align_corners=False)
            return flat.view(*low_res_logits.shape[:-2], *frame_size)
        stride, resized = self.network.mask_stride, self._resized(frame_size)
        # What shows in the frame needs one row and column beyond it, not all of the padding.
        h, w = (-(-side // stride) + 1 for side in resized)
        logits = low_res_logits.float()[..., :h, :w]
        flat = logits.reshape(1, -1, *logits.shape[-2:])
        size = [stride * side for side in flat.shape[-2:]]
        flat = F.interpolate(flat, size, mode="bilinear", align_corners=False)
        flat = flat[..., : resized[0], : resized[1]]
        flat = F.interpolate(flat, frame_size, mode="bilinear", align_corners=False)
        return flat.view(*low_res_logits.shape[:-2], *frame_size)

    @torch.no_grad()
    def keys(self, embeddings: Embeddings) -> Tensor:
        """Return maps whose cosine tells where another frame shows the same thing.

        Returns:
            (T, h, w, C) float32 unit vectors; they cover the canvas as the logits do, on at most
            `KEY_CELLS` cells along the longer side.
        """
        with self._autocast:
            keys = self.network.keys(embeddings.features).float()
        share = KEY_CELLS / max(keys.shape[-2:])
        if share < 1:
            size = [max(1, round(side * share)) for side in keys.shape[-2:]]
            keys = F.interpolate(keys, size, mode="bilinear", antialias=True)
        return F.normalize(keys, dim=1).permute(0, 2, 3, 1).contiguous()

    def low_res(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """Return the size (h, w) of the low-resolution logits of frames of (H, W)."""
        if self._mask_size is not None:
            return self._mask_size
        h, w = (side // self.network.mask_stride for side in self.network.canvas(frame_size))
        return h, w

    def mask_scale(self, frame_size: tuple[int, int]) -> float:
        """Return the cells of low-resolution logits per pixel of a frame of (H, W).

        Both have their origin at the top left.
        """
        return float(self.network.scale(frame_size) / self.network.mask_stride)

    def _on_canvas(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Convert (..., 2) float32 (x, y) from pixels of a frame of (H, W) to the canvas'."""
        h, w = self._resized(size)
        x, y = points.double().unbind(-1)
        return torch.stack([x * (w / size[1]), y * (h / size[0])], dim=-1).float()

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size (h, w) of a resized frame on the canvas, rounded as SAM does."""
        if self._mask_size is not None:
            return self.network.canvas(size)
        scale, canvas = self.network.scale(size), self.network.canvas(size)
        h, w = (
            max(1, min(int(side * scale + 0.5), edge))
            for side, edge in zip(size, canvas, strict=True)
        )
        return h, w

    def _canvas(self, frames: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> Tensor:
        """Resize frames onto (B, h, w, 3) uint8 on the host; for a GPU, copy them to pinned memory.

        B is `frames_at_once` for a compiled network: its shapes must not change.
        """
        h, w = self._resized(size)
        count = self.frames_at_once if self._compiled else len(frames)
        on_gpu = self.device.type == "cuda"
        sides = size if on_gpu else self.network.canvas(size)
        canvas = torch.zeros((count, *sides, 3), dtype=torch.uint8, pin_memory=on_gpu)
        for target, frame in zip(canvas.numpy(), frames, strict=False):
            if on_gpu:
                target[:] = frame
            else:
                target[:h, :w] = Image.fromarray(frame).resize((w, h), Image.Resampling.BILINEAR)
        return canvas

    def _images(self, canvas: Tensor, size: tuple[int, int]) -> Tensor:
        """Convert a canvas, or frames of (H, W), to (B, 3, h, w) float32 on the device.

        It is channels last in memory, where convolutions are faster.
        """
        h, w = self._resized(size)
        images = canvas.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        if self.device.type == "cuda":
            images = _placed(images, (h, w), self.network.canvas(size))
        if any(self.network.fill):  # SAM pads what is normalised, so with its mean colour
            for channel, value in enumerate(self.network.fill):
                images[:, channel, h:] = value
                images[:, channel, :, w:] = value
        return images


def _placed(frames: Tensor, size: tuple[int, int], canvas: tuple[int, int]) -> Tensor:
    """Resize frames (B, 3, H, W) with values from 0 to 255 onto canvases.

    Rows first, then columns, each rounded, as Pillow does it: the result is within one of Pillow's,
    and hardly a value differs.

    Args:
        frames: the frames, float32.
        size: (h, w) of the resized frame, which is placed at the top left.
        canvas: height and width of the canvas; the rest of it is 0.
    """
    for sides in ((frames.shape[-2], size[1]), size):
        if frames.shape[-2:] != sides:
            frames = F.interpolate(frames, sides, mode="bilinear", antialias=True)
            frames = frames.add_(0.5).floor_()
    shape = (len(frames), 3, *canvas)
    placed = frames.new_zeros(shape).contiguous(memory_format=torch.channels_last)
    placed[..., : size[0], : size[1]] = frames
    return placed


def _frames(
    frames: NDArray[np.uint8] | Tensor | Sequence[NDArray[np.uint8]],
) -> Sequence[NDArray[np.uint8]]:
    """Return frames as contiguous arrays; raises ValueError for another shape or type."""
    given = frames.cpu().numpy() if isinstance(frames, Tensor) else frames
    images = [np.ascontiguousarray(frame) for frame in given]
    shapes = sorted({image.shape for image in images})
    types = sorted({str(image.dtype) for image in images})
    if types != ["uint8"] or len(shapes) != 1 or shapes[0][2:] != (3,) or 0 in shapes[0]:
        raise ValueError(
            f"{len(images)} frames of type {', '.join(types) or 'none'} and shape"
            f" {', '.join(map(str, shapes)) or 'none'}; expected uint8 RGB of shape (height, width,"
            " 3), all of one size, at least one frame of at least a pixel"
        )
    return images


def load(
    path: Path, device: torch.device, precision: Precision = "auto", *, compile: bool = False
) -> Segmenter:
    """Load a segmenter from a file of weights, which says what network they are of.

    Args:
        path: a `.pth` of Meta's SAM or any safetensors file of its tensors; a safetensors file
            whose metadata says {"architecture": "mini"}; or the folder of an export or a run.
        device: where frames are encoded and prompts decoded.
        precision: as in `Segmenter`.
        compile: as in `Segmenter`.

    Raises:
        SegmenterWeightsError: There are no weights, the file is damaged, or the weights are of
            another architecture.
    """
    file = weights.find(path)
    tensors, metadata = weights.read(file)
    architecture = metadata.get("architecture", "sam")
    network = build(tensors, architecture, file)
    if resolve(precision, device) == "bfloat16":
        network.lower()
    return Segmenter(network, device, precision, compile=compile, metadata=metadata)
