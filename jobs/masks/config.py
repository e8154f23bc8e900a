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
    """Folder that relative uris are resolved against. Default: the folder of their manifest."""
    weights: str = "mini"
    """mini, vit_b, vit_l, vit_h, or a file or a run's folder, local or s3://."""
    precision: Precision = "auto"
    """Precision of the encoder; auto: bfloat16 if the device has instructions for it."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Settings of the tracker."""
    check: bool = field(default=False, metadata=MAY_CHANGE)
    """Check the manifests, print what there is to do, and exit."""
    skip_invalid: bool = field(default=False, metadata=MAY_CHANGE)
    """Continue without the videos that have faults. They are in videos.parquet as failed; faulty
    rows that name no video are in summary.json and count as failed, too."""
    retry_failed: bool = field(default=False, metadata=MAY_CHANGE)
    """Try videos again that failed because of their file or their prompts."""
    max_failed: int = field(default=0, metadata=MAY_CHANGE)
    """Largest number of failed videos with which the exit code is 0."""
    time_limit: float = field(default=3600.0, metadata=MAY_CHANGE)
    """Seconds that a video may take; after them its worker is ended and the video fails."""
    export: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Formats to export all masked videos to: davis, png, coco, youtube-vos, cutout, overlay."""
    score: str | None = field(default=None, metadata=MAY_CHANGE)
    """Folder of true masks to score the masks against, local or s3://. It has a folder for each
    video, named by its id, with indexed PNGs as in DAVIS, or with a folder of PNGs per object."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        unknown = sorted(set(self.export) - set(KINDS))
        if unknown:
            raise ConfigError(f"--export {' '.join(unknown)}: expected {', '.join(KINDS)}")
        if self.time_limit <= 0:
            raise ConfigError(f"--time-limit is {self.time_limit:g}; expected seconds above 0")
        if self.max_failed < 0:
            raise ConfigError(f"--max-failed is {self.max_failed}; expected at least 0")
