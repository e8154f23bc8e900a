"""How a stored frame is turned and mirrored for display."""

import struct
from typing import Any, NamedTuple, cast

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from masking.images.arrays import Pixels
from masking.video.frame import Report


def _unknown(value: Any) -> Type:
    """Return a member for a kind of side data that is not among PyAV's.

    Otherwise the side data of a frame cannot be read at all if one is of a kind that only FFmpeg
    knows, such as EXIF in AVIF, or the views of spatial video.
    """
    found = object.__new__(Type)
    found._name_, found._value_ = f"UNKNOWN_{value}", value
    return found


Type._missing_ = _unknown  # type: ignore[method-assign]
_NEAR = 0.01
"""Share of the larger coefficients up to which a coefficient counts as 0: half a degree."""


class Orientation(NamedTuple):
    """One of the eight ways to show a picture."""

    rotation: int = 0
    """Degrees counter-clockwise, a multiple of 90 from -180 to 90."""
    mirrored: bool = False
    """Whether left and right are exchanged after the rotation."""

    @property
    def is_turned(self) -> bool:
        """Whether width and height are exchanged."""
        return self.rotation % 180 != 0

    def apply(self, image: Pixels) -> Pixels:
        """Return an image (H, W, C) as it is displayed."""
        if self == Orientation():
            return image
        turned = np.rot90(image, self.rotation // 90)
        return np.ascontiguousarray(turned[:, ::-1] if self.mirrored else turned)


def orientation_of(raw: VideoFrame, report: Report) -> Orientation:
    """Return the orientation by a frame's display matrix; as stored if the matrix is not one of
    the eight, which is noted.

    The matrix (ISO 14496-12, 8.3.2) has a, b, u, c, d, v, x, y, w: a pixel (x, y) is shown at
    (a x + c y, b x + d y), with y downward.
    """
    # Frame and side data of PyAV hold each other until the garbage is collected: a small copy does
    # not keep a large frame, and leaves the decoder its buffers.
    small = VideoReformatter().reformat(raw, width=16, height=16, format="gray", threads=1)
    side = cast(Any, small.side_data).get(Type.DISPLAYMATRIX)
    if side is None:
        return Orientation()
    a, b, _, c, d = struct.unpack("=5i", bytes(side)[:20])
    largest = _NEAR * max(map(abs, (a, b, c, d)))
    if a and d and max(abs(b), abs(c)) <= largest:
        return Orientation(0 if d > 0 else -180, (a > 0) != (d > 0))
    if b and c and max(abs(a), abs(d)) <= largest:
        return Orientation(-90 if b > 0 else 90, (b > 0) == (c > 0))
    report.note(
        f"a display matrix that begins with {a / 65536:g}, {b / 65536:g} is ignored: it does not"
        " turn by a multiple of 90 degrees"
    )
    return Orientation()
