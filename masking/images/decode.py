"""Images and label maps from bytes or files.

Pillow decodes them: it refuses a truncated file, which OpenCV fills up with grey, and reads the
indices of a palette.

Shapes: K objects of an image, H x W its pixels. Images are RGB, origin top left, EXIF orientation
applied.
"""

import errno
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from masking.images.arrays import Bools, Pixels
from masking.images.depth import deep_pixels, eight_bits, used_bits
from masking.images.lfs import POINTER, is_pointer

_NOT_STORAGE = {None, errno.EINVAL, errno.EOVERFLOW}
"""`errno` of Pillow's own errors, and of a seek to a place that a damaged file names."""
LISTED = 20
"""Faults that a message lists; further ones are only counted. `ImageError.faults` has all."""
EXIF_CURE = "In that case, delete the orientation of the images: exiftool -Orientation= FILES"
"""What to do if masks fit the stored pixels of images that have an EXIF orientation."""
FORMATS = (
    *("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "JPEG2000", "AVIF"),
    *("ICO", "PCX", "SGI", "TGA"),
)
"""Pillow's names of the formats that are read. A file's content, not its name, says which it is; of
Pillow's other formats, EPS starts another program, and some are no images of their own."""
_LARGEST_LABEL = 65_535
_LOSSY = ("JPEG", "MPO")  # MPO: of several pictures, as telephones write it
_COLOURED = ("1", "P", "PA", "LA", "RGBA", "La", "RGBa")  # modes that Pillow shrinks in another way
_ORIENTATION = 0x0112  # EXIF tag
_SUBFILE = 0x00FE  # tag of TIFF; bit 0: a smaller copy of another image, bit 2: a mask
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What displays an image upright, by its EXIF orientation."""


class ImageError(ValueError):
    """Images or masks that cannot be used: what is wrong, with file and row."""

    def __init__(self, *faults: str) -> None:
        """Take a line of text for each fault."""
        super().__init__(*faults)
        self.faults = faults

    def __str__(self) -> str:
        rest = len(self.faults) - LISTED
        more = [f"... and {rest:,} more"] if rest > 0 else []
        return "\n".join([*self.faults[:LISTED], *more])


class Decoded(NamedTuple):
    """An image that was decoded."""

    pixels: Pixels
    """(H, W, 3) uint8 RGB."""
    size: tuple[int, int]
    """Height and width in pixels before it was shrunk, as displayed."""
    orientation: int
    """EXIF orientation, which is applied: 1 upright, 2 to 4 turned or mirrored, from 5 on with
    width and height swapped."""


def read_image(
    source: bytes | Path, longest: int, bits: Callable[[], int] | None = None
) -> Decoded:
    """Decode an image.

    Args:
        source: bytes of an image file, or its path.
        longest: pixels that the longer side is shrunk to if it is longer; 0: any length.
        bits: returns how many of 16 bits are used, for images of one series; None: as many as the
            largest value of this image takes.

    Raises:
        ImageError: the image does not decode, or not completely, or is a stack of images.
        OSError: with an `errno`: the file cannot be read.
    """
    with faults(), opened(source) as picture:
        if (count := len(pages_of(picture))) > 1:
            raise ImageError(
                f"the file is a stack of {count:,} images; expected one. Write each to a file of"
                " its own; as a video, give the stack itself as the uri"
            )
        return decoded(picture, source, longest, bits)


@contextmanager
def faults() -> Iterator[None]:
    """Raise what Pillow raises as ImageError, and what the system raises as it is."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise ImageError(
            f"the image does not decode: it is of none of the formats that are read ({formats})"
        ) from None
    except Exception as error:  # Pillow's formats raise all kinds
        if isinstance(error, OSError) and error.errno not in _NOT_STORAGE:
            raise
        raise ImageError(f"the image does not decode: {error or type(error).__name__}") from error


def decoded(
    picture: Image.Image,
    source: bytes | Path | None,
    longest: int,
    bits: Callable[[], int] | None,
) -> Decoded:
    """Decode an open image; arguments as for `read_image`, `source` None for one of a stack."""
    pixels = deep_pixels(picture, source)
    if picture.format == "PNG":
        picture.load()  # its EXIF may lie behind the pixels
    orientation = _orientation(picture)
    width, height = reversed(picture.size) if orientation > 4 else picture.size
    if pixels is not None:
        picture = eight_bits(pixels, used_bits(pixels) if bits is None else bits())
    if picture.mode in _COLOURED:  # indices; or alpha, which would darken transparent parts
        picture = picture.convert("RGB")
    if longest:
        bounds = (longest, longest)
        picture.thumbnail(bounds, Image.Resampling.LANCZOS, reducing_gap=2.0)
    if orientation > 1:
        picture = picture.transpose(_TURNS[orientation])
    return Decoded(_rgb(picture), (height, width), orientation)


