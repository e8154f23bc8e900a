"""The network of SAM 2.1, EdgeTAM or SAM 3's tracker, with all objects of a frame in each call.

The modules are those of `transformers` (`Sam2VideoModel`, `EdgeTamVideoModel` and
`Sam3TrackerVideoModel`); what is computed with them is what their sessions compute, after "SAM 2:
Segment Anything in Images and Videos" (Ravi et al., 2408.00714). A session takes objects one by one
and keeps all frames; here every value is passed in and out.

Shapes: B images, K objects, P points, C channels, h x w cells of low-resolution logits, L tokens of
a remembered frame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masking.sam2.attention import conditioned
from masking.sam2.parts import AT_ONCE

Features = tuple[Tensor, ...]
"""What `VideoNetwork.encode` returns: maps of strides 4, 8 and 16, the last one for the memory."""

ABSENT = -1024.0
"""Logit of every cell of an object that is not to be seen, as in SAM 2."""
_MEANS = {"sam3_tracker_video": ((0.5,) * 3, (0.5,) * 3)}
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Decoded:
    """The masks of K objects on a frame."""

    logits: Tensor
    """(K, h, w) float32; `ABSENT` for an object that is not to be seen."""
    scores: Tensor
    """(K,) float32: the IoU with the truth that the network predicts."""
    visible: Tensor
    """(K,) float32 logits of whether the object is to be seen: SAM 2's object score."""
    pointers: Tensor
    """(K, C) float32: SAM 2's object pointers."""

    @classmethod
    def joined(cls, parts: Sequence["Decoded"]) -> "Decoded":
        """Join the objects of several calls."""
        return cls(
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("logits", "scores", "visible", "pointers")
            )
        )

    def __getitem__(self, rows: Sequence[int]) -> "Decoded":
        """Select objects."""
        chosen = torch.tensor(rows, device=self.logits.device)
        return Decoded(
            self.logits[chosen], self.scores[chosen], self.visible[chosen], self.pointers[chosen]
        )


