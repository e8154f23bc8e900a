"""Settings of model, data, augmentation and optimisation, each declared here and only here.

Flags, YAML, `--help`, checks, the sweep's search space and the run's `config.yaml` come from these
fields. A check across fields raises ValueError with both values.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

_MAY_CHANGE = {"may_change": True}
"""Metadata of settings that a resumed run may change (`jobs.run.config`): memory, not results."""


def swept(bounds: str, by_default: bool = False) -> dict[str, Any]:
    """Metadata of a field that a sweep may vary within `bounds`, as `vit.search` reads them."""
    return {"sweep": {"bounds": bounds, "by_default": by_default}}


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
    """Side of a patch, in pixels; it divides image_size."""
    embed_dim: int = field(default=192, metadata=swept("64..512 step 64"))
    """Features of a token."""
    depth: int = field(default=6, metadata=swept("2..12", by_default=True))
    """Number of transformer blocks."""
    num_heads: int = field(default=3, metadata=swept("1, 2, 3, 4, 6, 8, 12", by_default=True))
    """Number of attention heads; it divides embed_dim."""
    mlp_ratio: float = field(default=4.0, metadata=swept("1, 2, 3, 4"))
    """Width of the hidden layer of a block's MLP, as a multiple of embed_dim."""
    drop_rate: float = 0.0
    """Dropout after the position embedding, after the attention's projection and in the MLP.
    Above 0, a run can be repeated only with the same number of workers."""
    attn_drop_rate: float = 0.0
    """Dropout of attention weights. Above 0, a run can be repeated only with the same number of
    workers."""
    drop_path_rate: float = field(default=0.0, metadata=swept("0..0.3"))
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
    """Initial value of LayerScale; none: no LayerScale."""
    reg_tokens: int = 0
    """Number of register tokens."""
    stem: Literal["patch", "conv"] = "patch"
    """How patches become tokens: one projection, or a stack of 3x3 convolutions (Xiao et al. 2021),
    whose weights timm cannot load."""

    def __post_init__(self) -> None:
        """Check the fields, by themselves and against each other."""
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
            f"model.embed_dim is {self.embed_dim}; model.pos_embed sincos2d needs a multiple of 4",
        )
        halvings = self.patch_size.bit_length() - 1
        _check(
            self.stem == "patch" or (self.patch_size == 2**halvings and self.patch_size > 1),
            f"model.patch_size is {self.patch_size}; model.stem conv halves the image step by step"
            " and needs 2, 4, 8, 16 or 32",
        )
        _check(
            self.stem == "patch" or self.embed_dim % (self.patch_size // 2) == 0,
            f"model.embed_dim is {self.embed_dim}; model.stem conv doubles its width step by step"
            f" and needs a multiple of {self.patch_size // 2} at model.patch_size"
            f" {self.patch_size}",
        )


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images; validation and test images are only cut to their centre."""

    crop: Literal["pad", "resized"] = "pad"
    """Random crop. pad: the image is padded and a square of model.image_size cut out; resized: a
    random part of the image is resized to model.image_size (RandomResizedCrop)."""
    crop_padding: int = 4
    """Crop pad: black pixels added on each side. At 0 nothing is cropped if images are stored at
    model.image_size."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Crop resized: smallest and largest share of the image's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Crop resized: smallest and largest ratio of width to height."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    policy: Literal[
        "none", "autoaugment-cifar10", "autoaugment-imagenet", "randaugment", "trivialaugment"
    ] = "none"
    """Automatic augmentation: none; AutoAugment's policy for CIFAR-10 or ImageNet; RandAugment;
    TrivialAugment (wide)."""
    randaugment_ops: int = 2
    """RandAugment: number of operations, one after the other."""
    randaugment_magnitude: int = field(default=9, metadata=swept("0..20"))
    """RandAugment: strength, 0 to 30."""
    erasing: float = 0.0
    """Probability of random erasing, which sets a rectangle of the normalised image to 0."""
    mixup: float = field(default=0.0, metadata=swept("0..1"))
    """Mixup: alpha of the Beta distribution from which a sample's share is drawn; 0: off."""
    cutmix: float = field(default=0.0, metadata=swept("0..1"))
    """CutMix: alpha of the Beta distribution from which the area is drawn; 0: off. With mixup on,
    too, each sample gets one of the two at even odds."""
    mix_prob: float = 1.0
    """Probability that a sample is mixed, where mixup or cutmix is on."""
    mix_until: float = 1.0
    """Share of the epochs after which mixing ends: late epochs without it fit the data more
    closely."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("crop_padding", "mixup", "cutmix"):
            value = getattr(self, name)
            _check(value >= 0, f"augment.{name} is {value}; it must be at least 0")
        for name in ("hflip", "erasing", "mix_prob", "mix_until"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"augment.{name} is {value}; it must lie in 0 to 1")
        for name, most in (("crop_scale", 1.0), ("crop_ratio", float("inf"))):
            low, high = getattr(self, name)
            _check(
                0 < low <= high <= most,
                f"augment.{name} is {low} to {high}; it must rise and lie above 0"
                + (", up to 1" if most == 1 else ""),
            )
        _check(
            self.randaugment_ops >= 1,
            f"augment.randaugment_ops is {self.randaugment_ops}; it must be at least 1",
        )
        _check(
            0 <= self.randaugment_magnitude <= 30,
            f"augment.randaugment_magnitude is {self.randaugment_magnitude};"
            " it must lie in 0 to 30",
        )

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed with each other."""
        return self.mix_prob > 0 and max(self.mixup, self.cutmix) > 0


@dataclass(frozen=True)
class OptimConfig:
    """Loss, optimizer, schedule of the learning rate, average of the weights."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw: AdamW for all parameters; muon: Muon for the matrices of the blocks, AdamW for the
    rest."""
    lr: float = field(default=1e-3, metadata=swept("1e-4..1e-2 log", by_default=True))
    """Peak learning rate of AdamW; it is not scaled by the size of the global batch."""
    muon_lr: float = field(default=0.02, metadata=swept("3e-3..6e-2 log"))
    """Peak learning rate of Muon."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Learning rate after the warm-up. cosine: half a cosine down to min_lr; wsd: constant, then
    linear to min_lr over `cooldown`; constant: constant to the end."""
    cooldown: float = 0.2
    """Schedule wsd: share of all steps in which the learning rate falls."""
    min_lr: float = 0.0
    """AdamW's learning rate at the end of the schedule; Muon's falls to the same share of its
    peak."""
    warmup_epochs: float = 5.0
    """Epochs over which the learning rate rises linearly; may be a fraction."""
    weight_decay: float = field(default=0.05, metadata=swept("1e-3..0.5 log"))
    """Decoupled weight decay of AdamW; norms, biases, positions and tokens have none."""
    muon_weight_decay: float = 0.05
    """Decoupled weight decay of Muon's matrices: a step subtracts muon_lr times this share."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and the second moment."""
    layer_decay: float = field(default=1.0, metadata=swept("0.6..1"))
    """Factor by which the learning rate falls from each block to the one before it; below 1 for
    fine-tuning (BEiT)."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; a larger gradient is scaled down; 0: no clipping."""
    label_smoothing: float = field(default=0.1, metadata=swept("0..0.2"))
    """Share of the target that is spread evenly over all classes, before samples are mixed."""
    accumulate: int = field(default=1, metadata=_MAY_CHANGE)
    """Number of parts in which a worker's batch goes through the model, to save memory."""
    ema_half_life: float = 0.0
    """Average of the weights over steps: samples after which a step's share has halved; 0: none.
    The average is evaluated too; checkpoints are chosen by it, and it is exported."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_positive(self, "optim", "lr", "muon_lr", "accumulate")
        _check_rates(self, "optim", "label_smoothing")
        nonnegative = (
            *("min_lr", "warmup_epochs", "weight_decay", "muon_weight_decay", "clip_norm"),
            "ema_half_life",
        )
        for name in nonnegative:
            value = getattr(self, name)
            _check(value >= 0, f"optim.{name} is {value}; it must be at least 0")
        for name in ("layer_decay", "cooldown"):
            value = getattr(self, name)
            _check(0 < value <= 1, f"optim.{name} is {value}; it must be above 0 and at most 1")
        _check(self.min_lr <= self.lr, f"optim.min_lr {self.min_lr} is above optim.lr {self.lr}")
        _check(
            all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas are {self.betas}; each must be at least 0 and below 1",
        )


@dataclass(frozen=True)
class DatasetConfig:
    """The data set, its validation split, and the normalisation of pixels."""

    name: Literal["digits", "cifar10", "cifar100", "imagefolder", "parquet"] = "digits"
    """The data set: scikit-learn's digits (built in), CIFAR (archive, its folder, or Parquet), a
    folder of images by class, or Parquet shards of encoded images and labels."""
    store_size: int | None = None
    """Side in pixels of decoded images, from which crops are cut; none: model.image_size."""
    cache_gb: float = field(default=16.0, metadata=_MAY_CHANGE)
    """Decoded images are kept, once a node, if all of them take no more than this many GiB; else
    they are decoded for each batch, ahead of the training."""
    max_bad_images: int = field(default=0, metadata=_MAY_CHANGE)
    """Largest number of images that may fail to decode; they are named and left out."""
    val_fraction: float = 0.1
    """Share of the training images held out for validation, the same of every class; unused where
    the data have a validation set of their own."""
    split_seed: int = 0
    """Seed of that split. It is not the run's seed, so that runs with other seeds stay
    comparable."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Means of red, green and blue, in units of 0 to 1, subtracted from each pixel."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Standard deviations of red, green and blue, in units of 0 to 1, by which pixels are then
    divided."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.store_size is not None:
            _check_positive(self, "dataset", "store_size")
        _check(
            self.cache_gb >= 0 and self.max_bad_images >= 0,
            f"dataset.cache_gb is {self.cache_gb} and dataset.max_bad_images"
            f" {self.max_bad_images}; each must be at least 0",
        )
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
