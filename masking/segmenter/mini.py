"""`mini`: a small promptable segmenter on EfficientNet-Lite0's trunk.

Its prompts are SAM's (points, a box, earlier logits), and so are its answers: a single mask, three
masks for when a click is ambiguous, and a predicted IoU of each. Inside it is built to learn in
hours on a CPU: clicks become maps (discs, distances, and the similarity of every cell to what was
clicked), and convolutions do the rest, as in RITM (Sofiiuk et al., 2102.06583) and FocalClick
(2204.02574).

Shapes: B images, N prompt sets, P points, h x w pixels of the canvas; features at strides 4, 8, 16.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masking.segmenter.layers import Attention, ChannelNorm, Residual, enlarge
from masking.segmenter.lite0 import TAPS, Trunk
from masking.segmenter.matching import MAPS, Matching
from masking.segmenter.prompt_maps import CLICK_DEPTHS, STRIDES, Prompt, PromptMaps, click_depths

OUTPUTS = 4
"""Masks of a prompt set: the single mask, then three that may differ."""


@dataclass(frozen=True)
class MiniConfig:
    """Sizes of the small segmenter."""

    side: int = 480
    """Longer side of the canvas, in pixels: frames are scaled to it."""
    widths: tuple[int, int, int] = (32, 64, 128)
    """Channels at strides 4, 8 and 16."""
    keys: tuple[int, int, int] = (16, 32, 32)
    """Channels of the features whose similarity is measured, at strides 4, 8 and 16."""
    blocks: int = 2
    """Blocks of convolution and attention at stride 16."""
    heads: int = 4
    """Attention heads of a block."""


class Encoder(nn.Module):
    """Trunk and feature pyramid: features at three strides, and unit keys at the same strides."""

    def __init__(self, config: MiniConfig) -> None:
        """Build the encoder with random weights."""
        super().__init__()
        fine, middle, coarse = config.widths
        self.trunk = Trunk()
        self.lateral = nn.ModuleList(
            nn.Sequential(ChannelNorm(tap), nn.Conv2d(tap, width, 1))
            for tap, width in zip(TAPS.values(), (*config.widths, coarse), strict=True)
        )
        self.down = nn.ModuleList([nn.Conv2d(middle, fine, 1), nn.Conv2d(coarse, middle, 1)])
        self.smooth = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for c in config.widths)
        self.key = nn.ModuleList(
            nn.Conv2d(c, k, 1) for c, k in zip(config.widths, config.keys, strict=True)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map (B, 3, h, w) RGB in [0, 255] to six tensors (B, C, h / s, w / s).

        The first three are features at s = 4, 8 and 16, the others keys at the same strides.
        """
        f4, f8, f16, f32 = (
            conv(x) for conv, x in zip(self.lateral, self.trunk(images), strict=True)
        )
        f16 = F.relu(self.smooth[2](f16 + enlarge(f32)))
        f8 = F.relu(self.smooth[1](f8 + enlarge(self.down[1](f16))))
        f4 = F.relu(self.smooth[0](f4 + enlarge(self.down[0](f8))))
        features = (f4, f8, f16)
        keys = (_unit(key(x)) for x, key in zip(features, self.key, strict=True))
        return (*features, *keys)


def _unit(x: Tensor) -> Tensor:
    """Scale the vectors of (N, C, h, w) to length 1, in the precision that they come in."""
    return F.normalize(x.float(), dim=1).to(x.dtype)


