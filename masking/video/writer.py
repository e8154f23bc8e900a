"""Writes frames to a video file, with the timing and the sound of the video they came from."""

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias, cast

import av
import cv2
import numpy as np
from av.packet import Packet
from av.video.frame import PictureType
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream

from masking.images.arrays import Pixels
from masking.video.colours import HD_LINES
from masking.video.reader import Video
from masking.video.sound import Sound

Picture: TypeAlias = "Packet[VideoStream]"  # generic only for type checkers

_CLOCK = Fraction(1, 90_000)
"""Time base of the files: MPEG's clock, which every usual frame rate divides."""
_LONGEST = 3600 * _CLOCK.denominator
"""Units that a frame may last, an hour: the containers hold 6.6, over several frames where these
are stored in another order."""
_FALLBACK_RATE = Fraction(25)
"""Frames per second where there are no timestamps, as in a folder of images."""
_SLOWEST, _FASTEST = Fraction(1, 3600), 10_000
"""Frames per second beyond which a header is damaged; no film could be written."""
_VIDEO = {
    "overlay": ("libx264", "yuv420p", {"preset": "veryfast", "crf": "20"}),
    "cutout": ("prores_ks", "yuva444p10le", {"profile": "4444", "vendor": "apl0"}),
}


class Film:
    """A video file that is being written.

    `cutout` keeps an alpha channel (ProRes 4444, .mov). `overlay` is H.264 for players (.mp4); an
    odd size is padded by a row or a column, which H.264 needs.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        size: tuple[int, int],
        source: Video | None = None,
    ) -> None:
        """Start a file.

        Args:
            path: the file to write, .mp4 or .mov; it is complete when the film is closed.
            kind: "overlay" or "cutout".
            size: (H, W) in pixels of the frames.
            source: the video whose frames are written, after its first one was read: its sound,
                pixel aspect and, for frames without timestamps, its rate are kept.
        """
        codec, pixels, options = _VIDEO[kind]
        self._pixels, self._size = "rgba" if kind == "cutout" else "rgb24", size
        self._even = tuple(side + side % 2 for side in size) if kind == "overlay" else size
        self._container = av.open(
            str(path.absolute()), "w", format="mov" if kind == "cutout" else "mp4"
        )
        rate = None if source is None else source.rate
        self._rate = rate if rate and _SLOWEST <= rate <= _FASTEST else _FALLBACK_RATE
        self._stream = cast(
            VideoStream, self._container.add_stream(codec, rate=self._rate, options=options)
        )
        self._stream.height, self._stream.width = self._even
        self._stream.pix_fmt = pixels
        self._stream.codec_context.time_base = _CLOCK
        # As players and `masking.video.reader` read untagged video; it is tagged, too.
        self._matrix = Colorspace.ITU709 if size[0] >= HD_LINES else Colorspace.ITU601
        self._stream.codec_context.colorspace = self._matrix
        if source is not None and source.pixel_aspect:
            self._stream.sample_aspect_ratio = source.pixel_aspect
        self._last = -1
        self.notes: list[str] = []
        """What the film lacks."""
        self._sound = None if source is None else Sound(source, self._container, self.notes)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the file; after an error only close it."""
        if error is None:
            self.close()
        else:
            self._close()

    def write(self, image: Pixels, time_s: float | None) -> None:
        """Add a frame.

        Args:
            image: (H, W, 3) uint8 RGB; for a cut-out (H, W, 4) with alpha.
            time_s: seconds since the first frame; None: one frame's time after the frame before. A
                frame that is not later than the one before is shown right after it.
        """
        step = int(1 / self._rate / _CLOCK)
        following = 0 if self._last < 0 else self._last + step
        at = following if time_s is None else round(time_s / _CLOCK)
        at = max(at, self._last + 1) if self._last >= 0 else max(at, 0)
        if at - self._last > _LONGEST:
            at = self._last + _LONGEST
            note = (
                "times of the source that lie more than an hour apart are an hour apart in the film"
            )
            if note not in self.notes:
                self.notes.append(note)
        if image.shape[:2] != self._size:  # in a video whose size changes
            image = cv2.resize(image, self._size[::-1], interpolation=cv2.INTER_AREA)
        if image.shape[:2] != self._even:
            below, right = (e - s for e, s in zip(self._even, image.shape[:2], strict=True))
            image = np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=self._pixels)
        frame = frame.reformat(format=self._stream.pix_fmt, dst_colorspace=self._matrix)
        frame.pts, frame.time_base = at, _CLOCK
        frame.pict_type = PictureType.NONE
        self._mux(self._stream.encode(frame), at * _CLOCK)
        self._last = at

    def close(self) -> None:
        """Write the remaining frames and the file's index."""
        self._mux(self._stream.encode(None), None)
        self._close()

    def _close(self) -> None:
        self._container.close()
        if self._sound is not None:
            self._sound.close()

    def _mux(self, packets: list[Picture], until: Fraction | None) -> None:
        """Write packets, and the sound up to their time, so that a player finds both together."""
        if packets:
            self._container.mux(packets)
        if self._sound is not None:
            self._sound.mux_until(until)
