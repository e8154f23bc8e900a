"""A small promptable segmenter: EfficientNet-Lite0's trunk, clicks drawn densely into its decoder.

The prompts are SAM's (points, a box, earlier logits) and so are the answers (a single mask, three
for when a click is ambiguous, a predicted IoU for each). Inside it is built to learn in hours on a
CPU: clicks become maps, discs, distances and the similarity of every place to the places clicked,
and convolutions do the rest, as in RITM (Sofiiuk et al., 2102.06583) and FocalClick (2204.02574).

Shapes: B images, N prompt sets, P points, h x w pixels of the canvas; features at strides 4, 8, 16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masking.images.geometry import depth

OUTPUTS = 4
"""The single mask, then three that may differ."""
STRIDES = (4, 8, 16)
TRUNK = (
    # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""EfficientNet-Lite0 (github.com/tensorflow/tpu, efficientnet/lite), up to its last block."""
TAPS = {1: 24, 2: 40, 4: 112, 6: 320}
"""Stages whose output is used, at strides 4, 8, 16 and 32, and their channels."""
SOFT = (0.02, 0.08, 0.3)
"""Widths of the soft distances to a click, as a share of the canvas' longer side."""
MIDDLES = 3
"""Numbers that say how the clicks lie in a mask."""
DISC = 2.5
"""Radius of the disc round a click, in cells of stride 4: 10 pixels."""


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


class Prompt(NamedTuple):
    """N prompt sets in pixels of the canvas."""

    points: Tensor
    """(N, P, 2) float32 (x, y); the centre of the first pixel is (0.5, 0.5)."""
    labels: Tensor
    """(N, P) int64: 1 foreground, 0 background, -1 filler."""
    boxes: Tensor
    """(N, 4) float32 x1 y1 x2 y2; NaN: none."""
    logits: Tensor | None
    """(N, h / 4, w / 4) float32, of an earlier answer; a row of NaN: none."""


class Inverted(nn.Module):
    """MobileNetV2's inverted residual, BatchNorm folded away: timm's `InvertedResidual`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        """Expanded 1x1, depthwise, projected 1x1."""
        super().__init__()
        inner = inputs * expansion
        self.expand = nn.Conv2d(inputs, inner, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(inner, inner, kernel, stride, groups=inner)
        self.project = nn.Conv2d(inner, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h / stride, w / stride)."""
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        if y.device.type == "cpu" and torch.is_grad_enabled() and self.project.weight.requires_grad:
            # oneDNN's backward of 5x5 depthwise convolutions is 3 to 10 times as fast in float32.
            with torch.autocast("cpu", enabled=False):
                y = same(self.depthwise, y.float())
        else:
            y = same(self.depthwise, y)
        y = self.project(F.relu6(y, inplace=True))
        return x + y if self.residual else y


def same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """TensorFlow's SAME padding, which the pretrained weights expect: more after than before."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    if stride == 1:
        return F.conv2d(x, conv.weight, conv.bias, 1, kernel // 2, 1, conv.groups)
    total = kernel - stride  # for the even sizes that a canvas has at every stride
    before, after = total // 2, total - total // 2
    x = F.pad(x, (before, after, before, after))
    return F.conv2d(x, conv.weight, conv.bias, stride, 0, 1, conv.groups)


class Trunk(nn.Module):
    """EfficientNet-Lite0 up to its last block, BatchNorm folded into the convolutions."""

    def __init__(self) -> None:
        """Weights follow from torch's generator; `fold` brings ImageNet's."""
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2)
        self.stages, inputs = nn.ModuleList(), 32
        for repeats, kernel, stride, expansion, outputs in TRUNK:
            stage = nn.Sequential()
            for index in range(repeats):
                step = stride if index == 0 else 1
                stage.append(Inverted(inputs, outputs, kernel, step, expansion))
                inputs = outputs
            self.stages.append(stage)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, h, w) in [0, 255] to features at strides 4, 8, 16, 32."""
        x = F.relu6(same(self.stem, (images - 127) / 128))
        taps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in TAPS:
                taps.append(x)
        return taps