def pages_of(picture: Image.Image) -> list[int]:
    """Return the places of the images of a TIFF, without those that are smaller copies or masks of
    others; of other formats the first image only."""
    if picture.format != "TIFF":
        return [0]
    pages = []
    for page in range(getattr(picture, "n_frames", 1)):
        picture.seek(page)
        if not picture.getexif().get(_SUBFILE, 0) & 0b101:
            pages.append(page)
    picture.seek(pages[0] if pages else 0)
    return pages or [0]


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation of an image; 1 if it has none or a damaged one."""
    if "exif" not in picture.info:
        return 1
    try:
        found = picture.getexif().get(_ORIENTATION)
    except Exception:  # Pillow's reader raises all kinds; the pixels may be sound nevertheless
        return 1
    return int(found) if found in _TURNS else 1


def opened(source: bytes | Path) -> Image.Image:
    """Open an image, of which only the header is read."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if is_pointer(source):
            raise ImageError(f"the file {POINTER}") from None
        raise


def _rgb(picture: Image.Image) -> Pixels:
    """Return the pixels as (H, W, 3) uint8 RGB."""
    if picture.mode in ("I", "F"):
        raise ImageError(f"the image has pixels of 32 bits (mode {picture.mode}); expected 8 or 16")
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def exif_hint(orientation: int, size: tuple[int, int], of_masks: Sequence[int]) -> str:
    """Return what to do if masks fit an image as stored, but not as EXIF turns it; "" otherwise.

    Args:
        orientation: of the image, as in `Decoded`.
        size: (H, W) in pixels of the image as displayed.
        of_masks: (H, W) in pixels of the masks.
    """
    if orientation < 5 or tuple(of_masks) != size[::-1]:
        return ""
    return (
        f". The image's EXIF orientation ({orientation}), which is applied, swaps width and height:"
        f" the masks seem to be drawn on the stored pixels. {EXIF_CURE}"
    )


def read_labels(
    source: bytes | Path, what: str, size: tuple[int, int], orientation: int = 1
) -> tuple[NDArray[Any], bool]:
    """Decode a label map.

    Args:
        source: bytes of an image file, or its path.
        what: name of the label map in messages.
        size: (H, W) in pixels that it must have.
        orientation: EXIF orientation of its image, as in `Decoded`, for messages.

    Returns:
        (H, W) integers or bool; and whether they are indices of a palette.

    Raises:
        ImageError: the file does not decode, is no label map, or has another size.
    """
    try:
        with opened(source) as picture:
            labels, mode, lossy = np.asarray(picture), picture.mode, picture.format in _LOSSY
    except Exception as error:  # Pillow's formats raise all kinds
        reason = error or type(error).__name__
        raise ImageError(f"{what} does not decode: {reason}") from error
    if labels.ndim != 2 or mode == "F":
        raise ImageError(f"{what} has mode {mode}; expected one channel of 8 or 16 bits")
    if lossy:
        raise ImageError(f"{what} is a JPEG, which blurs its labels; expected a PNG")
    if labels.min() < 0 or labels.max() > _LARGEST_LABEL:
        raise ImageError(
            f"{what} has labels from {labels.min()} to {labels.max()}; expected 0 to"
            f" {_LARGEST_LABEL}"
        )
    if labels.shape != size:
        raise ImageError(
            f"{what} has {shown(labels.shape)} pixels, but its image has {shown(size)}"
            + exif_hint(orientation, size, labels.shape)
        )
    return labels, mode == "P"


def shown(size: Sequence[int]) -> str:
    """Return a size (H, W) as text, width first."""
    return f"{size[1]}x{size[0]}"


def nearest(maps: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Shrink maps (..., h, w) to (..., H, W): each new pixel is the old one at its centre."""
    if maps.shape[-2:] == size:
        return maps
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(size, maps.shape[-2:], strict=True)
    )
    return maps[..., rows[:, None], columns]


def objects_of(labels: NDArray[Any]) -> Bools:
    """Turn labels (H, W) into masks (K, H, W), one for each number above 0."""
    there = np.zeros(int(labels.max()) + 1, dtype=np.bool_)
    there[labels.astype(np.intp)] = True
    there[0] = False
    masks: Bools = labels == np.flatnonzero(there).astype(labels.dtype)[:, None, None]
    return masks
