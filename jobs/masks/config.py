"""Settings of `jobs.mask`."""

from dataclasses import dataclass, field

from jobs.masks.crops import CropExportConfig
from jobs.masks.exports import KINDS
from jobs.run.config import MAY_CHANGE, ConfigError, JobConfig
from masking.outputs.polish import PolishConfig
from masking.segmenter.sam import Precision
from masking.tracking.state import TrackConfig


@dataclass(frozen=True, kw_only=True)
class MaskConfig(JobConfig):
    """Settings of `jobs.mask`."""

    manifest: tuple[str, ...] = field(metadata=MAY_CHANGE)
    """Manifests, which are tables of clicks, local or s3://: .csv, .jsonl or .parquet."""
    root: str | None = field(default=None, metadata=MAY_CHANGE)
    """Folder to which relative uris refer. Default: the folder of their manifest."""
    weights: str = "mini"
    """Weights of the segmenter: mini, vit_b, vit_l, vit_h, sam2.1-tiny, sam2.1-small,
    sam2.1-base-plus, sam2.1-large, edgetam, sam3-tracker; or a file or folder of weights, or a
    run's folder, local or s3://."""
    precision: Precision = "auto"
    """Precision of the encoder; auto: bfloat16 if the device has instructions for it, else
    float32."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Settings of the tracker."""
    polish: PolishConfig = field(default_factory=PolishConfig, metadata=MAY_CHANGE)
    """How masks are polished before they are written. After a change the videos are masked again.
    """
    check: bool = field(default=False, metadata=MAY_CHANGE)
    """Only check the manifests, print what there is to do, and exit."""
    skip_invalid: bool = field(default=False, metadata=MAY_CHANGE)
    """Mask the videos without faults. Those with faults are in videos.parquet as failed; faulty
    rows that name no video are in summary.json and count as failed videos. Default: a fault ends
    the job before it starts."""
    retry_failed: bool = field(default=False, metadata=MAY_CHANGE)
    """Mask all failed videos again. Default: only those whose failure may not be due to the video
    (storage, memory, a missing file)."""
    max_failed: int = field(default=0, metadata=MAY_CHANGE)
    """Largest number of failed videos at which the exit code is still 0."""
    time_limit: float = field(default=3600.0, metadata=MAY_CHANGE)
    """Largest number of seconds that a video may take; then its worker is ended and the video
    counts as failed."""
    export: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Formats to export all masked videos to: davis, png, coco, coco-polygons, youtube-vos, yolo,
    cvat, cvat-polygons, label-studio, mot, cutout, overlay, blur, pixelate, crops."""
    export_frames: bool = field(default=False, metadata=MAY_CHANGE)
    """Write the frames themselves beside the exports: for YOLO and MOT in their folders of images,
    otherwise in export/frames/VIDEO_ID."""
    crops: CropExportConfig = field(default_factory=CropExportConfig, metadata=MAY_CHANGE)
    """Settings of --export crops."""
    names: str | None = field(default=None, metadata=MAY_CHANGE)
    """Classes of the objects, local or s3://: the --out of `jobs.predict --data RUN`, RUN the --out
    of this job. They name objects without an object_name in exports with names. Default: only the
    manifest names objects."""
    score: str | None = field(default=None, metadata=MAY_CHANGE)
    """Folder of true masks to score the masks against, local or s3://. It has a folder for each
    video, named by its id, with indexed PNGs as in DAVIS or with a folder of PNGs for each object.
    Default: no scores."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        unknown = sorted(set(self.export) - set(KINDS))
        if unknown:
            raise ConfigError(f"--export {' '.join(unknown)}: expected {', '.join(KINDS)}")
        for name in ("fill_holes", "drop_specks"):
            share = getattr(self.polish, name)
            if not 0 <= share < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--polish.{flag} is {share:g}; expected a share from 0 to 1")
        if not 0 <= self.polish.smooth <= 100:
            raise ConfigError(
                f"--polish.smooth is {self.polish.smooth:g}; expected 0 to 100 pixels"
            )
        if self.polish.min_area < 0:
            raise ConfigError(f"--polish.min-area is {self.polish.min_area}; expected at least 0")
        if self.time_limit <= 0:
            raise ConfigError(f"--time-limit is {self.time_limit:g}; expected seconds above 0")
        if self.max_failed < 0:
            raise ConfigError(f"--max-failed is {self.max_failed}; expected at least 0")
