"""A picture, or a stack of TIFF, as a video."""

import re
from pathlib import Path

from masking.images.decode import ImageError
from masking.images.stack import ImageStack
from masking.video.folder import ImageFolder
from masking.video.frame import Frame, Report, VideoError

_PICTURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|II[*+]\0|MM\0[*+]|BM|P[1-6]\s|\0\0\0\x0cjP  |\xff\x4f\xff\x51"
    rb"|RIFF....WEBP",
    re.DOTALL,
)
"""How the files of pictures begin; AVIF and GIF are read as videos."""
_NEXT_JPEG = b"\xff\xd9\xff\xd8\xff"
"""Where one JPEG follows another, as in a stream of them (MJPEG)."""
_SEVERAL = ("PNG", "WEBP")
"""Pillow's names of formats that may be animated: then the file is a video."""


class PictureFile(ImageFolder):
    """A file of one or several images; its methods are those of `Video`."""

    def __init__(self, path: Path, stack: ImageStack) -> None:
        """Take an open file."""
        self.path, self.report = path, Report()
        self.codec, self.names = stack.format.lower(), None
        self._stack, self._files = stack, [path] * len(stack)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def _read(self, index: int) -> Frame:
        try:
            return Frame(index, None, None, self._stack.read(index, self._used_bits))
        except ImageError as error:
            raise VideoError("not_a_video", f"{self.path}: frame {index}: {error}") from error

    def _most_bits(self) -> int:
        return self._stack.used_bits()


def open_picture(path: Path) -> PictureFile | None:
    """Open a file of one or several images; None: by its content it is none, or is animated.

    Raises:
        VideoError: the picture does not decode.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(16)
        if not _PICTURE.match(head):
            return None
        if head.startswith(b"\xff\xd8\xff") and path.suffix.lower() not in (".jpg", ".jpeg"):
            file.seek(0)
            if _NEXT_JPEG in file.read():
                return None
    try:
        stack = ImageStack(path)
    except ImageError as error:
        raise VideoError("not_a_video", f"{path}: {error}") from error
    if stack.format in _SEVERAL and stack.is_animated:
        stack.close()
        return None
    return PictureFile(path, stack)
