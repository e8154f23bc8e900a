"""The images of one file, such as a stack of TIFF."""

from collections.abc import Callable
from pathlib import Path

from masking.images.arrays import Pixels
from masking.images.decode import decoded, faults, opened, pages_of, read_image
from masking.images.depth import deep_pixels, used_bits


def used_bits_of(source: bytes | Path) -> int:
    """Return how many bits an image uses: 8 or, if it has 16, also 10, 12, 14 or 16.

    Raises:
        ImageError, OSError: as `read_image`.
    """
    with faults(), opened(source) as picture:
        pixels = deep_pixels(picture, source)
        return 8 if pixels is None else used_bits(pixels)


class ImageStack:
    """The images of one file; files of most formats have one."""

    def __init__(self, path: Path) -> None:
        """Open a file; raises ImageError or OSError as `read_image`."""
        self._path = path
        with faults():
            self._picture = opened(path)
            self._pages = pages_of(self._picture)
        self.format = str(self._picture.format)
        """Pillow's name of the format."""
        self.is_animated = bool(getattr(self._picture, "is_animated", False))
        """Whether the file holds several images, as Pillow counts them."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._pages)

    def read(self, number: int, bits: Callable[[], int] | None) -> Pixels:
        """Return an image as (H, W, 3) uint8 RGB; `bits` and errors as in `read_image`."""
        if len(self) == 1:
            return read_image(self._path, 0, bits).pixels
        with faults():
            self._picture.seek(self._pages[number])
            return decoded(self._picture, None, 0, bits).pixels

    def used_bits(self) -> int:
        """Return how many bits the images use; values and errors as for `used_bits_of`."""
        if len(self) == 1:
            return used_bits_of(self._path)
        most = 8
        for page in self._pages:
            with faults():
                self._picture.seek(page)
                pixels = deep_pixels(self._picture, None)
            most = max(most, 8 if pixels is None else used_bits(pixels))
        return most

    def close(self) -> None:
        """Close the file."""
        self._picture.close()
