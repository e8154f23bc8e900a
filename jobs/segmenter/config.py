"""Settings of `jobs.finetune`."""

import math
from dataclasses import dataclass, field
from typing import Literal

from jobs.run.config import MAY_CHANGE, ConfigError
from jobs.training.task import TrainingConfig
from jobs.weights.segmenter import OFFICIAL, OFFICIAL_SIDE
from masking.sam2.published import PUBLISHED
from masking.training.clips import ClipConfig
from masking.training.compose import ComposeConfig
from masking.training.pairs import PairsConfig
from masking.training.steps import PromptConfig

NOT_TRAINED = (
    "--init-weights {weights}: jobs.finetune does not train models with a memory (SAM 2.1, EdgeTAM,"
    " SAM 3's tracker); start from mini, vit_b, vit_l or vit_h, or use these weights as they are,"
    " with jobs.mask"
)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Settings of `jobs.finetune`."""

    data: tuple[str, ...] = field(metadata=MAY_CHANGE)
    """Images with masks, local or s3://: Parquet files (columns image, masks, ignore); COCO JSON
    (in S3 it must lie in the folder of its images, or in a folder `annotations` beside that); DAVIS
    folders; or the --out of a jobs.mask run whose videos still exist."""
    clips: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Videos whose masks are known, local or s3://, as folders with JPEGImages and Annotations
    (DAVIS). With them, only the part of `mini` is trained that follows objects from frame to frame:
    on these videos, and on clips that are made of --data. Clicks on single images stay as they
    are."""
    held_clips: tuple[str, ...] = ()
    """Names of videos of --clips that are held back for validation. Default: one in five."""
    val: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Images with masks for validation, local or s3://. Default: a share of --data is held back."""
    val_fraction: float = 0.03
    """Share of the data that is held back if there is no --val, but at least 8 images, or one in
    five if there are fewer than 40. Of masked videos, single frames are held back whose neighbours
    are trained on."""
    max_bad_images: int = field(default=0, metadata=MAY_CHANGE)
    """Largest number of images that may be missing, damaged, without masks or with masks of another
    size; other images take their place."""
    val_images: int = field(default=64, metadata=MAY_CHANGE)
    """Largest number of images that are measured at the end of an epoch."""
    init_weights: str = "mini"
    """Weights to start from: `mini`; `vit_b`, `vit_l`, `vit_h` (Meta's SAM, downloaded); the file
    of an earlier run or of SAM; `lite0`: mini's architecture with an ImageNet trunk, all else
    random; `scratch`: mini's architecture, all random."""
    encoder_lr: float = 0.2
    """Learning rate of the encoder's pretrained part, as a share of the decoder's; 0: frozen. The
    pretrained part is the whole encoder, with `lite0` its trunk, with `scratch` nothing."""
    frozen_stages: int = 0
    """Number of stages at the start of the encoder that are frozen; mini has 8 stages, vit_b 13."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """float32, or bfloat16 (autocast); auto: bfloat16 if the processor multiplies it, else
    float32."""
    lr: float = 1e-3
    """AdamW's peak learning rate; it falls linearly to zero."""
    weight_decay: float = 0.01
    """AdamW's weight decay for matrices and convolutions."""
    warmup_epochs: float = 0.1
    """Number of epochs over which the learning rate rises linearly; it may be a fraction."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; a larger gradient is scaled down to it. 0: no
    clipping."""
    ema_half_life: float = 2000
    """Half-life, in images, of the exponential moving average of the weights; 0: no average."""
    pairs: PairsConfig = field(default_factory=PairsConfig)
    compose: ComposeConfig = field(default_factory=ComposeConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    epochs: int = 20
    """Number of passes over the training set; the learning rate falls over all of them."""
    batch_size: int = 8
    """Number of images in the global batch, each with compose.objects prompts; or of clips."""

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the validation's metrics that the summary has."""
        return ("iou",) if self.clips else ("miou_1", "miou_3", "miou_5", "clicks_to_85")

    def __post_init__(self) -> None:
        """Check ranges, and settings against each other."""
        TrainingConfig.__post_init__(self)
        if not 0 < self.val_fraction < 1:
            raise ConfigError(
                f"--val-fraction is {self.val_fraction}; it must be above 0 and below 1"
            )
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
        self._check_weights()
        if not (0 < self.lr < math.inf and 0 <= self.encoder_lr < math.inf):
            raise ConfigError(
                f"--lr is {self.lr} and --encoder-lr {self.encoder_lr}; --lr must be above 0,"
                " --encoder-lr at least 0, both finite"
            )
        if self.held_clips and not self.clips:
            raise ConfigError("--held-clips names videos of --clips, which is missing")
        side = self.compose.size
        if 0 < self.pairs.longest < side:
            raise ConfigError(
                f"--pairs.longest is {self.pairs.longest}, less than --compose.size {side}: images"
                f" would be shrunk, then enlarged; at least {side} is needed, or 0"
            )

    def _check_weights(self) -> None:
        """Check that a training may start from `init_weights`, as far as their name tells."""
        if self.init_weights in PUBLISHED:
            raise ConfigError(NOT_TRAINED.format(weights=self.init_weights))
        if self.init_weights == "scratch" and (self.frozen_stages or not self.encoder_lr):
            raise ConfigError(
                "--init-weights scratch has no pretrained stages that could be frozen;"
                " use --frozen-stages 0, and an --encoder-lr above 0"
            )
        if self.clips and self.init_weights in OFFICIAL:
            raise ConfigError(
                f"--clips trains a part of mini, which {self.init_weights} does not have; use"
                " --init-weights mini, or leave out --clips"
            )
        side, whole = self.compose.size, OFFICIAL_SIDE
        if self.init_weights in OFFICIAL and side != whole:
            raise ConfigError(
                f"--compose.size is {side}; {self.init_weights} takes squares of {whole} pixels:"
                f" use --compose.size {whole} --pairs.longest {whole}"
            )
