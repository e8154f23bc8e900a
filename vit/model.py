"""A plain Vision Transformer, top to bottom, with timm's parameter names.

Shapes:
    B: images of a batch
    S: side of an image in pixels, P: side of a patch
    N = (S / P)**2: patches of an image, row by row from the top left
    T = prefix + N: tokens; the prefix is the class token (if any), then the registers
    D: width of a token, H: attention heads, L: blocks, C: classes

The model is that of Dosovitskiy et al. 2021 (arXiv 2010.11929): pre-norm, exact GELU, LayerNorm
eps 1e-6, timm's options. A `state_dict` loads with `strict=True`, both ways, between
`VisionTransformer(config, C)` and

    timm.models.vision_transformer.VisionTransformer(
        img_size=S, patch_size=P, embed_dim=D, depth=L, num_heads=H, num_classes=C,
        mlp_ratio=..., qkv_bias=..., qk_norm=..., init_values=..., reg_tokens=...,
        pos_drop_rate=drop_rate, proj_drop_rate=drop_rate, attn_drop_rate=..., drop_path_rate=...,
        global_pool=global_pool, class_token=global_pool == "token",
    )

with timm's default for everything else: `no_embed_class=False` gives `pos_embed` a row for each
prefix token too, and `drop_rate`, dropout before the head, stays 0. Fixed sine-cosine positions go
into timm's learned `pos_embed`. timm has no convolutional stem: its weights under `patch_embed.`
are our own.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.config import ModelConfig

__all__ = [
    "VisionTransformer",
    "build",
    "drop_path_factors",
    "mlp_width",
    "num_patches",
    "num_prefix_tokens",
    "outline",
    "sincos_2d",
    "stem_widths",
]

CHANNELS = 3
"""Channels of an image: red, green, blue."""
_NORM_EPS = 1e-6


def num_patches(config: ModelConfig) -> int:
    """The number of patches of an image, N."""
    return (config.image_size // config.patch_size) ** 2


def num_prefix_tokens(config: ModelConfig) -> int:
    """The number of tokens before the patches: class token and registers."""
    return int(config.global_pool == "token") + config.reg_tokens


def mlp_width(config: ModelConfig) -> int:
    """The width of the hidden layer of a block's MLP, rounded down."""
    return int(config.embed_dim * config.mlp_ratio)


