"""Objects of a masked video, each cut out of its frame as a picture of its own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from masking.images.arrays import Bools, Pixels
from masking.outputs.rows import frames_of, mask_of
from masking.video.frame import Frame, VideoError
from masking.video.reader import Video

TRUSTED = ("prompted", "tracked")
"""States of masks that others may learn from: crops and training data are made of these."""
_BLUR = 1 / 12
"""Standard deviation of the blur, as a share of the longer side of the picture: no letters or faces
can be read, and light and colours stay."""


@dataclass(frozen=True)
class CropConfig:
    """How an object is cut out of a frame."""

    margin: float = 0.1
    """Margin on each side of the object's box, as a share of the longer side of the box."""
    shape: Literal["square", "tight"] = "square"
    """square: a square around the middle of the box, moved into the frame where it reaches beyond
    it; what the frame is too small for repeats its edge. tight: the box and its margin, as far as
    they are in the frame."""
    background: Literal["kept", "blurred", "transparent"] = "kept"
    """What is around the object: kept as it is, blurred, or transparent (PNG instead of JPEG)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.margin <= 10:
            raise ValueError(f"crops.margin is {self.margin:g}; it must lie in 0 to 10")


@dataclass(frozen=True)
class Crop:
    """An object on a frame, cut out."""

    frame: int
    """Index of the frame, from 0, in presentation order."""
    time_s: float | None
    """Seconds since the first frame; None: unknown."""
    object_id: int
    """Id of the object in the manifest."""
    image: Pixels
    """(h, w, 3) uint8 RGB, or (h, w, 4) with alpha for a transparent background."""


def cut(image: Pixels, mask: Bools, box: tuple[int, int, int, int], config: CropConfig) -> Pixels:
    """Cut an object out of a frame.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, not empty.
        box: left, top, width and height of the mask in pixels.
        config: how to cut.

    Returns:
        (h, w, 3) uint8 RGB, or (h, w, 4) with alpha for a transparent background.
    """
    left, top, width, height = _window(box, image.shape[:2], config)
    inside = _part(image, left, top, width, height)
    if config.background == "kept":
        return inside
    here = _part(mask.view(np.uint8), left, top, width, height, repeat=False) > 0
    if config.background == "transparent":
        return np.dstack([inside, here * np.uint8(255)])
    blurred = cv2.GaussianBlur(inside, (0, 0), max(1.0, _BLUR * max(width, height)))
    return np.where(here[..., None], inside, blurred)


def _window(
    box: tuple[int, int, int, int], size: tuple[int, int], config: CropConfig
) -> tuple[int, int, int, int]:
    """Return left, top, width and height in pixels of what is cut out of a frame (H, W)."""
    left, top, width, height = box
    margin = round(config.margin * max(width, height))
    if config.shape == "tight":
        right, bottom = min(left + width + margin, size[1]), min(top + height + margin, size[0])
        left, top = max(left - margin, 0), max(top - margin, 0)
        return left, top, right - left, bottom - top
    side = max(width, height) + 2 * margin
    left = _moved_in(left + (width - side) // 2, side, size[1])
    top = _moved_in(top + (height - side) // 2, side, size[0])
    return left, top, side, side


def _moved_in(start: int, side: int, most: int) -> int:
    """Return where a side starts once it is moved into 0 to `most`, or around all of it."""
    low, high = sorted((0, most - side))
    return min(max(start, low), high)


def _part(
    image: Pixels, left: int, top: int, width: int, height: int, repeat: bool = True
) -> Pixels:
    """Cut a window out of an image; beyond its edges, repeat them or return 0."""
    h, w = image.shape[:2]
    before, above = max(0, -left), max(0, -top)
    behind, below = max(0, left + width - w), max(0, top + height - h)
    inside = np.ascontiguousarray(
        image[top + above : top + height - below, left + before : left + width - behind]
    )
    if not (before or above or behind or below):
        return inside
    border = cv2.BORDER_REPLICATE if repeat else cv2.BORDER_CONSTANT
    return cast(Pixels, cv2.copyMakeBorder(inside, above, below, before, behind, border, value=0))


def trusted_rows(table: pa.Table, every: int) -> pa.Table:
    """Return the rows of a mask table that crops are made of.

    Args:
        table: masks of a video (`masking.outputs.rows`).
        every: of the frames 0, `every`, 2 * `every`, ... only.

    Returns:
        The rows of masks that are not empty and whose state is prompted or tracked.
    """
    frames = np.asarray(table["frame"].combine_chunks())
    trusted = pc.is_in(table["state"], value_set=pa.array(TRUSTED))
    full = pc.greater(table["area"], 0).fill_null(False)
    return table.filter(pc.and_(pc.and_(trusted, full), pa.array(frames % every == 0)))


def crops(video: Video, rows: pa.Table, config: CropConfig) -> Iterator[Crop]:
    """Yield the crops of rows of a mask table, in their order.

    The video is decoded once, up to the last frame that is wanted.

    Args:
        video: the video that was masked.
        rows: rows of its mask table, none of them empty; sorted by frame.
        config: how to cut.

    Raises:
        VideoError: the video does not decode, or has other frames than the masks.
    """
    if not len(rows):
        return
    last, reached = pc.max(rows["frame"]).as_py(), -1
    masked = frames_of(rows)
    wanted, here = next(masked)
    for frame in video:
        reached = frame.index
        if frame.index != wanted:
            continue
        for row in here:
            yield _crop(frame, row, video, config)
        if frame.index == last:
            return
        wanted, here = next(masked)
    raise VideoError(
        "not_a_video",
        f"{video.path} has {reached + 1:,} frames, but frame {last} was masked; mask it again",
    )


def _crop(frame: Frame, row: Mapping[str, Any], video: Video, config: CropConfig) -> Crop:
    if frame.image.shape[:2] != (row["height"], row["width"]):
        raise VideoError(
            "not_a_video",
            f"{video.path}: frame {frame.index} has another size than its masks; mask it again",
        )
    left, top, width, height = row["box"]
    image = cut(frame.image, mask_of(row), (left, top, width, height), config)
    return Crop(frame.index, frame.time_s, row["object_id"], image)