class VideoNetwork(nn.Module):
    """A network of `masking.segmenter.network.Network` that remembers frames, too."""

    mask_stride = 4
    fill: tuple[float, ...] = (0.0, 0.0, 0.0)
    autocast = True
    objects_at_once = AT_ONCE
    """As `masking.sam2.parts` says."""

    def __init__(self, model: nn.Module) -> None:
        """Take a model of `transformers`; `masking.sam2.build.build` makes it."""
        super().__init__()
        self.model = cast(Any, model)
        self.config: Any = self.model.config
        self.kind: str = self.config.model_type
        self.side = int(self.config.image_size)
        rows, columns = model.prompt_encoder.mask_input_size  # type: ignore[union-attr, misc]
        self.mask_size = (int(rows), int(columns))
        """Size (h, w) of low-resolution logits: a frame is stretched to the whole canvas."""
        mean, std = _MEANS.get(self.kind, _IMAGENET)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std)[:, None, None], persistent=False)
        self._lowered = False

    def lower(self) -> None:
        """Attend to memory and make it in bfloat16 from now on; masks are decoded in float32."""
        self._lowered = True

    def scale(self, frame_size: tuple[int, int]) -> float:
        """Return the pixels of the canvas per pixel of the longer side of a frame (H, W)."""
        return self.side / max(frame_size)

    def canvas(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """Return the size of the canvas, which is the same for all frames."""
        return self.side, self.side

    def encode(self, images: Tensor) -> Features:
        """Map (B, 3, h, w) float32 RGB in [0, 255] to `Features`."""
        normal = (images - self.mean) / self.std
        outputs = self.model.get_image_features(normal, return_dict=True)
        sizes = self.model.backbone_feature_sizes
        maps = zip(outputs.fpn_hidden_states, sizes, strict=True)
        return tuple(one.permute(1, 2, 0).unflatten(2, tuple(size)) for one, size in maps)

    def keys(self, features: Features) -> Tensor:
        """Return the maps (B, C, h, w) of stride 16."""
        return features[-1]

    def decode(
        self,
        features: Features,
        frames: Tensor | None,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor,
        mask_input: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Decode N prompt sets on single frames, as `masking.segmenter.network.Network` says."""
        found = []
        for row in range(len(points)):
            at = row if frames is None else int(frames[row])
            one = tuple(part[at : at + 1] for part in features)
            real = labels[row] >= 0
            place, kind = with_box(points[row][real], labels[row][real], boxes[row])
            mask = None if mask_input is None else mask_input[row]
            given = (place[None], kind[None], None if mask is None or mask.isnan().any() else mask)
            masks = [
                self._outputs(self.unremembered(one, 1), one, *given, m) for m in (False, True)
            ]
            logits, scores = (torch.cat([mask[i] for mask in masks], dim=1) for i in (0, 1))
            found.append((logits, scores))
        logits, scores = (torch.cat(part) for part in zip(*found, strict=True))
        return logits.float(), scores.float()

    def unremembered(self, features: Features, objects: int) -> Tensor:
        """Return the map (K, C, h, w) to decode of objects of which nothing is remembered."""
        found = features[-1] + self.model.no_memory_embedding.reshape(1, -1, 1, 1)
        return found.expand(objects, -1, -1, -1)

    def attend(self, features: Features, memory: Tensor, places: Tensor, pointers: int) -> Tensor:
        """Return the map (K, C, h, w) to decode of objects that are remembered.

        Args:
            features: of one frame.
            memory: (L, K, M) tokens of remembered frames, and at last those of pointers.
            places: (L, K, M), what is added to the tokens to say where and when they were seen.
            pointers: number of tokens of pointers.
        """
        now = features[-1]
        with self._autocast():
            found = conditioned(self.model, now, memory, places, pointers)
        return found.float().transpose(1, 2).unflatten(2, now.shape[-2:])

    def _autocast(self) -> torch.autocast:
        """Return the context in which memory is attended to and made."""
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self._lowered)

    def segment(
        self,
        maps: Tensor,
        features: Features,
        points: Tensor,
        labels: Tensor,
        mask_input: Tensor | None,
        several: bool,
    ) -> Decoded:
        """Decode K objects of one frame.

        Args:
            maps: (K, C, h, w) from `attend` or `unremembered`.
            features: the frame.
            points: (K, P, 2) float32 (x, y) in pixels of the canvas.
            labels: (K, P) int64: 1 foreground, 0 background, 2 and 3 corners of a box.
            mask_input: (h, w) logits of the round before, with one object; None: there was none.
            several: whether the best of three masks is taken, or else the single one.
        """
        logits, scores, tokens, visible = self._outputs(
            maps, features, points, labels, mask_input, several
        )
        seen = visible > 0  # (K, 1)
        logits = torch.where(seen[..., None, None], logits, ABSENT)
        rows = torch.arange(len(logits), device=logits.device)
        best = scores.argmax(dim=1)
        token = tokens[rows, best]
        shown = seen.to(token.dtype)
        pointers = shown * self.model.object_pointer_proj(token)
        pointers = pointers + (1 - shown) * self.model.no_object_pointer
        return Decoded(
            logits[rows, best].float(),
            scores[rows, best].float(),
            visible[:, 0].float(),
            pointers.float(),
        )

    def _outputs(
        self,
        maps: Tensor,
        features: Features,
        points: Tensor,
        labels: Tensor,
        mask_input: Tensor | None,
        several: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return M masks (K, M, h, w), scores (K, M), tokens (K, M, C), object scores (K, 1)."""
        model, objects = self.model, len(maps)
        if not points.shape[1]:
            points, labels = points.new_zeros(objects, 1, 2), labels.new_full((objects, 1), -1)
        mask = None if mask_input is None else mask_input[None, None].to(maps.dtype)
        sparse, dense = model.prompt_encoder(points[:, None], labels[:, None], None, mask)
        masks, scores, tokens, visible = model.mask_decoder(
            image_embeddings=maps,
            image_positional_embeddings=model.get_image_wide_positional_embeddings().expand(
                objects, -1, -1, -1
            ),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
            high_resolution_features=list(features[:-1]),
        )
        return masks[:, 0], scores[:, 0], tokens[:, 0], visible[:, 0]

    def remember(
        self, features: Features, found: Decoded, hard: Tensor, shown: Mapping[int, Tensor]
    ) -> Tensor:
        """Return the tokens (K, L, M) by which the model remembers a frame.

        Args:
            features: the frame.
            found: the masks on it.
            hard: (K,) bool: whether the mask is taken as 0 and 1, as that of a person's prompt is,
                or as probabilities.
            shown: masks (side, side) that a person gave, by place among the K: they are taken as
                they are, not as their low-resolution logits.
        """
        model, config = self.model, self.config
        full = F.interpolate(
            found.logits[:, None], (self.side, self.side), mode="bilinear", align_corners=False
        )
        for place, mask in shown.items():
            full[place, 0] = _steep(mask)
        taken = (4 * self.mask_size[0], 4 * self.mask_size[1])
        if self.kind != "edgetam_video" and full.shape[-2:] != taken:
            full = F.interpolate(full, taken, mode="bilinear", align_corners=False, antialias=True)
        shares = torch.where(hard[:, None, None, None], (full > 0).float(), torch.sigmoid(full))
        shares = shares * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        now = features[-1].expand(len(full), -1, -1, -1)
        with self._autocast():
            memory, places = model.memory_encoder(now, shares)
        if model.occlusion_spatial_embedding_parameter is not None:
            hidden = (found.visible <= 0).to(memory.dtype)[:, None, None, None]
            memory = memory + hidden * model.occlusion_spatial_embedding_parameter[..., None, None]
        if self.kind != "edgetam_video":
            return memory.flatten(2).transpose(1, 2).to(torch.bfloat16)  # as SAM 2 keeps it
        places = places.to(memory.dtype)
        with self._autocast():  # the resampler takes one object only
            resampled = [model.spatial_perceiver(one[None], places[:1])[0] for one in memory]
        return torch.cat(resampled).float()

    def shown(self, features: Features, mask: Tensor) -> Decoded:
        """Return the mask of one object that a person gave, as if it had been decoded.

        Args:
            features: the frame.
            mask: (side, side) float32, 1 on the object and 0 elsewhere, on the canvas.
        """
        logits = F.interpolate(
            _steep(mask)[None, None],
            self.mask_size,
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        start = self.model.mask_downsample(mask[None, None])
        start = F.interpolate(
            start, self.mask_size, mode="bilinear", align_corners=False, antialias=True
        )[0, 0]
        none = mask.new_zeros(1, 0, 2)
        labels = torch.zeros(1, 0, dtype=torch.int64, device=mask.device)
        decoded = self.segment(features[-1].float(), features, none, labels, start, several=True)
        seen = mask.any().float()
        pointers = seen * decoded.pointers + (1 - seen) * self.model.no_object_pointer
        ones = torch.ones_like(decoded.scores)
        return Decoded(logits[:, 0], ones, ones * (20.0 * seen - 10.0), pointers)

    def places(self) -> Tensor:
        """Return (L, M) float32, which tells the tokens of a remembered frame where they were."""
        model = self.model
        parameter = model.memory_temporal_positional_encoding
        height, width = model.backbone_feature_sizes[-1]
        shape = torch.Size((1, model.mem_dim, height, width))
        encoding = model.memory_encoder.position_encoding
        found = encoding(shape, parameter.device, torch.float32)
        if self.kind != "edgetam_video":
            return found[0].flatten(1).T
        perceiver = model.spatial_perceiver
        side = round(perceiver.num_latents_2d**0.5)
        inner = perceiver.positional_encoding(
            torch.Size((1, model.mem_dim, side, side)), parameter.device, torch.float32
        )
        none = inner.new_zeros(perceiver.num_latents_1d, model.mem_dim)
        return torch.cat([none, inner[0].flatten(1).T])

    def times(self, offsets: Sequence[int]) -> Tensor:
        """Return (S, 1, M), which tells the tokens of S remembered frames when they were.

        Args:
            offsets: how many frames ago each was, from 1; 0: a frame with a prompt.
        """
        table = self.model.memory_temporal_positional_encoding[:, 0]
        return table[torch.tensor([offset - 1 for offset in offsets], device=table.device)]

    def pointer_times(self, offsets: Sequence[int]) -> Tensor:
        """Return (S, M), which tells pointers how many frames ago they were made."""
        device = self.model.memory_temporal_positional_encoding.device
        if not self.config.enable_temporal_pos_encoding_for_object_pointers:
            return torch.zeros(len(offsets), self.model.mem_dim, device=device)
        when = torch.tensor(offsets, device=device, dtype=torch.float32)
        when = when / float(self.config.max_object_pointers_in_encoder - 1)
        half = self.model.hidden_dim // 2
        number = torch.arange(half, dtype=torch.float32, device=device)
        waves = when[:, None] / 10000 ** (2 * (number // 2) / half)
        sines = torch.cat([waves.sin(), waves.cos()], dim=-1)
        found: Tensor = self.model.temporal_positional_encoding_projection_layer(sines)
        return found


def _steep(mask: Tensor) -> Tensor:
    """Return logits for a mask of 0 and 1 that a person gave, as SAM 2 takes it."""
    return 20.0 * mask - 10.0


def with_box(points: Tensor, labels: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Return points (P, 2) and labels (P,) with the corners of a box (4,) before them, which have
    the labels 2 and 3; NaN: there is no box."""
    if box.isnan().any():
        return points, labels
    corners = torch.tensor([2, 3], dtype=labels.dtype, device=labels.device)
    return torch.cat([box.view(2, 2), points]), torch.cat([corners, labels])
