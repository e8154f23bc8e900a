"""Settings of `jobs.mask`."""

from dataclasses import dataclass, field

from jobs.masks.exports import KINDS
from jobs.run.config import MAY_CHANGE, ConfigError, JobConfig
from masking.segmenter.sam import Precision
from masking.tracking.state import TrackConfig


@dataclass(frozen=True, kw_only=True)
class MaskConfig(JobConfig):
    """Settings of `jobs.mask`."""

    manifest: tuple[str, ...] = field(metadata=MAY_CHANGE)
    """Tables of clicks, local or s3://: .csv, .jsonl or .parquet."""
    root: str | None = field(default=None, metadata=MAY_CHANGE)
    """What relative uris are relative to. Default: the folder of their manifest."""
    weights: str = "mini"
    """mini, vit_b, vit_l, vit_h, or a file or a run's folder, local or s3://."""
    precision: Precision = "auto"
    """Of the encoder; auto: bfloat16 where the processor multiplies it."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """How objects are followed."""
    check: bool = field(default=False, metadata=MAY_CHANGE)
    """Only check the manifests and print what there is to do."""
    skip_invalid: bool = field(default=False, metadata=MAY_CHANGE)
    """Go on without what has faults: such videos are failed in the ledger, rows without a video are
    named in summary.json and count as failed too."""
    retry_failed: bool = field(default=False, metadata=MAY_CHANGE)
    """Try videos again that failed for a reason of their own."""
    max_failed: int = field(default=0, metadata=MAY_CHANGE)
    """Failed videos up to which the exit code is 0."""
    time_limit: float = field(default=3600.0, metadata=MAY_CHANGE)
    """Seconds that a video may take; a decoder that hangs is ended then."""
    export: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """davis, png, coco, youtube-vos, cutout, overlay: other tools' formats, of all videos done."""

    score: str | None = field(default=None, metadata=MAY_CHANGE)
    """Truth to score the masks by, local or s3://: of each video a folder of indexed PNGs under its
    id, as DAVIS has them, or of a folder an object with its masks."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        unknown = sorted(set(self.export) - set(KINDS))
        if unknown:
            raise ConfigError(f"--export {' '.join(unknown)}: expected {', '.join(KINDS)}")
        if self.time_limit <= 0:
            raise ConfigError(f"--time-limit is {self.time_limit:g}; seconds above 0 are needed")
        if self.max_failed < 0:
            raise ConfigError(f"--max-failed is {self.max_failed}; at least 0 is needed")
