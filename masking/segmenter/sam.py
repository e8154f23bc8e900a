"""A promptable segmenter in batches: `encode` frames, `decode` prompts; values, no hidden state.

    segmenter = load(Path("sam_vit_b_01ec64.pth"), torch.device("cpu"))
    embeddings = segmenter.encode(frames)                     # (T, H, W, 3) uint8 RGB
    prompts = Prompts.of(embeddings.frame_size, points=[[(320, 200)], [(40, 60), (90, 60)]],
                         labels=[[1], [1, 0]], frames=[0, 3])
    masks = segmenter.decode(embeddings, prompts)             # of each prompt set its best mask

Meta's SAM and the small segmenter of this project go through the same functions. Points are (x, y)
in pixels of the original frame, origin top left; boxes x1 y1 x2 y2 likewise.

Shapes: T frames of H x W pixels, N prompt sets of up to P points, K masks of each, h x w pixels of
low-resolution logits. The CUDA path has not been run yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from masking.segmenter import weights
from masking.segmenter.mini import Mini
from masking.segmenter.prompts import PromptError, Prompts
from masking.segmenter.weights import CheckpointError

if TYPE_CHECKING:
    from masking.segmenter.official import Official

__all__ = [
    "CheckpointError",
    "Embeddings",
    "Masks",
    "Network",
    "Prepared",
    "PromptError",
    "Prompts",
    "Segmenter",
    "build",
    "load",
]

Outputs = Literal["best", "single", "three"]
Precision = Literal["auto", "float32", "bfloat16"]
CUDA_FRAMES = 8
"""Frames a GPU encodes at a time: more gain little (masking.md, 3.1). A CPU takes them singly: what
one frame needs lies in its caches."""
KEY_CELLS = 48
"""Cells along the longer side of a map of keys, at most: every one is compared with every other."""
DECODED = 16
"""Prompt sets decoded at a time; on a GPU four times as many."""


@dataclass(frozen=True)
class Embeddings:
    """What a network made of T frames of the same size."""

    features: tuple[Tensor, ...]
    """Each (T, C, h, w); what they are is the network's own affair."""
    frame_size: tuple[int, int]
    """(H, W) of the original frames, in pixels."""

    def __len__(self) -> int:
        """T."""
        return len(self.features[0])

    def __getitem__(self, frames: slice | Tensor) -> "Embeddings":
        """Those of some frames, by a slice or by (n,) int64 indices."""
        return Embeddings(tuple(part[frames] for part in self.features), self.frame_size)

    def to(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "Embeddings":
        """On another device, or in another floating-point format."""
        moved = tuple(part.to(device=device, dtype=dtype) for part in self.features)
        return Embeddings(moved, self.frame_size)


@dataclass(frozen=True)
class Prepared:
    """T frames of the same size as `encode` sends them to the device, resized and padded."""

    canvases: tuple[Tensor, ...]
    """Each (B, h, w, 3) uint8, on the host: frames that go through the network together."""
    count: int
    """T; the last canvas may have room for more."""
    frame_size: tuple[int, int]
    """(H, W) of the original frames, in pixels."""


@dataclass(frozen=True)
class Masks:
    """What `decode` found for N prompt sets."""

    masks: Tensor
    """(N, K, H, W) bool."""
    scores: Tensor
    """(N, K) float32: the IoU with the truth that the network predicts of its masks."""
    low_res_logits: Tensor
    """(N, K, h, w) float32: above 0 inside; a later call takes those of one mask as `mask_input`.
    They cover the padded canvas: `Segmenter.upsample` knows which part is the frame."""


class Network(Protocol):
    """What a segmenter's network does: a `torch.nn.Module` with these methods."""

    mask_stride: int
    """Pixels of the canvas per pixel of low-resolution logits."""
    fill: tuple[float, ...]
    """RGB in [0, 255] of what of the canvas is not frame."""
    autocast: bool
    """Whether its float32 weights are to be computed with in the segmenter's precision."""

    def lower(self) -> None:
        """Keep in bfloat16, once, what `Segmenter` would have to cast for every frame."""

    def scale(self, frame_size: tuple[int, int]) -> float:
        """Pixels of the canvas per pixel of a frame of (H, W)."""

    def canvas(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the images that `encode` takes of frames of (H, W), in pixels.

        At least the resized frame, which lies at the top left; the rest is `fill`.
        """

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, h, w) float32 RGB in [0, 255], of the canvas' size, to features (B, C, ., .)."""

    def decode(
        self,
        features: tuple[Tensor, ...],
        frames: Tensor | None,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor,
        mask_input: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, 4, h, w) and scores (N, 4): the single output, then the three.

        Arguments as the fields of `Prompts`, points and boxes in pixels of the canvas; without
        `frames` the features are those of each set.
        """

    def keys(self, features: tuple[Tensor, ...]) -> Tensor:
        """(B, C, h, w): features by whose cosine the same thing is known again elsewhere."""


class Segmenter:
    """A network on its device, at its precision; holds nothing of the frames it has seen."""

    def __init__(
        self,
        network: Network,
        device: torch.device,
        precision: Precision = "auto",
        *,
        compile: bool = False,
    ) -> None:
        """Take a network over and move it.

        Args:
            network: a module too.
            device: where frames are encoded and prompts decoded.
            precision: auto is bfloat16 where the processor multiplies it.
            compile: encode through torch.compile. Meant for GPUs, where it has not been run yet;
                on a CPU its compiler takes minutes.
        """
        self.device, self.precision = device, resolve(precision, device)
        self.network = network
        module = cast(nn.Module, network)
        module.to(device).eval()
        wanted = network.autocast and self.precision == "bfloat16"
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=wanted)
        self._compiled = compile
        encode = self.network.encode
        self._encode = torch.compile(encode, dynamic=False) if compile else encode

    @property
    def frames_at_once(self) -> int:
        """Frames that `encode` takes through the network together."""
        return CUDA_FRAMES if self.device.type == "cuda" else 1

    def prepare(self, frames: NDArray[np.uint8] | Tensor) -> Prepared:
        """Resize (T, H, W, 3) uint8 RGB frames for `encode`; work of the host, for other threads.

        Frames are resized by Pillow, as SAM was trained and as `SamPredictor` does.

        Raises:
            ValueError: frames of another shape or type.
        """
        images = _frames(frames)
        size = (images.shape[1], images.shape[2])
        starts = range(0, len(images), self.frames_at_once)
        canvases = [self._canvas(images[at : at + self.frames_at_once], size) for at in starts]
        return Prepared(tuple(canvases), len(images), size)

    @torch.no_grad()
    def encode(self, frames: NDArray[np.uint8] | Tensor | Prepared) -> Embeddings:
        """Embed (T, H, W, 3) uint8 RGB frames, or what `prepare` made of them.

        A GPU gets them from pinned memory while it works on the ones before.

        Raises:
            ValueError: frames of another shape or type.
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
        """Masks of all prompt sets, on whichever frames, in one call.

        Args:
            embeddings: of `encode`.
            prompts: what to look for where.
            outputs: "single", SAM's output for prompts that are clear (several clicks, a box);
                "three", for an ambiguous one, such as one click on a sleeve: whole, part and part
                of a part; "best", the one of those three with the highest score. K is 1, 3, 1.
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
        """Prompt sets that are decoded together."""
        step = 4 * DECODED if self.device.type == "cuda" else DECODED
        return [slice(start, start + step) for start in range(0, sets, step)]

    @torch.no_grad()
    def logits(self, embeddings: Embeddings, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """All outputs, nothing upsampled: (N, 4, h, w) and scores (N, 4), the single one first."""
        _check(prompts, embeddings, self.low_res(embeddings.frame_size))
        prompts = prompts.to(self.device)
        size = embeddings.frame_size
        if not len(prompts):
            none = torch.empty(0, 4, *self.low_res(size), device=self.device)
            return none, none[..., 0, 0]
        points = self._on_canvas(prompts.points, size)
        boxes = self._on_canvas(prompts.boxes.view(-1, 2, 2), size).flatten(1)
        parts = []
        for some in self._parts(len(prompts)):
            mask = None if prompts.mask_input is None else prompts.mask_input[some]
            asked = (prompts.frames[some], points[some], prompts.labels[some], boxes[some], mask)
            with self._autocast:
                parts.append(self.network.decode(embeddings.features, *asked))
        logits, scores = (torch.cat(part) for part in zip(*parts, strict=True))
        return logits, scores

    @torch.no_grad()
    def upsample(self, low_res_logits: Tensor, frame_size: tuple[int, int]) -> Tensor:
        """(..., h, w) low-resolution logits to (..., H, W) float32, as `Sam.postprocess_masks`.

        Bilinear to the canvas, padding cut off, bilinear to the frame.
        """
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
        """Maps by which the same thing is known again in another frame.

        Returns:
            (T, h, w, C) float32 unit vectors; they cover the canvas as the logits do, on at most
            `KEY_CELLS` cells along the longer side.
        """
        found = self.network.keys(embeddings.features).float()
        share = KEY_CELLS / max(found.shape[-2:])
        if share < 1:
            size = [max(1, round(side * share)) for side in found.shape[-2:]]
            found = F.interpolate(found, size, mode="bilinear", antialias=True)
        return F.normalize(found, dim=1).permute(0, 2, 3, 1).contiguous()

    def low_res(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the low-resolution logits of frames of (H, W)."""
        h, w = (side // self.network.mask_stride for side in self.network.canvas(frame_size))
        return h, w

    def mask_scale(self, frame_size: tuple[int, int]) -> float:
        """Pixels of low-resolution logits per pixel of a frame of (H, W), origin top left."""
        return float(self.network.scale(frame_size) / self.network.mask_stride)

    def _on_canvas(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        """(..., 2) float32 (x, y) in pixels of a frame of (H, W) to pixels of the canvas."""
        h, w = self._resized(size)
        x, y = points.double().unbind(-1)
        return torch.stack([x * (w / size[1]), y * (h / size[0])], dim=-1).float()

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of a resized frame on the canvas, rounded as SAM does."""
        scale, canvas = self.network.scale(size), self.network.canvas(size)
        h, w = (
            max(1, min(int(side * scale + 0.5), edge))
            for side, edge in zip(size, canvas, strict=True)
        )
        return h, w

    def _canvas(self, frames: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
        """(B, h, w, 3) uint8 on the host; B is `frames_at_once` where shapes must stay."""
        h, w = self._resized(size)
        count = self.frames_at_once if self._compiled else len(frames)
        pinned = self.device.type == "cuda"
        shape = (count, *self.network.canvas(size), 3)
        canvas = torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned)
        for target, frame in zip(canvas.numpy(), frames, strict=False):
            target[:h, :w] = Image.fromarray(frame).resize((w, h), Image.Resampling.BILINEAR)
        return canvas

    def _images(self, canvas: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, 3, h, w) float32 on the device, channels last in memory: convolutions are faster."""
        h, w = self._resized(size)
        images = canvas.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        if any(self.network.fill):  # SAM pads what is normalised, so with its mean colour
            for channel, value in enumerate(self.network.fill):
                images[:, channel, h:] = value
                images[:, channel, :, w:] = value
        return images


def _frames(frames: NDArray[np.uint8] | Tensor) -> NDArray[np.uint8]:
    found = frames.cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[-1] != 3 or 0 in found.shape:
        raise ValueError(
            f"frames are {found.dtype} of shape {found.shape}; expected uint8 RGB of shape"
            " (frames, height, width, 3), at least one frame of at least a pixel"
        )
    return np.ascontiguousarray(found)


def resolve(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """What auto means: bfloat16 on a processor that multiplies it, else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if able else "float32"


def _check(prompts: Prompts, embeddings: Embeddings, low_res: tuple[int, int]) -> None:
    """Refuse logits of another size, and a frame that was not embedded; the latter not on a GPU,
    which would have to wait for it."""
    if prompts.mask_input is not None and prompts.mask_input.shape[1:] != low_res:
        raise PromptError(
            f"mask_input of shape {tuple(prompts.mask_input.shape[1:])}; low_res_logits of frames"
            f" of this size have {low_res}"
        )
    frames, count = prompts.frames, len(embeddings)
    if frames.device.type != "cpu" or not len(frames):
        return
    if frames.min() < 0 or frames.max() >= count:
        raise PromptError(
            f"prompts on frames {frames.min()} to {frames.max()}; {count} frames are embedded,"
            " and count from 0"
        )


def load(
    path: Path, device: torch.device, precision: Precision = "auto", *, compile: bool = False
) -> Segmenter:
    """Read a segmenter's weights; which network they are of is found in the file.

    Args:
        path: a `.pth` of Meta's SAM or any safetensors file of its tensors; a safetensors file
            whose metadata says {"architecture": "mini"}; or the folder of an export or a run.
        device: as of `Segmenter`, as are the other arguments.

    Raises:
        CheckpointError: nothing to read there, a damaged file, or another architecture.
    """
    file = weights.find(path)
    tensors, metadata = weights.read(file)
    architecture = metadata.get("architecture", "sam")
    network = build(tensors, architecture, file)
    if resolve(precision, device) == "bfloat16":
        network.lower()
    return Segmenter(network, device, precision, compile=compile)


def build(tensors: Mapping[str, Tensor], architecture: str, file: Path) -> "Mini | Official":
    """A network with these weights, in float32; `file` is what messages name.

    Raises:
        CheckpointError: they are not of this architecture, "mini" or "sam".
    """
    if architecture != "mini":
        from masking.segmenter import (
            official,  # here: it brings torchvision along, seconds of import
        )

        return official.Official(official.build(tensors, file))
    mini = Mini()
    weights.fill(mini, tensors, file, "`mini`")
    return mini
