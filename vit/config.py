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
    """Side of a patch, in pixels; image_size must be a multiple of it."""
    embed_dim: int = field(default=192, metadata=swept("64..512 step 64"))
    """Number of features of a token."""
    depth: int = field(default=6, metadata=swept("2..12", by_default=True))
    """Number of transformer blocks."""
    num_heads: int = field(default=3, metadata=swept("1, 2, 3, 4, 6, 8, 12", by_default=True))
    """Number of attention heads; embed_dim must be a multiple of it."""
    mlp_ratio: float = field(default=4.0, metadata=swept("1, 2, 3, 4"))
    """Width of the hidden layer of a block's MLP, as a multiple of embed_dim."""
    drop_rate: float = 0.0
    """Dropout rate after the position embedding, after the attention's projection and in the MLP.
    If it is above 0, a run can be repeated exactly only with the same number of workers."""
    attn_drop_rate: float = 0.0
    """Dropout rate of attention weights. If it is above 0, a run can be repeated exactly only with
    the same number of workers."""
    drop_path_rate: float = field(default=0.0, metadata=swept("0..0.3"))
    """Rate of stochastic depth (per sample) at the last block; it rises linearly from 0 at the
    first block."""
    global_pool: Literal["token", "avg"] = "token"
    """What the head reads. token: a class token; avg: the average of the patch tokens (the model
    then has no class token)."""
    pos_embed: Literal["learn", "sincos2d"] = "learn"
    """Position embedding. learn: learned; sincos2d: fixed, 2-D sine-cosine."""
    qk_norm: bool = False
    """Apply LayerNorm to the queries and keys of each head."""
    qkv_bias: bool = True
    """Use a bias in the query, key and value projections."""
    init_values: float | None = None
    """Initial value of LayerScale. Default: no LayerScale."""
    reg_tokens: int = 0
    """Number of register tokens."""
    stem: Literal["patch", "conv"] = "patch"
    """How patches become tokens. patch: by one projection; conv: by a stack of 3x3 convolutions
    (Xiao et al. 2021), whose weights timm cannot load."""

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
    """Kind of random crop. pad: the image is padded, and a square of model.image_size is cut out;
    resized: a random part of the image is resized to model.image_size (RandomResizedCrop)."""
    crop_padding: int = 4
    """With crop pad: number of black pixels added on each side. At 0, images that are stored at
    model.image_size are not cropped."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """With crop resized: smallest and largest share of the image's area that is cut out."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """With crop resized: smallest and largest ratio of a crop's width to its height."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    policy: Literal[
        "none", "autoaugment-cifar10", "autoaugment-imagenet", "randaugment", "trivialaugment"
    ] = "none"
    """Policy of automatic augmentation: none, AutoAugment's for CIFAR-10 or ImageNet, RandAugment,
    or TrivialAugment (wide)."""
    randaugment_ops: int = 2
    """With RandAugment: number of operations on each image, one after the other."""
    randaugment_magnitude: int = field(default=9, metadata=swept("0..20"))
    """With RandAugment: strength of the operations, from 0 to 30."""
    erasing: float = 0.0
    """Probability of random erasing, which sets a rectangle of the normalised image to 0."""
    mixup: float = field(default=0.0, metadata=swept("0..1"))
    """Alpha of mixup's Beta distribution, from which a sample's share is drawn; 0: no mixup."""
    cutmix: float = field(default=0.0, metadata=swept("0..1"))
    """Alpha of CutMix's Beta distribution, from which the area of the box is drawn; 0: no CutMix.
    If mixup is on too, each sample gets one of the two with equal probability."""
    mix_prob: float = 1.0
    """Probability that a sample is mixed, if mixup or cutmix is on."""
    mix_until: float = 1.0
    """Share of all epochs after which samples are no longer mixed; 1: they are mixed to the end.
    Late epochs without mixing fit the data more closely."""

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
    """Course of the learning rate after the warm-up. cosine: half a cosine down to min_lr; wsd:
    constant, then linear to min_lr over `cooldown`; constant: constant to the end."""
    cooldown: float = 0.2
    """With schedule wsd: share of all steps, at the end, in which the learning rate falls."""
    min_lr: float = 0.0
    """AdamW's learning rate at the end of the schedule; Muon's falls to the same share of its
    peak."""
    warmup_epochs: float = 5.0
    """Number of epochs over which the learning rate rises linearly; it may be a fraction."""
    weight_decay: float = field(default=0.05, metadata=swept("1e-3..0.5 log"))
    """Decoupled weight decay of AdamW; norms, biases, position embeddings and tokens have none."""
    muon_weight_decay: float = 0.05
    """Decoupled weight decay of Muon: each step reduces its matrices by this value times Muon's
    learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's beta1 and beta2."""
    layer_decay: float = field(default=1.0, metadata=swept("0.6..1"))
    """Factor by which the learning rate falls from each block to the one before it; 1: it is the
    same for all. Values below 1 are for fine-tuning (BEiT)."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; a larger gradient is scaled down to it. 0: no
    clipping."""
    label_smoothing: float = field(default=0.1, metadata=swept("0..0.2"))
    """Share of the target that is spread evenly over all classes, before samples are mixed."""
    accumulate: int = field(default=1, metadata=_MAY_CHANGE)
    """Number of parts into which a worker's batch is split to save memory; their gradients are
    accumulated."""
    ema_half_life: float = 0.0
    """Half-life, in samples, of the exponential moving average of the weights; 0: no average. The
    averaged weights are evaluated too, choose the best checkpoint, and are exported."""

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
    """The data set: scikit-learn's digits (built in); CIFAR (its archive, the unpacked folder, or
    Parquet); a folder of images with a folder for each class; or Parquet shards of encoded images
    and labels."""
    store_size: int | None = None
    """Side, in pixels, of decoded images, from which crops are cut. Default: model.image_size."""
    cache_gb: float = field(default=16.0, metadata=_MAY_CHANGE)
    """Largest size, in GiB, of the cache of decoded images on each node. If all images need more,
    none are cached: they are decoded for each batch, ahead of the training."""
    max_bad_images: int = field(default=0, metadata=_MAY_CHANGE)
    """Largest number of images that may fail to decode; they are named and left out. More of them
    end the job."""
    val_fraction: float = 0.1
    """Share of each class's training images that is held out for validation; unused if the data
    have a validation set."""
    split_seed: int = 0
    """Seed of the split into training and validation images. It is separate from --seed, so that
    runs with different seeds stay comparable."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Means of red, green and blue, on a scale of 0 to 1, which are subtracted from each pixel."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Standard deviations of red, green and blue, on a scale of 0 to 1, by which each pixel is then
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
