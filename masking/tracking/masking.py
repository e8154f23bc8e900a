"""Masks through a video from clicks on some of its frames: `mask_video`.

    for frame in mask_video("clip.mp4", [{"object_id": 1, "frame": 0, "x": 320, "y": 200}]):
        frame.masks, frame.states, frame.scores

Objects are tracked forward and backward from every prompt (`masking.tracking.passes`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch

from masking.manifest.faults import Fault, ManifestError
from masking.manifest.plans import ObjectPlan, resolve
from masking.manifest.rows import Row, read_rows, with_pictures
from masking.sam2.weights import load, local
from masking.segmenter.sam import Precision, Segmenter
from masking.tracking.kinds import tracking_of
from masking.tracking.masks import FrameMasks
from masking.tracking.passes import Passes
from masking.tracking.snapshot import MaskingState
from masking.tracking.state import TrackConfig
from masking.video.frame import Report
from masking.video.reader import Video

SHIPPED = Path(__file__).parents[1] / "weights" / "mini.safetensors"


class Masking:
    """A video that is being masked: an iterator over its frames."""

    def __init__(
        self,
        video: Video,
        segmenter: Segmenter,
        plans: Sequence[ObjectPlan],
        size: tuple[int, int],
        config: TrackConfig,
        state: MaskingState | None = None,
    ) -> None:
        """Mask a video by prompts that are resolved already; otherwise use `mask_video`.

        Args:
            video: the video; it is closed at the end.
            segmenter: the segmenter, on its device.
            plans: the prompts of each object, from `resolve_prompts`.
            size: (H, W) in pixels of the first frame, to which the prompts refer. Frames of
                another size, as some videos have, are scaled to it; their masks have their own.
            config: how objects are tracked.
            state: a state of the same video and prompts to resume from.

        Raises:
            ValueError: `state` belongs to other prompts, frames or another kind of segmenter.
        """
        # What runs is held by the generator of frames, and the generator by this object only. So
        # a run that is abandoned frees its threads at once, without the garbage collector.
        self._passes = Passes(video, tracking_of(segmenter, config), plans, size, config, state)
        self._frames = self._passes.run()
        self.objects = self._passes.objects

    @property
    def report(self) -> Report:
        """What went wrong in reading the video so far."""
        return self._passes.video.report

    @property
    def state(self) -> MaskingState:
        """The state after the last frame; raises ValueError before the first one."""
        reached = self._passes.reached
        if reached is None:
            raise ValueError("no frame has been masked yet; take the state after the first frame")
        return replace(reached, backward=dict(reached.backward), given=dict(reached.given))

    def __iter__(self) -> Iterator[FrameMasks]:
        """Return itself."""
        return self

    def __enter__(self) -> Self:
        """Return itself; it is closed at the end."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def __next__(self) -> FrameMasks:
        """Return the masks of the next frame."""
        return next(self._frames)

    def close(self) -> None:
        """Stop and free the decoder; the masks so far stay valid."""
        self._frames.close()
        self._passes.video.close()


def mask_video(
    path: str | Path,
    prompts: pd.DataFrame | Iterable[Mapping[str, Any]],
    weights: str | Path | Segmenter = "mini",
    *,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    config: TrackConfig | None = None,
    state: MaskingState | None = None,
) -> Masking:
    """Mask objects through a video.

    Args:
        path: a video file, or a folder of images.
        prompts: one row for each point, in the columns of a manifest
            (`masking.manifest.rows.COLUMNS`) without `uri`: at least object_id, frame (or time_s),
            x and y in pixels of the frame as displayed, origin top left; label is 1 by default.
        weights: "mini", a name of `masking.sam2.published.PUBLISHED` such as "sam2.1-tiny", which
            is downloaded, a local file or folder as `masking.sam2.weights.load` takes, or a
            segmenter.
        device: where to compute; None: a GPU if there is one.
        precision: as for `masking.segmenter.sam.Segmenter`.
        config: how objects are tracked; None: the defaults of `TrackConfig`.
        state: a state of an earlier run over the same video and prompts; resumes after its frame.

    Returns:
        An iterator of `FrameMasks`, one for each frame in presentation order. Its `state` can be
        saved and resumed from; its `report` lists what did not decode.

    Raises:
        ManifestError: prompts with faults; each fault names the row, the value and what was
            expected.
        VideoError: the file is no video, or no frame of it decodes.
        SegmenterWeightsError: weights that cannot be loaded or downloaded.
        ValueError: `state` belongs to other prompts, frames or another kind of segmenter.
    """
    faults: list[Fault] = []
    rows = with_pictures(read_rows(prompts), lambda name: Path(name).read_bytes(), faults)
    if faults:
        raise ManifestError(faults)
    segmenter = weights if isinstance(weights, Segmenter) else _load(weights, device, precision)
    video = Video.open(path)
    try:
        plans, size = resolve_prompts(video, rows)
        return Masking(video, segmenter, plans, size, config or TrackConfig(), state)
    except BaseException:
        video.close()
        raise


def resolve_prompts(video: Video, rows: Sequence[Row]) -> tuple[list[ObjectPlan], tuple[int, int]]:
    """Fit prompts to a video, decoding no more of it than that takes.

    Returns:
        The prompts of each object, and the (H, W) in pixels of the first frame.

    Raises:
        ManifestError, VideoError: as for `mask_video`.
    """
    first = next(video.forward())
    last = max((row.frame for row in rows if row.frame is not None), default=0)
    until = max((row.time_s for row in rows if row.frame is None and row.time_s), default=0.0)
    times: list[float | None] = []
    complete = True
    for timestamp in video.timestamps():
        times.append(timestamp.time_s)
        if len(times) > last + 1 and (timestamp.time_s is None or timestamp.time_s > until):
            complete = False
            break
    size = first.image.shape[:2]
    return resolve(rows, size, times, complete), size


def _load(
    weights: str | Path, device: str | torch.device | None, precision: Precision
) -> Segmenter:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    path = SHIPPED if weights == "mini" else local(weights)
    return load(path, torch.device(device), precision)
