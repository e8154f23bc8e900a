"""Settings of `jobs.finetune`."""

import math
from dataclasses import dataclass, field
from typing import Literal

from jobs.run.config import MAY_CHANGE, ConfigError
from jobs.training.task import TrainingConfig
from jobs.weights.segmenter import OFFICIAL, OFFICIAL_SIDE
from masking.training.compose import ComposeConfig
from masking.training.pairs import PairsConfig
from masking.training.steps import PromptConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Settings of `jobs.finetune`."""

    data: tuple[str, ...] = field(metadata=MAY_CHANGE)
    """Images with masks, local or s3://: Parquet files (columns image, masks, ignore), COCO JSON
    (in S3 in the folder of its images, or in `annotations` beside it), DAVIS folders, or the --out
    of a jobs.mask whose videos are still there."""
    val: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """The same, held back for validation; none: a share of the data is."""
    val_fraction: float = 0.03
    """Share of the data that is held back when there is no --val, but at least 8 images, of few
    one in five: images, so of masked videos frames whose neighbours are trained on."""
    max_bad_images: int = field(default=0, metadata=MAY_CHANGE)
    """Images that may be missing, not decode, have no masks or of another size; others stand in."""
    val_images: int = field(default=64, metadata=MAY_CHANGE)
    """Most images that the validation at the end of an epoch takes."""
    init_weights: str = "mini"
    """Where to start: `mini`; `vit_b`, `vit_l`, `vit_h` (SAM's own, fetched); the file of an
    earlier run or of SAM; `lite0`: mini's shape, an ImageNet trunk, all else from scratch;
    `scratch`: nothing learnt."""
    encoder_lr: float = 0.2
    """Learning rate of what of the encoder is pretrained, as a share of the decoder's; 0: frozen.
    That is all of it, of `lite0` the trunk, of `scratch` nothing."""
    frozen_stages: int = 0
    """First stages of the encoder that stay as they are: of 8 (mini), of 13 (vit_b)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """float32, or bfloat16 autocast; auto: bfloat16 where the processor multiplies it."""
    lr: float = 1e-3
    """AdamW's learning rate; falls linearly to zero."""
    weight_decay: float = 0.01
    """Of matrices and convolutions."""
    warmup_epochs: float = 0.1
    """Epochs over which the learning rate rises."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0: not clipped."""
    ema_half_life: float = 2000
    """Images after which a step's share in the averaged weights has halved; 0: no average."""
    pairs: PairsConfig = field(default_factory=PairsConfig)
    compose: ComposeConfig = field(default_factory=ComposeConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    epochs: int = 20
    """Passes over the training set; the learning rate falls over all of them."""
    batch_size: int = 8
    """Images of a global batch, each with compose.objects prompts."""

    def __post_init__(self) -> None:
        """Check what no single group shows."""
        TrainingConfig.__post_init__(self)
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"--val-fraction is {self.val_fraction}; 0 < share < 1 is needed")
        for flag, value, least in (
            ("val-images", self.val_images, 1),
            ("frozen-stages", self.frozen_stages, 0),
            ("ema-half-life", self.ema_half_life, 0),
            ("warmup-epochs", self.warmup_epochs, 0),
            ("weight-decay", self.weight_decay, 0),
            ("clip-norm", self.clip_norm, 0),
        ):
            if not value >= least:
                raise ConfigError(f"--{flag} is {value}; at least {least} is needed")
        if self.init_weights == "scratch" and (self.frozen_stages or not self.encoder_lr):
            raise ConfigError(
                "--init-weights scratch has learnt nothing that could stay as it is:"
                " --frozen-stages 0, and an --encoder-lr above 0"
            )
        if not (0 < self.lr < math.inf and 0 <= self.encoder_lr < math.inf):
            raise ConfigError(
                f"--lr is {self.lr} and --encoder-lr {self.encoder_lr}; learning rates are above 0"
            )

        side = self.compose.size
        if self.init_weights in OFFICIAL and side != OFFICIAL_SIDE:
            whole = OFFICIAL_SIDE
            raise ConfigError(
                f"--compose.size is {side}; {self.init_weights} takes squares of {whole} pixels:"
                f" --compose.size {whole} --pairs.longest {whole}"
            )
        if 0 < self.pairs.longest < side:
            raise ConfigError(
                f"--pairs.longest is {self.pairs.longest}, less than --compose.size {side}: images"
                f" would be shrunk, and then enlarged; at least {side} is needed, or 0"
            )
