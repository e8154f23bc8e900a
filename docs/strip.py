"""Draw a picture of a mask run: a row a video, with some of its frames and their masks.

    python -m docs.strip --run runs/demo/masks --out docs/pictures/strip.png

The frames are evenly spaced from the first to the last. 256 colours keep the file small.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from jobs.masks.folder import read_markers, table_of
from jobs.run.config import ConfigError
from jobs.run.main import run_job
from jobs.storage.cache import localize
from jobs.storage.location import Location, check_writable
from masking.images.arrays import Pixels
from masking.outputs.formats import png_bytes
from masking.outputs.overlay import draw_masks
from masking.outputs.rows import frames_of, mask_of
from masking.video.frame import VideoError
from masking.video.reader import Video

GAP = 4
"""Pixels between pictures."""


@dataclass(frozen=True, kw_only=True)
class StripConfig:
    """Settings of `docs.strip`."""

    run: str
    """Folder of a mask run, local or s3://; its videos must still be where they were masked."""
    out: str
    """PNG to write, local or s3://."""
    videos: tuple[str, ...] = ()
    """Ids of the videos to show. Default: the first four."""
    frames: int = 5
    """Number of frames of each video."""
    width: int = 180
    """Width of a frame in the picture, in pixels."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for flag, value in (("frames", self.frames), ("width", self.width)):
            if value < 1:
                raise ConfigError(f"--{flag} is {value}; at least 1 is needed")


def draw_row(run: Location, marker: Mapping[str, Any], config: StripConfig) -> Pixels:
    """Return (h, W, 3) uint8 RGB: frames of a marker's video side by side, with their masks."""
    by_frame = dict(frames_of(table_of(run, marker)))
    wanted = set(np.linspace(0, len(by_frame) - 1, config.frames).round().astype(int).tolist())
    pictures = []
    with Video.open(localize(Location.parse(marker["uri"]))) as video:
        for frame in video:
            if frame.index in wanted:
                masks = np.stack([mask_of(row) for row in by_frame[frame.index]])
                drawn = draw_masks(frame.image, masks)
                size = (config.width, round(config.width * drawn.shape[0] / drawn.shape[1]))
                small = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)
                pictures.append(np.pad(small, ((0, GAP), (0, GAP), (0, 0)), constant_values=255))
    return np.concatenate(pictures, axis=1)


def show(config: StripConfig) -> None:
    """Draw the picture and write it."""
    run, out = Location.parse(config.run), Location.parse(config.out)
    check_writable(out.parent)
    done = {
        name: marker for name, marker in read_markers(run).items() if marker["status"] != "failed"
    }
    names = config.videos or tuple(sorted(done))[:4]
    missing = sorted(set(names) - set(done))
    if missing or not names:
        what = f"no masks of {', '.join(missing)}" if missing else "no masked video"
        raise ConfigError(f"--run {run}: {what}")
    rows = [draw_row(run, done[name], config) for name in names]
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    picture = Image.fromarray(np.concatenate(padded)[:-GAP, :-GAP])
    content = png_bytes(picture.quantize(256, dither=Image.Dither.NONE), optimize=True)
    out.write_bytes(content)
    print(f"{out}: {picture.width} x {picture.height}, {len(content) // 1024} KB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    return run_job(show, StripConfig, argv, "docs.strip", __doc__, (OSError, VideoError))


if __name__ == "__main__":
    sys.exit(main())
