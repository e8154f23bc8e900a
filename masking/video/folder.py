"""A folder of images as a video."""

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from masking.images.decode import ImageError, read_image
from masking.video.frame import Frame, Report, Timestamp, VideoError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of the names of files that are frames of a folder."""


def is_frame(name: str) -> bool:
    """Return whether a file of a folder is one of its frames, by its name."""
    return name.lower().endswith(IMAGES) and not name.startswith(".")


class ImageFolder:
    """A folder of images; its methods are those of `Video`."""

    codec = "images"
    rotation = 0
    rate: Fraction | None = None

    def __init__(self, path: Path) -> None:
        """List a folder; raises VideoError if it has no images."""
        self.report = Report()
        self.path = path
        files = [file for file in path.iterdir() if is_frame(file.name) and file.is_file()]
        self._files = sorted(files, key=lambda file: _natural(file.name))
        if not files:
            raise VideoError(
                "not_a_video", f"{path}: a folder without images ({', '.join(IMAGES)} are read)"
            )

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def forward(self, start: int) -> Iterator[Frame]:
        """Yield the frames from `start` on."""
        for index, file in enumerate(self._files[start:], start):
            frame = self._read(file, index)
            self.report.frames = index + 1
            yield frame

    def timestamps(self) -> Iterator[Timestamp]:
        """Yield a timestamp for each image, without a time."""
        yield from [Timestamp(None, None, True)] * len(self._files)

    def seek(self, index: int, timestamps: Sequence[Timestamp], clean: bool) -> Iterator[Frame]:
        """Yield the frames from `index` on."""
        return self.forward(index)

    def backward(self, last: int, ring_bytes: int) -> Iterator[Frame]:
        """Yield the frames from `last` to the first."""
        for index in range(min(last, len(self._files) - 1), -1, -1):
            yield self._read(self._files[index], index)

    def _read(self, file: Path, index: int) -> Frame:
        """Read an image. One that does not decode is an error: a gap would shift later frames."""
        try:
            return Frame(index, None, None, read_image(file, 0)[0])
        except ImageError as error:
            raise VideoError("not_a_video", f"{file}: frame {index}: {error}") from error


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that orders numbers by value: frame 9 before frame 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
