"""A plain Vision Transformer, top to bottom, with timm's parameter names.

Shapes:
    B: images of a batch
    S: side of an image in pixels, P: side of a patch
    N = (S / P)**2: patches of an image, row by row from the top left
    T = prefix + N: tokens; the prefix is the class token (if any), then the registers
    D: width of a token, H: attention heads, L: blocks, C: classes

After Dosovitskiy et al. 2021 (arXiv 2010.11929), pre-norm, exact GELU, LayerNorm eps 1e-6; options
as in timm. `VisionTransformer(config, C).state_dict()` loads with `strict=True`, and back, into

    timm.models.vision_transformer.VisionTransformer(
        img_size=S, patch_size=P, embed_dim=D, depth=L, num_heads=H, num_classes=C,
        mlp_ratio=..., qkv_bias=..., qk_norm=..., init_values=..., reg_tokens=...,
        pos_drop_rate=drop_rate, proj_drop_rate=drop_rate, attn_drop_rate=..., drop_path_rate=...,
        global_pool=global_pool, class_token=global_pool == "token",
    )

where all else is timm's default: `no_embed_class=False`, so that `pos_embed` has a row for each
prefix token too; its `drop_rate`, dropout before the head, stays 0. Fixed sine-cosine positions
are what timm's learned `pos_embed` then holds. A convolutional stem is not timm's: under
`patch_embed.` it has other weights.
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
    "evaluation_batch",
    "flops",
    "mlp_width",
    "num_patches",
    "num_prefix_tokens",
    "outline",
    "sincos_2d",
]

_CHANNELS = 3  # RGB
_NORM_EPS = 1e-6


def num_patches(config: ModelConfig) -> int:
    """N: patches of an image."""
    return (config.image_size // config.patch_size) ** 2


def evaluation_batch(config: ModelConfig) -> int:
    """Images that go through the model at a time where nothing is learnt: up to 512, of up to
    32,768 patches, which keep a device busy; more would only take more memory."""
    return max(1, min(512, 2**15 // num_patches(config)))


def num_prefix_tokens(config: ModelConfig) -> int:
    """Tokens before the patches: class token, registers."""
    return int(config.global_pool == "token") + config.reg_tokens


def mlp_width(config: ModelConfig) -> int:
    """Width of the hidden layer of a block's MLP, rounded down."""
    return int(config.embed_dim * config.mlp_ratio)