class Decoder(nn.Module):
    """Features and prompts to masks: attention at stride 16, then up to stride 4."""

    def __init__(self, config: MiniConfig, outputs: int = OUTPUTS, memory: int = 0) -> None:
        """Build the decoder with random weights.

        Args:
            config: the sizes.
            outputs: masks of a prompt set.
            memory: channels of the maps from memory that it takes beside the prompts.
        """
        super().__init__()
        fine, middle, coarse = config.widths
        self.outputs, self.memory = outputs, memory
        self.maps = PromptMaps()
        self.draw = nn.ModuleList(
            nn.Conv2d(PromptMaps.CHANNELS + memory, c, 3, padding=1) for c in config.widths
        )
        self.blocks = nn.Sequential()
        for _ in range(config.blocks):
            self.blocks.append(Residual(coarse, norm=True))
            self.blocks.append(Attention(coarse, config.heads))
        self.up = nn.ModuleList([nn.Conv2d(middle, fine, 1), nn.Conv2d(coarse, middle, 1)])
        self.refine = nn.ModuleList([Residual(fine, False), Residual(middle, False)])
        self.head = nn.Conv2d(fine, outputs, 3, padding=1)
        known = 2 * coarse + 2 * fine + 3 + 2 * outputs + CLICK_DEPTHS + (memory + 1) * bool(memory)
        self.score = nn.Sequential(nn.Linear(known, coarse), nn.ReLU(), nn.Linear(coarse, 1))

    def forward(
        self, features: tuple[Tensor, ...], prompt: Prompt, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode N prompt sets.

        Args:
            features: what the encoder returns of each set's image, (N, ...).
            prompt: clicks, boxes and earlier masks.
            memory: (N, M, ...) maps from memory of any size, if the decoder takes them; the first
                is where the object is expected, from 0 to 1.

        Returns:
            Logits (N, K, h / 4, w / 4) and predicted IoU (N, K) of K outputs, float32.
        """
        content, keys = features[:3], features[3:]
        if memory is not None and memory.shape[-2:] != (size := keys[1].shape[-2:]):
            memory = F.interpolate(memory, size, mode="bilinear", align_corners=False)
        drawn = []
        for draw, key, stride in zip(self.draw, keys, STRIDES, strict=True):
            maps = self.maps(key, prompt, stride)
            if memory is not None:
                size = maps.shape[-2:]
                seen = F.interpolate(memory, size, mode="bilinear", antialias=stride > STRIDES[1])
                maps = torch.cat([maps, seen.to(maps.dtype)], dim=1)
            drawn.append(draw(maps))
        coarse = self.blocks(content[2] + drawn[2])
        middle = self.refine[1](content[1] + drawn[1] + enlarge(self.up[1](coarse)))
        fine = self.refine[0](content[0] + drawn[0] + enlarge(self.up[0](middle)))
        fine = F.relu(fine)
        logits = self.head(fine).float()
        return logits, self._scores(logits.detach(), fine.detach(), coarse, prompt, memory)

    def _scores(
        self, logits: Tensor, fine: Tensor, coarse: Tensor, prompt: Prompt, memory: Tensor | None
    ) -> Tensor:
        """Predict the IoU (N, K) of each mask.

        It follows from the features in the mask and at its edge, from its shape, from how far it
        agrees with the other masks, and from how deep in it the clicks lie: people click in the
        middle of what they mean.
        """
        p = torch.sigmoid(logits)
        edge, small = p * (1 - p), F.avg_pool2d(p, STRIDES[2] // STRIDES[0])
        inside, border, deep = (
            torch.einsum("nkhw,nchw->nkc", part, x) / (part.sum(dim=(2, 3)) + 1)[..., None]
            for part, x in ((p, fine), (edge, fine), (small, coarse.float()))
        )
        area = p.mean(dim=(2, 3))
        # SAM's stability: the share of the mask at a low threshold that stays at a high one.
        high, low = ((logits > at).float().sum(dim=(2, 3)) + 1 for at in (1.0, -1.0))
        shape = torch.stack([area.sqrt(), edge.mean(dim=(2, 3)) / (area + 1e-3), high / low], dim=2)
        n = len(logits)
        whole = coarse.float().mean(dim=(2, 3))[:, None].expand(n, self.outputs, -1)
        count = self.outputs
        which = torch.eye(count, device=logits.device).expand(n, count, count)
        both = torch.einsum("nkhw,nlhw->nkl", small, small) / small[0, 0].numel()
        agreement = both / (area[:, :, None] + area[:, None] - both + 1e-3)
        depths = click_depths(p, prompt)
        parts = [whole, inside, border, shape, which, deep, agreement, depths]
        if memory is not None:
            parts.append(_recalled(p, memory))
        known = torch.cat(parts, dim=2)
        return torch.sigmoid(self.score(known)[..., 0].float())


def _recalled(p: Tensor, memory: Tensor) -> Tensor:
    """Compare masks with what is remembered.

    Args:
        p: (N, K, h, w) probabilities of the masks.
        memory: (N, M, h / 2, w / 2) maps, as `Decoder` takes them.

    Returns:
        (N, K, M + 1): the mean of each map in each mask, and the soft IoU of mask and expected one.
    """
    small, memory = F.avg_pool2d(p, 2), memory.detach().float()
    means = torch.einsum("nkhw,nmhw->nkm", small, memory)
    means = means / (small.sum(dim=(2, 3)) + 1)[..., None]
    both = torch.minimum(small, memory[:, :1]).sum(dim=(2, 3))
    either = torch.maximum(small, memory[:, :1]).sum(dim=(2, 3))
    return torch.cat([means, ((both + 0.1) / (either + 0.1))[..., None]], dim=2)


class Remembering(nn.Module):
    """What `mini` follows objects with, from frame to frame: keys, and a decoder of its own."""

    def __init__(self, config: MiniConfig) -> None:
        """Build it with random weights."""
        super().__init__()
        _, middle, coarse = config.widths
        self.matching = Matching(middle, coarse, config.keys[1])
        self.decoder = Decoder(config, outputs=1, memory=MAPS)

    @torch.no_grad()
    def start_from(self, encoder: Encoder, decoder: Decoder, config: MiniConfig) -> None:
        """Take the weights of the encoder's keys and of the decoder of prompts.

        It then answers with the single mask of that decoder, whatever the memory holds.
        """
        self.matching.middle.load_state_dict(encoder.key[1].state_dict())
        nn.init.zeros_(self.matching.coarse.weight)
        weights = decoder.state_dict()
        for name in ("head.weight", "head.bias"):
            weights[name] = weights[name][:1]
        for number in range(len(STRIDES)):
            weight = weights[f"draw.{number}.weight"]
            empty = weight.new_zeros(len(weight), MAPS, *weight.shape[2:])
            weights[f"draw.{number}.weight"] = torch.cat([weight, empty], dim=1)
        fine, _, coarse = config.widths
        sizes = [coarse + 2 * fine + 3, OUTPUTS, coarse, OUTPUTS, CLICK_DEPTHS]
        before, which, deep, agreement, depths = weights["score.0.weight"].split(sizes, dim=1)
        empty = before.new_zeros(len(before), MAPS + 1)
        parts = (before, which[:, :1], deep, agreement[:, :1], depths, empty)
        weights["score.0.weight"] = torch.cat(parts, dim=1)
        self.decoder.load_state_dict(weights)


class Mini(nn.Module):
    """The small segmenter: a `masking.segmenter.network.Network`."""

    mask_stride = STRIDES[0]
    fill: tuple[float, ...] = (0.0, 0.0, 0.0)
    autocast = True

    def __init__(self, config: MiniConfig = MiniConfig(), remembers: bool = False) -> None:
        """Build the network with random weights; `remembers`: with the part for clips."""
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.memory = Remembering(config) if remembers else None

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the trunk's 8 stages, which an ImageNet start loads."""
        trunk = self.encoder.trunk
        return [list(stage.parameters()) for stage in (trunk.stem, *trunk.stages)]

    def lower(self) -> None:
        """Cast to bfloat16 what autocast would cast for every frame; results stay the same."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.to(torch.bfloat16)

    def training_side(self, side: int) -> str:
        """Return the side that training images must have, in words; "" if `side` is allowed."""
        return "a multiple of 32" if side % 32 else ""

    def scale(self, frame_size: tuple[int, int]) -> float:
        """Return the pixels of the canvas per pixel of a frame of (H, W)."""
        return self.config.side / max(frame_size)

    def canvas(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """Return the canvas (h, w) of frames of (H, W), whole cells of stride 32."""
        scale = self.scale(frame_size)
        h, w = (max(32, -(-round(side * scale) // 32) * 32) for side in frame_size)
        return h, w

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map (B, 3, h, w) RGB in [0, 255] to features and unit keys at strides 4, 8, 16."""
        features: tuple[Tensor, ...] = self.encoder(images)
        return features

    def keys(self, features: tuple[Tensor, ...]) -> Tensor:
        """Return keys of stride 8: those that are trained for it, or else those of the encoder,
        which on DAVIS recognise objects better than coarser ones."""
        if self.memory is None:
            return features[4]
        keys: Tensor = self.memory.matching(features)
        return keys

    def decode(
        self,
        features: tuple[Tensor, ...],
        frames: Tensor | None,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor,
        mask_input: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, 4, h / 4, w / 4) and predicted IoU (N, 4), as `Network.decode`."""
        features, prompt = _inputs(features, frames, points, labels, boxes, mask_input)
        logits, scores = self.decoder(features, prompt)
        return logits, scores

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
        """Return logits (N, 1, h / 4, w / 4) and predicted IoU (N, 1) of objects that memory
        expects; `maps` (N, MAPS, h / 8, w / 8) are `matching.recalled`, the rest as for `decode`.
        """
        assert self.memory is not None
        features, prompt = _inputs(features, frames, points, labels, boxes, mask_input)
        logits, scores = self.memory.decoder(features, prompt, maps)
        return logits, scores


def _inputs(
    features: tuple[Tensor, ...],
    frames: Tensor | None,
    points: Tensor,
    labels: Tensor,
    boxes: Tensor,
    mask_input: Tensor | None,
) -> tuple[tuple[Tensor, ...], Prompt]:
    """Return the features of each set's image, and its prompt as maps count pixels.

    Prompts count from (0, 0) at the centre of the first pixel, maps from its corner.
    """
    prompt = Prompt(points + 0.5, labels, boxes + 0.5, mask_input)
    if frames is not None:
        features = tuple(x[frames] for x in features)
    return features, prompt
