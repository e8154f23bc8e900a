"""Decode an encoded image to square uint8 pixels; keep many in a file; a process that decodes.

Everything that turns bytes into pixels is here, so that a decoded data set and a streamed one hold
the same numbers. Pillow decodes: torchvision.io.decode_jpeg gives the same pixels in half the time,
but is deprecated and would load torch into every decoding process.

Run as a program, this file is a decoding process of `vit.data.pool`. It imports only numpy and
Pillow, so that a process takes 40 MB and starts in a fifth of a second.

Legend: S the side of a square image in pixels. Images are RGB, channels first, origin top left.
"""

import io
import mmap
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]
Encoded = bytes | Path | Pixels
"""An image before decoding: a file's bytes, its path, or (H, W) or (H, W, 3) uint8 pixels."""
FORMATS = (
    *("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "JPEG2000", "AVIF"),
    *("ICO", "PCX", "SGI", "TGA"),
)
"""Pillow's names of the formats that are read. A file's content, not its name, says which it is; of
Pillow's other formats, EPS starts another program, and some are no images of their own."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""


class DataError(ValueError):
    """Data that cannot be used; the message says what, where, and what was expected."""


def decode(image: Encoded, size: int) -> Pixels:
    """Decode one image to (3, size, size) uint8 RGB.

    EXIF orientation is applied, unless the EXIF is damaged. Transparent pixels are shown on white.
    Of an animation the first frame is taken. The geometry is that of torchvision's Resize(size) and
    CenterCrop(size) on a PIL image; pixels agree to 1 of 255, those of a square image exactly. A
    JPEG of twice the size or more is decoded at the smallest of 1/2, 1/4, 1/8 of its size that is
    not below `size` (libjpeg's DCT scaling), which is twice as fast.

    Args:
        image: encoded image, its path, or (H, W) or (H, W, 3) uint8 pixels.
        size: side of the result in pixels.

    Raises:
        OSError: the file at a path cannot be read.
        DataError: the image does not decode; the message says why, not which image.
    """
    if isinstance(image, Path):
        image = image.read_bytes()
    try:
        if isinstance(image, np.ndarray):
            return _channels_first(_eight_bits(Image.fromarray(image)), size)
        with Image.open(io.BytesIO(image), formats=FORMATS) as picture:
            picture.draft(None, (size, size))
            picture.load()
            # Looking for an orientation in a small JPEG without one would take a fifth longer.
            known = picture.format != "JPEG" or picture.info.keys() & {"exif", "xmp"}
            turn = _turn(picture) if known else None
            eight = _eight_bits(picture)
            return _channels_first(eight if turn is None else eight.transpose(turn), size)
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise DataError(f"not an image of a format that is read ({formats})") from None
    except Exception as error:  # Pillow's formats raise all kinds
        raise DataError(f"does not decode: {error or type(error).__name__}") from error


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """Return what makes a picture upright; None if its EXIF is damaged, or says that it is."""
    try:
        orientation = picture.getexif().get(0x0112)
    except Exception:  # Pillow raises all kinds; the pixels may be sound, and viewers show them
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _channels_first(picture: Image.Image, size: int) -> Pixels:
    """Cut a picture of mode RGB or RGBA to (3, size, size) uint8, on white."""
    picture = _square(picture, size)  # Pillow resizes RGBA with each pixel weighted by its alpha
    if picture.mode == "RGBA":
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        picture = white
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB, or RGBA if some pixels may be transparent.

    16-bit grey keeps its upper 8 bits, as Pillow would clip it.
    """
    if picture.format == "PPM" and picture.mode == "I":  # 16 bits in a mode of 32
        picture = picture.convert("I;16")
    if picture.mode in ("I", "F"):
        raise DataError(f"pixels have 32 bits (mode {picture.mode}); expected 8 or 16")
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def _square(picture: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` and cut out the centre, which alone is computed."""
    width, height = picture.size
    if width == height == size:
        return picture
    short = min(width, height)
    scaled_width, scaled_height = int(size * width / short), int(size * height / short)
    left, top = round((scaled_width - size) / 2), round((scaled_height - size) / 2)
    box = (
        left * width / scaled_width,
        top * height / scaled_height,
        (left + size) * width / scaled_width,
        (top + size) * height / scaled_height,
    )
    return picture.resize((size, size), Image.Resampling.BILINEAR, box)


def to_bytes(image: Encoded) -> bytes:
    """Convert an image to what a `Pack` keeps: its bytes, its path, or a PPM or PGM file."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        return os.fsencode(image)
    kind = "P6" if image.ndim == 3 else "P5"
    header = f"{kind} {image.shape[1]} {image.shape[0]} 255\n"
    return header.encode() + np.ascontiguousarray(image).tobytes()


class Pack:
    """A folder of encoded images, or of their paths, one after the other in a file.

    `index.npy` is (n, 2) int64: first byte and length of every entry. The entries are in `images`
    (bytes of image files) or in `paths` (paths of image files).
    """

    def __init__(self, folder: Path, size: int) -> None:
        """Open a pack. Images are read, not mapped, so that they take no memory of the process.

        Args:
            folder: folder of the pack.
            size: S, the side in pixels to which images are decoded.
        """
        self.folder, self.size = folder, size
        self.index: NDArray[np.int64] = np.load(folder / "index.npy", mmap_mode="r")
        self.paths = (folder / "paths").is_file()
        self._file = (folder / ("paths" if self.paths else "images")).open("rb", buffering=0)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.index)

    def read(self, row: int) -> bytes | Path:
        """Read the image at `row`: its bytes, or its path."""
        start, length = self.index[row].tolist()
        content = os.pread(self._file.fileno(), length, start)
        return Path(os.fsdecode(content)) if self.paths else content

    def decode(self, row: int) -> Pixels:
        """Decode the image at `row` to (3, S, S) uint8; raises the errors of `decode`."""
        return decode(self.read(row), self.size)

    def place(self, row: int) -> str:
        """Name the place of the image at `row`, for messages."""
        return str(self.read(row)) if self.paths else f"image {row} of {self.folder}"


_SLOT = np.dtype([("row", "i8"), ("owner", "i4"), ("failed", "i4")])


class Slots:
    """Shared memory with places for decoded images, and requests of what to decode there."""

    def __init__(self, memory: int, count: int, size: int) -> None:
        """Map the file descriptor `memory`, enlarged as needed, as `count` slots of side `size`."""
        head = count * _SLOT.itemsize
        os.ftruncate(memory, head + count * 3 * size * size)
        self._map = mmap.mmap(memory, head + count * 3 * size * size)
        slots = np.frombuffer(self._map, _SLOT, count)
        self.rows = slots["row"]
        """(count,) int64: row in the pack of the image to decode there."""
        self.owners = slots["owner"]
        """(count,) int32: id of the process that took the request."""
        self.failed = slots["failed"]
        """(count,) int32: 1 where the image could not be decoded, else 0."""
        self.pixels = np.frombuffer(self._map, np.uint8, offset=head).reshape(count, 3, size, size)
        """(count, 3, size, size) uint8: the decoded images."""


RECORD = np.dtype("u4")
"""Content of the pipes: the number of a slot. Reads and writes of so few bytes are never split, so
that any number of processes can share a pipe."""


def main(argv: list[str]) -> None:
    """Answer requests to decode until the pipe of requests is closed.

    Args:
        argv: folder of the pack, S, number of slots, and three file descriptors: of the slots, of
            the pipe of requests and of the pipe for replies.
    """
    size, count, memory, requests, replies = map(int, argv[1:])
    pack, slots, me = Pack(Path(argv[0]), size), Slots(memory, count, size), os.getpid()
    while record := os.read(requests, RECORD.itemsize):
        slot = int(np.frombuffer(record, RECORD)[0])
        slots.owners[slot] = me
        try:
            slots.pixels[slot] = pack.decode(int(slots.rows[slot]))
            slots.failed[slot] = 0
        except Exception:  # the process that requested it tries again and names the fault
            slots.failed[slot] = 1
        try:
            os.write(replies, record)
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
