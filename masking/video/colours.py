"""Decoded frames of any pixel format to RGB in display orientation."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import numpy as np
from av.error import FFmpegError
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter

from masking.images.arrays import Pixels
from masking.images.depth import eight_bits
from masking.video.frame import Report, bits_note
from masking.video.orientation import Orientation, orientation_of

HD_LINES = 720
"""Lines of pixels from which untagged video is BT.709, below BT.601, as in video players."""
_HDR = {16: "PQ", 18: "HLG"}  # colour transfers of ITU-T H.273
_UNTAGGED = 2
DEEP = ("gray16le", "gray16be", "rgb48le", "rgb48be", "gbrp16le", "gbrp16be")
"""FFmpeg's names of pixels of 16 bits, of which cameras often use 10 to 14."""


class Converter:
    """Converts frames of any pixel format to RGB in display orientation."""

    def __init__(self, report: Report, bits: Callable[[], int]) -> None:
        """Take the report that notes go to, and how many of 16 bits the frames use."""
        self.report, self._bits = report, bits
        self._reformatter = VideoReformatter()
        self.orientations: dict[int, Orientation] = {}
        """Orientations by PyAV's angle, which does not tell mirrored ones apart."""
        self._mappers: dict[tuple[Any, ...], Graph | None] = {}

    def __call__(self, raw: VideoFrame) -> Pixels:
        """Return a frame as (H, W, 3) uint8 RGB."""
        transfer = _HDR.get(int(raw.color_trc))
        image = self._mapped(raw, transfer) if transfer else None
        if raw.format.name in DEEP:
            image = self._deep(raw)
        if image is None:
            image = self._plain(raw)
        if raw.rotation not in self.orientations:  # the matrix is read where the angle changes
            self.orientations[raw.rotation] = orientation_of(raw, self.report)
        return self.orientations[raw.rotation].apply(image)

    def _deep(self, raw: VideoFrame) -> Pixels | None:
        """Show the bits that are used of 16, of cameras that have fewer; None: all are used."""
        bits = self._bits()
        if bits == 16:
            return None
        self.report.note(bits_note(bits))
        return np.asarray(eight_bits(raw.to_ndarray(), bits).convert("RGB"))

    def _plain(self, raw: VideoFrame) -> Pixels:
        matrix = None
        if int(raw.colorspace) == _UNTAGGED and not raw.format.is_rgb:
            matrix = Colorspace.ITU709 if raw.height >= HD_LINES else Colorspace.ITU601
        frame = self._reformatter.reformat(
            raw, format="rgb24", src_colorspace=matrix, threads=1 if raw.height < 720 else 0
        )
        return cast(Pixels, frame.to_ndarray())

    def _mapped(self, raw: VideoFrame, transfer: str) -> Pixels | None:
        """Map high dynamic range to BT.709 by FFmpeg's scaler (8.0 and later); None: it cannot."""
        key = (raw.width, raw.height, raw.format.name, raw.time_base)
        if key not in self._mappers:
            self._mappers[key] = _tone_mapper(raw)
        graph = self._mappers[key]
        if graph is None:
            self.report.note(f"{transfer} (high dynamic range) shown as it is: colours are pale")
            return None
        self.report.note(f"{transfer} (high dynamic range) mapped to BT.709")
        graph.push(raw)
        return cast(Pixels, cast(VideoFrame, graph.pull()).to_ndarray())


def _tone_mapper(raw: VideoFrame) -> Graph | None:
    graph = Graph()
    try:
        nodes = [
            graph.add_buffer(
                width=raw.width, height=raw.height, format=raw.format, time_base=raw.time_base
            ),
            graph.add("scale", "out_transfer=bt709:out_primaries=bt709:intent=perceptual"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ]
        for one, following in pairwise(nodes):
            one.link_to(following)
        graph.configure()
    except (FFmpegError, ValueError):
        return None
    return graph