def fold(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of EfficientNet-Lite0 to the `Trunk`'s: every BatchNorm into its convolution.

    Args:
        weights: in the order of the layers, as every port of the TensorFlow weights has them:
            a convolution, then weight, bias, mean and variance of its BatchNorm.

    Raises:
        ValueError: it is another network.
    """
    trunk, folded = Trunk(), {}
    left = [tensor for tensor in weights.values() if tensor.ndim > 0]
    names = [name.removesuffix(".weight") for name in trunk.state_dict() if name.endswith("weight")]
    for number, name in enumerate(names):
        kernel, gain, shift, mean, variance = left[5 * number : 5 * number + 5]
        wanted = trunk.state_dict()[f"{name}.weight"].shape
        if kernel.shape != wanted or gain.shape != wanted[:1]:
            raise ValueError(
                f"not the weights of EfficientNet-Lite0: layer {number + 1} has shape"
                f" {tuple(kernel.shape)}, {tuple(wanted)} was expected"
            )
        scale = gain / torch.sqrt(variance + 1e-3)  # TensorFlow's epsilon
        folded[f"{name}.weight"] = kernel * scale[:, None, None, None]
        folded[f"{name}.bias"] = shift - mean * scale
    return folded


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every place; free of copies in channels-last memory.

    In the precision of its input, with statistics in float32: autocast would copy to float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if x.is_cuda:  # its kernels take one precision for all; a CPU's take float32 beside others
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, weight, bias, self.eps)
        return y.permute(0, 3, 1, 2)


class Residual(nn.Module):
    """3x3 convolution, ReLU, 1x1 convolution, added to its input; after a norm, if wanted."""

    def __init__(self, width: int, norm: bool) -> None:
        """Of `width` channels."""
        super().__init__()
        self.norm = ChannelNorm(width) if norm else nn.Identity()
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same."""
        return x + self.outer(F.relu(self.inner(self.norm(x)), inplace=True))


class Attention(nn.Module):
    """Every place looks at all others, two by two pooled; added to its input.

    Pooling makes it four times as cheap (Wang et al., 2106.13797, PVT v2). As plain products in
    training: torch's fused kernel has a slow bfloat16 backward on CPUs.
    """

    def __init__(self, width: int, heads: int) -> None:
        """Of `width` channels."""
        super().__init__()
        self.heads = heads
        self.norm = ChannelNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same; h and w are even."""
        n, c, h, w = x.shape
        y = self.norm(x)
        q = self.query(_tokens(y)).view(n, h * w, self.heads, -1).transpose(1, 2)
        k, v = (
            self.key_value(_tokens(F.avg_pool2d(y, 2)))
            .view(n, h * w // 4, 2, self.heads, -1)
            .permute(2, 0, 3, 1, 4)
        )
        if x.is_cuda or not torch.is_grad_enabled():
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * (q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        y = self.out(y.transpose(1, 2).reshape(n, h * w, c))
        return x + y.view(n, h, w, c).permute(0, 3, 1, 2)


def _tokens(x: Tensor) -> Tensor:
    """(N, C, h, w) to (N, h * w, C), a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class Encoder(nn.Module):
    """Trunk and feature pyramid: features of three strides, then unit keys of the same."""

    def __init__(self, config: MiniConfig) -> None:
        """All but the trunk is new."""
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
        """(B, 3, h, w) in [0, 255] to six (B, C, h / s, w / s): s = 4, 8, 16, and again."""
        f4, f8, f16, f32 = (
            conv(x) for conv, x in zip(self.lateral, self.trunk(images), strict=True)
        )
        f16 = F.relu(self.smooth[2](f16 + enlarge(f32)))
        f8 = F.relu(self.smooth[1](f8 + enlarge(self.down[1](f16))))
        f4 = F.relu(self.smooth[0](f4 + enlarge(self.down[0](f8))))
        features = (f4, f8, f16)
        keys = (_unit(key(x), 1) for x, key in zip(features, self.key, strict=True))
        return (*features, *keys)


def _unit(x: Tensor, dim: int) -> Tensor:
    """Vectors of length 1, in the precision that they come in."""
    return F.normalize(x.float(), dim=dim).to(x.dtype)


def enlarge(x: Tensor) -> Tensor:
    """Twice the size, bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Places(nn.Module):
    """Prompts as maps of one stride: where the clicks, the box and the earlier mask are."""

    CHANNELS = 2 * (1 + len(SOFT)) + 2 + 2 + 4

    def forward(self, keys: Tensor, prompt: Prompt, stride: int) -> Tensor:
        """Unit keys (N, K, h, w) of a stride and the prompts to (N, CHANNELS, h, w) float32."""
        n, _, h, w = keys.shape
        x = (torch.arange(w, device=keys.device) + 0.5) * stride
        y = (torch.arange(h, device=keys.device)[:, None] + 0.5) * stride
        earlier = _earlier(prompt.logits, n, h, w, keys.device)
        kinds = [prompt.labels == wanted for wanted in (1, 0)]
        maps = [
            *_distances(prompt.points, kinds, x, y, stride),
            *_box(prompt.boxes, x, y),
            *earlier,
            *_likeness(keys, prompt.points / stride, kinds, *earlier),
        ]
        return torch.stack(maps, dim=-1).permute(0, 3, 1, 2)  # channels last


def _distances(
    points: Tensor, kinds: list[Tensor], x: Tensor, y: Tensor, stride: int
) -> list[Tensor]:
    """Discs round the clicks of a kind, and how near the nearest is, softly, at several widths."""
    px, py = points.unbind(-1)
    squared = (x - px[..., None, None]) ** 2 + (y - py[..., None, None]) ** 2
    far = squared.new_full((len(points), 1, len(y), len(x)), 1e9)  # there may be no click at all
    # A disc of less than a cell would fall between the centres of the coarse strides.
    radius = max(DISC * STRIDES[0], 0.75 * stride)
    maps = []
    for which in kinds:
        some = torch.where(which[..., None, None], squared, 1e9)
        nearest = torch.cat([some, far], dim=1).amin(dim=1)
        maps.append(((radius - nearest.sqrt()) / stride + 0.5).clamp(0, 1))
        for share in SOFT:
            width = share * max(len(x), len(y)) * stride
            # Not below e^-30: CPUs take a hundred times as long over denormal numbers.
            maps.append((nearest / (-2 * width**2)).clamp(min=-30).exp())
    return maps


def _earlier(
    logits: Tensor | None, n: int, h: int, w: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(N, h, w) each: the earlier mask from -1 to 1, and whether there is one; else 0."""
    if logits is None:
        nothing = torch.zeros(n, h, w, device=device)
        return nothing, nothing
    there = logits.isfinite().all(dim=2).all(dim=1)
    p = torch.sigmoid(logits.nan_to_num(0).clamp(-30, 30))[:, None]
    p = F.avg_pool2d(p, logits.shape[-1] // w)[:, 0]
    known = there[:, None, None].expand(n, h, w).to(p.dtype)
    return (2 * p - 1) * known, known


def _likeness(
    keys: Tensor, places: Tensor, kinds: list[Tensor], mask: Tensor, known: Tensor
) -> list[Tensor]:
    """Cosine of every place with what was clicked, the likest of a kind, and with the mean of what
    the earlier mask held, and of what it left; 0 where there is nothing to be like."""
    n, _, h, w = keys.shape
    flat = _tokens(keys)
    x, y = places.unbind(-1)
    grid = torch.stack([2 * x / w - 1, 2 * y / h - 1], dim=-1)[:, None]
    clicked = F.grid_sample(keys.float(), grid, align_corners=False, padding_mode="border")[:, :, 0]
    shares = torch.stack([1 + mask, 1 - mask], dim=-1).view(n, h * w, 2)
    means = flat.transpose(1, 2) @ shares.to(flat.dtype)
    wanted = F.normalize(torch.cat([clicked, means.float()], dim=2), dim=1)
    cosine = flat @ wanted.to(flat.dtype)  # (N, h * w, P + 2)
    maps = []
    for which in kinds:
        hit = torch.where(which[:, None], cosine[..., :-2], -1)
        largest = F.pad(hit, (0, 1), value=-1.0).amax(dim=-1)
        maps.append(torch.where(which.any(dim=1)[:, None], largest, 0))
    maps += cosine[..., -2:].unbind(-1)
    nearest, farthest, held, left = (part.view(n, h, w).float() for part in maps)
    return [nearest, farthest, held * known, left * known]


def _box(boxes: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
    """Inside of the box, and the distance to its edge, positive inside; 0 where there is no box."""
    x1, y1, x2, y2 = (side[:, None, None] for side in boxes.unbind(1))
    depth = torch.minimum(torch.minimum(x - x1, x2 - x), torch.minimum(y - y1, y2 - y))
    depth = depth.nan_to_num(0)
    return [(depth > 0).to(depth.dtype), torch.tanh(depth / 32)]


class Decoder(nn.Module):
    """From features and prompts to masks: attention at stride 16, then up to stride 4."""

    def __init__(self, config: MiniConfig) -> None:
        """All of it is new."""
        super().__init__()
        fine, middle, coarse = config.widths
        self.places = Places()
        self.draw = nn.ModuleList(
            nn.Conv2d(Places.CHANNELS, c, 3, padding=1) for c in config.widths
        )
        self.blocks = nn.Sequential()
        for _ in range(config.blocks):
            self.blocks.append(Residual(coarse, norm=True))
            self.blocks.append(Attention(coarse, config.heads))
        self.up = nn.ModuleList([nn.Conv2d(middle, fine, 1), nn.Conv2d(coarse, middle, 1)])
        self.refine = nn.ModuleList([Residual(fine, False), Residual(middle, False)])
        self.head = nn.Conv2d(fine, OUTPUTS, 3, padding=1)
        self.score = nn.Sequential(
            nn.Linear(2 * coarse + 2 * fine + 3 + 2 * OUTPUTS + MIDDLES, coarse),
            nn.ReLU(),
            nn.Linear(coarse, 1),
        )

    def forward(self, features: tuple[Tensor, ...], prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Features of each set's image (N, ...) to logits (N, 4, h/4, w/4) and scores (N, 4)."""
        content, keys = features[:3], features[3:]
        drawn = [
            draw(self.places(key, prompt, stride))
            for draw, key, stride in zip(self.draw, keys, STRIDES, strict=True)
        ]
        coarse = self.blocks(content[2] + drawn[2])
        middle = self.refine[1](content[1] + drawn[1] + enlarge(self.up[1](coarse)))
        fine = self.refine[0](content[0] + drawn[0] + enlarge(self.up[0](middle)))
        fine = F.relu(fine)
        logits = self.head(fine).float()
        return logits, self._scores(logits.detach(), fine, coarse, prompt)

    def _scores(self, logits: Tensor, fine: Tensor, coarse: Tensor, prompt: Prompt) -> Tensor:
        """Predicted IoU (N, 4) of each mask: from what lies in it, at its edge, its shape, how far
        it agrees with the others, and how deep in it the clicks lie: people click in the middle."""
        p = torch.sigmoid(logits)
        fine, edge, small = fine.detach(), p * (1 - p), F.avg_pool2d(p, STRIDES[2] // STRIDES[0])
        kinds = ((p, fine), (edge, fine), (small, coarse.float()))
        inside, border, deep = (
            torch.einsum("nkhw,nchw->nkc", part, x) / (part.sum(dim=(2, 3)) + 1)[..., None]
            for part, x in kinds
        )
        area = p.mean(dim=(2, 3))
        # SAM's stability: the share of the mask at a low threshold that stays at a high one.
        high, low = ((logits > at).float().sum(dim=(2, 3)) + 1 for at in (1.0, -1.0))
        shape = torch.stack([area.sqrt(), edge.mean(dim=(2, 3)) / (area + 1e-3), high / low], dim=2)
        n = len(logits)
        whole = coarse.float().mean(dim=(2, 3))[:, None].expand(n, OUTPUTS, -1)
        which = torch.eye(OUTPUTS, device=logits.device).expand(n, OUTPUTS, OUTPUTS)
        both = torch.einsum("nkhw,nlhw->nkl", small, small) / small[0, 0].numel()
        agreed = both / (area[:, :, None] + area[:, None] - both + 1e-3)
        middles = _middles(p, prompt)
        known = torch.cat([whole, inside, border, shape, which, deep, agreed, middles], dim=2)
        return torch.sigmoid(self.score(known)[..., 0].float())


def _middles(p: Tensor, prompt: Prompt) -> Tensor:
    """(N, 4, MIDDLES): how deep the deepest and the least deep positive click lie in each mask, as
    shares of the mask's greatest depth, and that depth as a share of the map's longer side.

    Depths are of cells of stride 8: of stride 4 they take four times as long.
    """
    n, outputs = p.shape[:2]
    halved = F.avg_pool2d(p, 2)
    depths = depth((halved > 0.5).flatten(0, 1)).view_as(halved)
    most = depths.amax(dim=(2, 3))
    h, w = depths.shape[2:]
    x, y = (prompt.points / STRIDES[1]).long().unbind(dim=-1)  # (N, P)
    cells = (y.clamp(0, h - 1) * w + x.clamp(0, w - 1))[:, None].expand(n, outputs, -1)
    share = depths.flatten(2).gather(2, cells) / most[..., None].clamp(min=1)  # (N, 4, P)
    positive = (prompt.labels == 1)[:, None]
    deepest = F.pad(torch.where(positive, share, 0), (0, 1)).amax(dim=2)
    least = F.pad(torch.where(positive, share, 1), (0, 1), value=1.0).amin(dim=2)
    return torch.stack([deepest, least, most / max(h, w)], dim=2)


class Mini(nn.Module):
    """The network behind `load("mini")`."""

    mask_stride = STRIDES[0]
    fill: tuple[float, ...] = (0.0, 0.0, 0.0)
    autocast = True

    def __init__(self, config: MiniConfig = MiniConfig()) -> None:
        """Weights follow from torch's generator."""
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters of the trunk's 8 stages, first to last: what an ImageNet start brings."""
        trunk = self.encoder.trunk
        return [list(stage.parameters()) for stage in (trunk.stem, *trunk.stages)]

    def lower(self) -> None:
        """What autocast would cast for every frame to bfloat16, so with the same results."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.to(torch.bfloat16)

    def training_side(self, side: int) -> str:
        """What square images must measure, if `side` does not do; of any size are whole cells."""
        return "a multiple of 32" if side % 32 else ""

    def scale(self, frame_size: tuple[int, int]) -> float:
        """Pixels of the canvas per pixel of a frame of (H, W)."""
        return self.config.side / max(frame_size)

    def canvas(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of what a frame of (H, W) is scaled and padded to: whole cells of stride 32."""
        scale = self.scale(frame_size)
        h, w = (max(32, -(-round(side * scale) // 32) * 32) for side in frame_size)
        return h, w

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, h, w) RGB in [0, 255] to features and unit keys at strides 4, 8, 16."""
        features: tuple[Tensor, ...] = self.encoder(images)
        return features

    def keys(self, features: tuple[Tensor, ...]) -> Tensor:
        """Those of stride 8: on DAVIS they know things again better than the coarser ones."""
        return features[4]

    def decode(
        self,
        features: tuple[Tensor, ...],
        frames: Tensor | None,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor,
        mask_input: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, 4, h/4, w/4) float32 and predicted IoU (N, 4) of N prompt sets.

        Args:
            features: of `encode`.
            frames: (N,) int64, the image of each set; None: the features are those of each set.
            points: (N, P, 2) float32 (x, y), pixels of the canvas, the first being (0, 0).
            labels: (N, P) int64: 1 foreground, 0 background, -1 filler.
            boxes: (N, 4) float32 x1 y1 x2 y2, pixels of the canvas; NaN: none.
            mask_input: (N, h/4, w/4) float32 logits of an earlier call; a row of NaN: none.
        """
        prompt = Prompt(points + 0.5, labels, boxes + 0.5, mask_input)
        if frames is not None:
            features = tuple(x[frames] for x in features)
        logits, scores = self.decoder(features, prompt)
        return logits, scores