def sincos_2d(side: int, dim: int) -> Tensor:
    """Fixed sine-cosine positions of a square grid, as in big_vision (after MoCo v3).

    A quarter of the features each: sin x, cos x, sin y, cos y, where x is a patch's column and y
    its row, at frequencies that fall geometrically from 1 to 1/10,000.

    Args:
        side: patches along a side of the grid.
        dim: features, a multiple of 4.

    Returns:
        (side * side, dim) float32, row by row.
    """
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    exponent = torch.arange(dim // 4, dtype=torch.float64) / max(1, dim // 4 - 1)
    angles = [axis.reshape(-1, 1) * 10_000.0**-exponent for axis in (x, y)]
    return torch.cat([wave(a) for a in angles for wave in (torch.sin, torch.cos)], dim=1).float()


def drop_path_factors(draws: Tensor, rate: float) -> Tensor:
    """What each sample's residual branches are multiplied by: 0, or 1 / (probability to keep).

    Stochastic depth (Huang et al. 2016, arXiv 1603.09382), per sample, at rates rising linearly
    from 0 at the first block to `rate` at the last.

    Args:
        draws: (2L, B) float in [0, 1): attention of block 0, MLP of block 0, attention of block 1,
            ... A branch is dropped where its draw lies below the block's rate.
        rate: rate of the last block, in [0, 1).

    Returns:
        (L, 2, B, 1, 1), of the draws' dtype and device.
    """
    depth = draws.shape[0] // 2
    rates = torch.linspace(0, rate, depth, dtype=draws.dtype, device=draws.device)[:, None, None]
    kept = draws.unflatten(0, (depth, 2)) >= rates
    return (kept / (1 - rates))[..., None, None]


class PatchEmbed(nn.Module):
    """Cuts images into patches and projects each: (B, 3, S, S) to (B, N, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(_CHANNELS, config.embed_dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


def _stem_widths(config: ModelConfig) -> list[int]:
    """Channels before, between and after the convolutions of a stem."""
    steps = config.patch_size.bit_length() - 1
    return [_CHANNELS, *(config.embed_dim >> (steps - 1 - i) for i in range(steps))]


class ConvStem(nn.Module):
    """Stacked 3x3 convolutions of stride 2, then a projection: (B, 3, S, S) to (B, N, D).

    After Xiao et al. 2021 (arXiv 2106.14881), without batch norm, whose statistics would hang on
    the number of workers. The width doubles up to D as the side halves down to S / P.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(_stem_widths(config)):
            layers += [nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1), nn.GELU()]
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Conv2d(config.embed_dim, config.embed_dim, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(self.convs(images)).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention: (B, T, D) to (B, T, D)."""

    fused = True
    """Through torch's fused kernel, which never holds the (B, H, T, T) weights. In bfloat16 on
    CPUs its backward is slow: with few tokens the plain products are then faster."""

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
            x = F.dropout(weights.to(v.dtype), dropout) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Two layers with a GELU between them, on each token alone: (B, T, D) to (B, T, D)."""

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


class Block(nn.Module):
    """Attention, then MLP, each normed first, scaled and added: (B, T, D) to (B, T, D)."""

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


class VisionTransformer(nn.Module):
    """Classifier of square RGB images: (B, 3, S, S) float to logits (B, C)."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        """Build with initial weights from torch's default generator; see `build` for a seed."""
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
        """Tokens after the last block, (B, T, D), normed unless they are averaged first.

        Arguments and errors as of `forward`.
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
        """Logits (B, C) of tokens (B, T, D): of the class token, or of the patches' average."""
        averages = self.config.global_pool == "avg"
        pooled = x[:, num_prefix_tokens(self.config) :].mean(dim=1) if averages else x[:, 0]
        return self.head(self.fc_norm(pooled))

    def forward(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Logits of images.

        Args:
            images: (B, 3, S, S) float, normalised, on the model's device.
            drop_path: (2L, B) float32 uniform in [0, 1), there too: the draws of
                `drop_path_factors`, made by the caller so that they hang on the sample and the
                step, not on what was drawn before. None, or evaluation: nothing is dropped.

        Returns:
            (B, C) float: the logits.

        Raises:
            ValueError: images or draws are of another shape.
        """
        return self.forward_head(self.forward_features(images, drop_path))

    def _check(self, images: Tensor, drop_path: Tensor | None) -> None:
        side, draws = self.config.image_size, 2 * self.config.depth
        if images.ndim != 4 or images.shape[1:] != (_CHANNELS, side, side):
            raise ValueError(
                f"images have shape {tuple(images.shape)}; model.image_size {side} needs "
                f"(batch, {_CHANNELS}, {side}, {side})"
            )
        if drop_path is not None and drop_path.shape != (draws, len(images)):
            raise ValueError(
                f"drop_path has shape {tuple(drop_path.shape)}; model.depth {self.config.depth} "
                f"and {len(images)} images need ({draws}, {len(images)})"
            )


def build(config: ModelConfig, num_classes: int, seed: int) -> VisionTransformer:
    """A model on the CPU whose initial weights are a function of `seed` and its shape alone.

    Leaves every global generator as it was: torch.manual_seed would seed the GPUs' too.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return VisionTransformer(config, num_classes)


def outline(config: ModelConfig, num_classes: int) -> VisionTransformer:
    """A model without numbers, on torch's meta device: its shapes."""
    with torch.device("meta"):
        return VisionTransformer(config, num_classes)


def flops(config: ModelConfig, num_classes: int) -> int:
    """Floating-point operations of a forward pass, per image.

    A multiply-add counts as two; norms, GELU, softmax and other elementwise work as none. A
    training step takes about three times as many.
    """
    dim, patches = config.embed_dim, num_patches(config)
    tokens = num_prefix_tokens(config) + patches
    projections = tokens * (4 * dim * dim + 2 * dim * mlp_width(config))
    attention = 2 * tokens * tokens * dim
    stem = patches * _CHANNELS * config.patch_size**2 * dim
    if config.stem == "conv":
        widths = _stem_widths(config)
        pixels = [config.image_size**2 >> (2 * i) for i in range(1, len(widths))]
        convs = zip(pixels, itertools.pairwise(widths), strict=True)
        stem = patches * dim * dim + sum(n * 9 * before * after for n, (before, after) in convs)
    return 2 * (stem + config.depth * (projections + attention) + dim * num_classes)


def _layer_scale(config: ModelConfig) -> nn.Module:
    if config.init_values is None:
        return nn.Identity()
    return LayerScale(config.embed_dim, config.init_values)