class PatchEmbed(nn.Module):
    """Cuts images into patches and projects each: (B, 3, S, S) to (B, N, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(CHANNELS, config.embed_dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        x = self.proj(images)  # (B, D, S / P, S / P)
        return x.flatten(2).transpose(1, 2)  # (B, N, D)


def stem_widths(config: ModelConfig) -> list[int]:
    """Channels of the image, then after each convolution of a stem; the last is D."""
    steps = config.patch_size.bit_length() - 1
    return [CHANNELS, *(config.embed_dim >> (steps - 1 - i) for i in range(steps))]


class ConvStem(nn.Module):
    """Stacked 3x3 convolutions of stride 2, then a projection: (B, 3, S, S) to (B, N, D).

    After Xiao et al. 2021 (arXiv 2106.14881), without batch norm, whose statistics would depend on
    the number of workers. The width doubles up to D as the side halves down to S / P.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(stem_widths(config)):
            layers += [nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1), nn.GELU()]
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Conv2d(config.embed_dim, config.embed_dim, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.proj(self.convs(images))  # (B, D, S / P, S / P)
        return x.flatten(2).transpose(1, 2)  # (B, N, D)


def sincos_2d(side: int, dim: int) -> Tensor:
    """Fixed sine-cosine positions of a square grid, as in big_vision (after MoCo v3).

    Four quarters of the features hold sin x, cos x, sin y and cos y, where x is a patch's column
    and y its row, at frequencies that fall geometrically from 1 to 1/10,000.

    Args:
        side: patches along a side of the grid.
        dim: features, a multiple of 4.

    Returns:
        (side * side, dim) float32, row by row from the top left.
    """
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    exponent = torch.arange(dim // 4, dtype=torch.float64) / max(1, dim // 4 - 1)
    angles = [axis.reshape(-1, 1) * 10_000.0**-exponent for axis in (x, y)]
    return torch.cat([wave(a) for a in angles for wave in (torch.sin, torch.cos)], dim=1).float()


class Attention(nn.Module):
    """Multi-head self-attention: (B, T, D) to (B, T, D)."""

    fused = True
    """Whether torch's fused kernel is used, which never holds the (B, H, T, T) weights. On CPUs
    its backward pass in bfloat16 is slow: with few tokens plain products are faster there."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, self.num_heads = config.embed_dim, config.num_heads
        head_dim = dim // config.num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.q_norm = nn.LayerNorm(head_dim, eps=_NORM_EPS) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim, eps=_NORM_EPS) if config.qk_norm else nn.Identity()
        self.attn_drop_rate = config.attn_drop_rate
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # (B, T, 3, H, D/H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        dropout = self.attn_drop_rate if self.training else 0.0
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        else:
            weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)).softmax(dim=3)
            x = F.dropout(weights.to(v.dtype), dropout) @ v  # (B, H, T, D/H)
        x = x.transpose(1, 2).flatten(2)  # (B, T, D)
        return self.proj_drop(self.proj(x))


class Mlp(nn.Module):
    """Two layers with a GELU between them, for each token by itself: (B, T, D) to (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = mlp_width(config)
        self.fc1 = nn.Linear(config.embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, config.embed_dim)
        self.drop = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class LayerScale(nn.Module):
    """A learned factor per feature (CaiT, arXiv 2103.17239)."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(init_value * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def _layer_scale(config: ModelConfig) -> nn.Module:
    if config.init_values is None:
        return nn.Identity()
    return LayerScale(config.embed_dim, config.init_values)


class Block(nn.Module):
    """Attention and MLP, each after a norm and added to its input: (B, T, D) to (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=_NORM_EPS)
        self.attn = Attention(config)
        self.ls1 = _layer_scale(config)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=_NORM_EPS)
        self.mlp = Mlp(config)
        self.ls2 = _layer_scale(config)

    def forward(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """Add both branches to x, (B, T, D), each times its row of `factors`, (2, B, 1, 1)."""
        branch = self.ls1(self.attn(self.norm1(x)))
        x = x + (branch if factors is None else branch * factors[0])
        branch = self.ls2(self.mlp(self.norm2(x)))
        return x + (branch if factors is None else branch * factors[1])


def drop_path_factors(draws: Tensor, rate: float) -> Tensor:
    """Factors for each sample's residual branches: 0, or 1 / (probability to keep).

    This is stochastic depth (Huang et al. 2016, arXiv 1603.09382), per sample, at rates that rise
    linearly from 0 at the first block to `rate` at the last.

    Args:
        draws: (2L, B) float in [0, 1): for the attention of block 0, the MLP of block 0, the
            attention of block 1, ... A draw below the block's rate drops the branch.
        rate: rate of the last block, in [0, 1).

    Returns:
        (L, 2, B, 1, 1) of the dtype and on the device of `draws`.
    """
    depth = draws.shape[0] // 2
    rates = torch.linspace(0, rate, depth, dtype=draws.dtype, device=draws.device)[:, None, None]
    kept = draws.unflatten(0, (depth, 2)) >= rates
    return (kept / (1 - rates))[..., None, None]


class VisionTransformer(nn.Module):
    """Classifier of square RGB images: (B, 3, S, S) float to logits (B, C)."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        """Draw initial weights from torch's default generator; `build` takes a seed."""
        super().__init__()
        self.config = config
        dim = config.embed_dim
        averages = config.global_pool == "avg"
        self.patch_embed = (ConvStem if config.stem == "conv" else PatchEmbed)(config)
        self.cls_token = None if averages else nn.Parameter(torch.empty(1, 1, dim))
        self.reg_token = (
            nn.Parameter(torch.empty(1, config.reg_tokens, dim)) if config.reg_tokens else None
        )
        self.pos_embed = nn.Parameter(
            torch.empty(1, num_prefix_tokens(config) + num_patches(config), dim),
            requires_grad=config.pos_embed == "learn",
        )
        self.pos_drop = nn.Dropout(config.drop_rate)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.Identity() if averages else nn.LayerNorm(dim, eps=_NORM_EPS)
        self.fc_norm = nn.LayerNorm(dim, eps=_NORM_EPS) if averages else nn.Identity()
        self.head = nn.Linear(dim, num_classes)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Draw timm's default initial weights; torch's own for the stem's convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        if self.config.pos_embed == "learn":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        else:
            prefix = num_prefix_tokens(self.config)
            self.pos_embed[:, :prefix] = 0
            side = self.config.image_size // self.config.patch_size
            self.pos_embed[:, prefix:] = sincos_2d(side, self.config.embed_dim)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: biases, norms, scales, positions, tokens."""
        tokens = {"pos_embed", "cls_token", "reg_token"}
        return {name for name, p in self.named_parameters() if p.ndim <= 1 or name in tokens}

    def forward_features(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Tokens after the last block, (B, T, D), normed unless the head averages them.

        Takes the arguments of `forward` and raises its errors.
        """
        self._check(images, drop_path)
        x = self.patch_embed(images)  # (B, N, D)
        prefix = [
            t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None
        ]
        x = self.pos_drop(torch.cat([*prefix, x], dim=1) + self.pos_embed)  # (B, T, D)
        factors: Tensor | list[None] = [None] * self.config.depth
        if self.training and drop_path is not None:
            factors = drop_path_factors(drop_path, self.config.drop_path_rate)
        for block, factor in zip(self.blocks, factors, strict=True):
            x = block(x, factor)
        return self.norm(x)

    def forward_head(self, x: Tensor) -> Tensor:
        """Logits (B, C) from tokens (B, T, D): the class token, or the average of the patches."""
        averages = self.config.global_pool == "avg"
        pooled = x[:, num_prefix_tokens(self.config) :].mean(dim=1) if averages else x[:, 0]
        return self.head(self.fc_norm(pooled))

    def forward(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Compute the logits of images.

        Args:
            images: (B, 3, S, S) float, normalised, on the model's device.
            drop_path: (2L, B) float32 uniform in [0, 1), on the same device: the draws of
                `drop_path_factors`. The caller makes them, so that they depend on the sample and
                the step, not on earlier draws. None, or evaluation: nothing is dropped.

        Returns:
            (B, C) float: the logits.

        Raises:
            ValueError: images or draws have another shape.
        """
        return self.forward_head(self.forward_features(images, drop_path))

    def _check(self, images: Tensor, drop_path: Tensor | None) -> None:
        side, draws = self.config.image_size, 2 * self.config.depth
        if images.ndim != 4 or images.shape[1:] != (CHANNELS, side, side):
            raise ValueError(
                f"images have shape {tuple(images.shape)}; model.image_size {side} needs "
                f"(batch, {CHANNELS}, {side}, {side})"
            )
        if drop_path is not None and drop_path.shape != (draws, len(images)):
            raise ValueError(
                f"drop_path has shape {tuple(drop_path.shape)}; model.depth {self.config.depth} "
                f"and {len(images)} images need ({draws}, {len(images)})"
            )


def build(config: ModelConfig, num_classes: int, seed: int) -> VisionTransformer:
    """Build a model on the CPU whose initial weights depend on `seed` and its shape only.

    Every global generator stays as it was; torch.manual_seed would also seed those of the GPUs.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return VisionTransformer(config, num_classes)


def outline(config: ModelConfig, num_classes: int) -> VisionTransformer:
    """Build a model on torch's meta device, which has shapes but no numbers."""
    with torch.device("meta"):
        return VisionTransformer(config, num_classes)
