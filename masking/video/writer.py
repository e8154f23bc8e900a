"""Writes frames to a video file, with the timing and the sound of the video they came from."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias, cast

import av
import cv2
import numpy as np
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import PictureType
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream

from masking.images.arrays import Pixels
from masking.video.colours import HD_LINES

Sound: TypeAlias = "Packet[AudioStream]"  # generic only for type checkers
Picture: TypeAlias = "Packet[VideoStream]"

_CLOCK = Fraction(1, 90_000)
"""Time base of the files: MPEG's clock, which every usual frame rate divides."""
_FALLBACK_RATE = Fraction(25)
"""Frames per second where there are no timestamps, as in a folder of images."""
_VIDEO = {
    "overlay": ("libx264", "yuv420p", {"preset": "veryfast", "crf": "20"}),
    "cutout": ("prores_ks", "yuva444p10le", {"profile": "4444", "vendor": "apl0"}),
}

_PCM = ("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be")
_HELD = {
    "mp4": ("aac", "mp3", "ac3", "eac3", "opus", "flac", "vorbis", "alac"),
    "mov": ("aac", "mp3", "ac3", "eac3", "alac", *_PCM),
}
"""Codecs of sound that a container can hold; others are encoded again."""
_USUAL = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 5: "5.0", 6: "5.1", 8: "7.1"}
"""Usual layout of a number of channels."""


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
        sound: Path | None = None,
        rate: Fraction | None = None,
    ) -> None:
        """Start a file.

        Args:
            path: the file to write, .mp4 or .mov; it is complete when the film is closed.
            kind: "overlay" or "cutout".
            size: (H, W) in pixels of the frames.
            sound: a file whose sound is added; a file without sound, or a folder, adds none.
            rate: frames per second of frames without timestamps.
        """
        codec, pixels, options = _VIDEO[kind]
        self._pixels, self._size = "rgba" if kind == "cutout" else "rgb24", size
        self._even = tuple(side + side % 2 for side in size) if kind == "overlay" else size
        self._container = av.open(
            str(path.absolute()), "w", format="mov" if kind == "cutout" else "mp4"
        )
        self._rate = rate or _FALLBACK_RATE
        self._stream = cast(
            VideoStream, self._container.add_stream(codec, rate=self._rate, options=options)
        )
        self._stream.height, self._stream.width = self._even
        self._stream.pix_fmt = pixels
        self._stream.codec_context.time_base = _CLOCK
        # As players and `masking.video.reader` read untagged video; it is tagged, too.
        self._matrix = Colorspace.ITU709 if size[0] >= HD_LINES else Colorspace.ITU601
        self._stream.codec_context.colorspace = self._matrix
        self._last = -1
        self._sound = _Sound(sound, self._container) if sound is not None else None

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
            for packet in self._sound.until(until):
                self._container.mux(packet)


class _Sound:
    """Packets of a file's first audio stream, as they are, or as AAC if need be."""

    def __init__(self, path: Path, target: OutputContainer) -> None:
        self._source: InputContainer | None = None
        self._left: Iterator[Sound] = iter(())
        self._next: Sound | None = None
        if path.is_file():
            self._source = av.open(str(path.absolute()), metadata_errors="replace")
            # Without a context FFmpeg does not know the codec: then the film is silent.
            known = [s for s in self._source.streams.audio if s.codec_context is not None]
            if known:
                self._left = self._packets(self._source, known[0], target)
                self._next = next(
                    self._left, None
                )  # a stream must exist before the header is written

    def _packets(
        self, source: InputContainer, stream: AudioStream, target: OutputContainer
    ) -> Iterator[Sound]:
        """Yield the packets in units of their own stream, from the first frame of the video on."""
        name = stream.codec_context.name
        holds = name in _HELD[target.format.name]
        films = source.streams.video
        begin = Fraction(0)
        if films and films[0].start_time is not None and films[0].time_base is not None:
            begin = films[0].start_time * films[0].time_base
        make = _copied if holds else _as_aac
        for packet in make(source, stream, target):
            if packet.pts is None or packet.dts is None or packet.time_base is None:
                continue
            shift = round(begin / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            if packet.pts >= 0:
                yield packet

    def until(self, time: Fraction | None) -> Iterator[Sound]:
        """Yield the packets that begin before a time since the first frame; None: all."""
        while self._next is not None:
            at = cast(int, self._next.pts) * self._next.time_base
            if time is not None and at > time:
                return
            yield self._next
            self._next = next(self._left, None)

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


def _copied(
    source: InputContainer, stream: AudioStream, target: OutputContainer
) -> Iterator[Sound]:
    copy = target.add_stream_from_template(stream)
    for packet in _sound_packets(source, stream):
        packet.stream = copy
        yield packet


def _as_aac(
    source: InputContainer, stream: AudioStream, target: OutputContainer
) -> Iterator[Sound]:
    rate, layout = stream.codec_context.sample_rate, stream.codec_context.layout
    if layout.name.endswith(
        "channels"
    ):  # AVI and others give a number of channels without a layout
        layout = AudioLayout(_USUAL.get(layout.nb_channels, "stereo"))
    copy = target.add_stream("aac", rate=rate)
    copy.codec_context.layout = layout
    resampler = AudioResampler("fltp", layout, rate, frame_size=1024)
    for packet in _sound_packets(source, stream):
        try:
            frames = packet.decode()
        except FFmpegError:
            continue
        for frame in frames:
            for even in resampler.resample(frame):
                yield from copy.encode(even)
    for even in resampler.resample(None):
        yield from copy.encode(even)
    yield from copy.encode(None)


def _sound_packets(source: InputContainer, stream: AudioStream) -> Iterator[Sound]:
    """Yield all packets that can be read; a file that breaks off has sound up to there."""
    packets = source.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, FFmpegError):
            return
        if packet.size:
            yield packet
