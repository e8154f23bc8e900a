"""One encoded image to square uint8 pixels; many of them in a file; a process that decodes.

All that turns bytes into pixels is here, so that a decoded data set and a streamed one hold the
same numbers. Pillow decodes: torchvision.io.decode_jpeg gives the same pixels in half of the time,
but is deprecated and would load torch into every decoding process.

Run as a program this file is a decoding process of `vit.data.pool`. It imports numpy and Pillow
alone, so that one takes 40 MB and a fifth of a second to start.

Legend: S the side of a square image in pixels. Images are RGB, channels first, origin top left.
"""

import io
import mmap
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]
Encoded = bytes | Path | Pixels
"""An image before decoding: a file's bytes, its path, or (H, W) or (H, W, 3) uint8 pixels."""


class DataError(ValueError):
    """Data that cannot be used; the message says what, where, and what was expected."""


def decode(image: Encoded, size: int) -> Pixels:
    """Decode one image to (3, size, size) uint8 RGB.

    EXIF orientation is applied, transparency dropped, an animation's first frame taken. Geometry is
    that of torchvision's Resize(size) and CenterCrop(size) on a PIL image; pixels agree to 1 of
    255 (of a square, exactly). A JPEG of twice the size or more is decoded at the smallest of
    1/2, 1/4, 1/8 of its size that is not below `size` (libjpeg's DCT scaling), twice as fast.

    Raises:
        OSError: the file at a path cannot be read.
        DataError: the image does not decode; the message says why, not which image.
    """
    if isinstance(image, Path):
        image = image.read_bytes()
    try:
        if isinstance(image, np.ndarray):
            return _channels_first(Image.fromarray(image), size)
        with Image.open(io.BytesIO(image)) as picture:
            picture.draft(None, (size, size))
            # Asking a small JPEG for an orientation that it does not have would cost a fifth more.
            if picture.format != "JPEG" or picture.info.keys() & {"exif", "xmp"}:
                ImageOps.exif_transpose(picture, in_place=True)
            return _channels_first(picture, size)
    except UnidentifiedImageError:
        raise DataError("not an image of a format that Pillow knows") from None
    except Exception as error:  # Pillow's formats raise all kinds
        raise DataError(f"does not decode: {error or type(error).__name__}") from error


def _channels_first(picture: Image.Image, size: int) -> Pixels:
    picture = _square(_rgb(picture), size)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _rgb(picture: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB. Pillow would clip deeper grey to white."""
    if picture.format == "PPM" and picture.mode == "I":  # of 16 bits, whatever Pillow says
        picture = picture.convert("I;16")
    if picture.mode in ("I", "F"):
        raise DataError(f"pixels of 32 bits (mode {picture.mode}); 8 or 16 were expected")
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _square(picture: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` and keep the centre: only that is ever computed."""
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
    """What a `Pack` keeps of an image: its bytes, its path, or pixels as a PPM or PGM file."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        return os.fsencode(image)
    kind = "P6" if image.ndim == 3 else "P5"
    header = f"{kind} {image.shape[1]} {image.shape[0]} 255\n"
    return header.encode() + np.ascontiguousarray(image).tobytes()


class Pack:
    """Encoded images one after the other in a file, any of them a read away; or their paths.

    A folder with `index.npy`, (n, 2) int64: first byte and length of every entry, and the entries
    in `images` (bytes of image files) or in `paths` (where they lie).
    """

    def __init__(self, folder: Path, size: int) -> None:
        """Open it. Its pages are read, not mapped: they are no part of the process's memory.

        Args:
            folder: where it lies.
            size: S, to which its images are decoded.
        """
        self.folder, self.size = folder, size
        self.index: NDArray[np.int64] = np.load(folder / "index.npy", mmap_mode="r")
        self.paths = (folder / "paths").is_file()
        self._file = (folder / ("paths" if self.paths else "images")).open("rb", buffering=0)

    def __len__(self) -> int:
        """How many images it has."""
        return len(self.index)

    def read(self, row: int) -> bytes | Path:
        """The image at `row`: its bytes, or its path."""
        start, length = self.index[row].tolist()
        content = os.pread(self._file.fileno(), length, start)
        return Path(os.fsdecode(content)) if self.paths else content

    def decode(self, row: int) -> Pixels:
        """The image at `row`, (3, S, S) uint8; raises as `decode`."""
        return decode(self.read(row), self.size)

    def place(self, row: int) -> str:
        """Where the image at `row` lies, for messages."""
        return str(self.read(row)) if self.paths else f"image {row} of {self.folder}"


_SLOT = np.dtype([("row", "i8"), ("owner", "i4"), ("failed", "i4")])


class Slots:
    """Memory that processes share: places for decoded images, and what is to be decoded there."""

    def __init__(self, memory: int, count: int, size: int) -> None:
        """Map the file descriptor `memory`, made long enough, as `count` slots of side `size`."""
        head = count * _SLOT.itemsize
        os.ftruncate(memory, head + count * 3 * size * size)
        self._map = mmap.mmap(memory, head + count * 3 * size * size)
        slots = np.frombuffer(self._map, _SLOT, count)
        self.rows = slots["row"]
        """(count,) int64: which image of the pack is wanted there."""
        self.owners = slots["owner"]
        """(count,) int32: id of the process that took it up."""
        self.failed = slots["failed"]
        """(count,) int32: 1 where it could not be decoded."""
        self.pixels = np.frombuffer(self._map, np.uint8, offset=head).reshape(count, 3, size, size)
        """(count, 3, size, size) uint8."""


RECORD = np.dtype("u4")
"""What goes through the pipes: the number of a slot. Writes and reads of so few bytes are whole,
so that any number of processes can share a pipe."""


def main(argv: list[str]) -> None:
    """Decode what is asked for until nobody can ask any more.

    Args:
        argv: folder of the pack, S, number of slots, and the file descriptors of the slots, of the
            pipe with requests and of the pipe for replies.
    """
    size, count, memory, requests, replies = map(int, argv[1:])
    pack, slots, me = Pack(Path(argv[0]), size), Slots(memory, count, size), os.getpid()
    while record := os.read(requests, RECORD.itemsize):
        slot = int(np.frombuffer(record, RECORD)[0])
        slots.owners[slot] = me
        try:
            slots.pixels[slot] = pack.decode(int(slots.rows[slot]))
            slots.failed[slot] = 0
        except Exception:  # whoever asked tries again and says what is wrong
            slots.failed[slot] = 1
        try:
            os.write(replies, record)
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
