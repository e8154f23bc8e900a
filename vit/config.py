"""Model, data, augmentation and optimisation as typed fields: each is declared here and only here.

Flags, YAML, `--help`, checks, the sweep's search space and the run's `config.yaml` come from these
fields. Checks across fields raise ValueError with both values.
"""

from dataclasses import dataclass
from typing import Literal


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_rates(config: object, group: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(0 <= value < 1, f"{group}.{name} is {value}; it must be at least 0 and below 1")


def _check_positive(config: object, group: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(value > 0, f"{group}.{name} is {value}; it must be above 0")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the Vision Transformer, in timm's terms."""

    image_size: int = 32
    """Side of the square input image, in pixels."""
    patch_size: int = 4
    """Side of a patch, in pixels; divides image_size."""
    embed_dim: int = 192
    """Width of the tokens."""
    depth: int = 6
    """Number of transformer blocks."""
    num_heads: int = 3
    """Attention heads; divides embed_dim."""
    mlp_ratio: float = 4.0
    """Width of the hidden layer of a block's MLP over embed_dim."""
    drop_rate: float = 0.0
    """Dropout after the position embedding, after the attention's projection and in the MLP.
    Above 0 a run is repeatable at one number of workers only."""
    attn_drop_rate: float = 0.0
    """Dropout of attention weights. Above 0 a run is repeatable at one number of workers only."""
    drop_path_rate: float = 0.0
    """Stochastic depth per sample, rising linearly from 0 at the first block to this at
    the last."""
    global_pool: Literal["token", "avg"] = "token"
    """What the head reads: a class token, or the average of the patch tokens (no class token)."""
    pos_embed: Literal["learn", "sincos2d"] = "learn"
    """Position embedding: learned, or fixed 2-D sine-cosine."""
    qk_norm: bool = False
    """LayerNorm on queries and keys, per head."""
    qkv_bias: bool = True
    """Bias in the query, key and value projections."""
    init_values: float | None = None
    """Initial value of LayerScale; none leaves LayerScale out."""
    reg_tokens: int = 0
    """Number of register tokens."""

    def __post_init__(self) -> None:
        """Check what no single field shows."""
        _check_positive(
            self,
            "model",
            "image_size",
            "patch_size",
            "embed_dim",
            "depth",
            "num_heads",
            "mlp_ratio",
        )
        _check_rates(self, "model", "drop_rate", "attn_drop_rate", "drop_path_rate")
        _check(
            self.reg_tokens >= 0, f"model.reg_tokens is {self.reg_tokens}; it must be at least 0"
        )
        _check(
            self.image_size % self.patch_size == 0,
            f"model.patch_size {self.patch_size} does not divide"
            f" model.image_size {self.image_size}",
        )
        _check(
            self.embed_dim % self.num_heads == 0,
            f"model.num_heads {self.num_heads} does not divide model.embed_dim {self.embed_dim}",
        )
        _check(
            self.pos_embed == "learn" or self.embed_dim % 4 == 0,
            f"model.pos_embed sincos2d needs a multiple of 4; model.embed_dim is {self.embed_dim}",
        )


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images; validation and test images are left as they are."""

    crop_padding: int = 4
    """Random crop: pad by so many black pixels on each side, cut the original size out; 0: off."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    policy: Literal["none", "autoaugment-cifar10"] = "none"
    """Automatic augmentation: none, or AutoAugment's policy for CIFAR-10."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(
            self.crop_padding >= 0, f"augment.crop_padding is {self.crop_padding}; it must be >= 0"
        )
        _check(0 <= self.hflip <= 1, f"augment.hflip is {self.hflip}; it must lie in 0 to 1")


@dataclass(frozen=True)
class OptimConfig:
    """Loss, AdamW and its learning-rate schedule: linear warm-up, then half a cosine."""

    lr: float = 1e-3
    """Peak learning rate, for the global batch as it is (not scaled by it)."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    warmup_epochs: float = 5.0
    """Epochs over which the learning rate rises linearly; fractions count."""
    weight_decay: float = 0.05
    """Decoupled weight decay; norms, biases, positions and tokens have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; larger ones are scaled down; 0: no clipping."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_positive(self, "optim", "lr")
        _check_rates(self, "optim", "label_smoothing")
        for name in ("min_lr", "warmup_epochs", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            _check(value >= 0, f"optim.{name} is {value}; it must be at least 0")
        _check(self.min_lr <= self.lr, f"optim.min_lr {self.min_lr} is above optim.lr {self.lr}")
        _check(
            all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas are {self.betas}; each must be at least 0 and below 1",
        )


@dataclass(frozen=True)
class DatasetConfig:
    """Which images there are, how validation is held out of them, how pixels are normalised."""

    name: Literal["digits", "cifar10", "cifar100", "imagefolder"] = "digits"
    """Data set: scikit-learn's digits (built in), CIFAR (archive, its folder, or Parquet), or a
    folder of images by class."""
    val_fraction: float = 0.1
    """Share of the training images held out for validation, the same of every class; unused where
    the data bring a validation set."""
    split_seed: int = 0
    """Seed of that split, apart from the run's seed: runs with other seeds stay comparable."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean of red, green, blue, in 0 to 1, taken off each pixel."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """What red, green, blue are then divided by, in units of 0 to 1."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(
            0 < self.val_fraction < 1,
            f"dataset.val_fraction is {self.val_fraction}; it must lie between 0 and 1",
        )
        _check(
            all(0 <= value <= 1 for value in self.mean),
            f"dataset.mean is {self.mean}; each must lie in 0 to 1",
        )
        _check(
            all(value > 0 for value in self.std),
            f"dataset.std is {self.std}; each must be above 0",
        )
