"""The sound of a video, added to a film of its frames."""

from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from itertools import islice
from typing import TypeAlias, cast

import av
from av import CodecContext
from av.audio.codeccontext import AudioCodecContext
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.codec import Codec
from av.container import InputContainer, OutputContainer
from av.error import ArgumentError, FFmpegError, InvalidDataError
from av.packet import Packet
from av.stream import Disposition

from masking.video.clock import Clock
from masking.video.container import jumps, open_input
from masking.video.frame import VideoError
from masking.video.reader import Video

MaybePacket: TypeAlias = "Packet[AudioStream] | None"  # generic only for type checkers

_PCM = ("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be")
_HELD = {
    "mp4": ("aac", "mp3", "ac3", "eac3", "opus", "flac", "vorbis", "alac"),
    "mov": ("aac", "mp3", "ac3", "eac3", "alac", *_PCM),
}
"""Codecs of sound that a container can hold; others are encoded again."""
_USUAL = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 5: "5.0", 6: "5.1", 8: "7.1"}
"""Usual layout of a number of channels."""
_TRIED = 3
"""Packets of a trial of whether a film can hold a sound."""


class Sound:
    """The sound of a video, as it is, or as AAC if the film cannot hold it."""

    def __init__(self, video: Video, target: OutputContainer, notes: list[str]) -> None:
        """Add a stream to a film, if the video has sound.

        Args:
            video: the video, of which the first frame was read.
            target: the film's container.
            notes: list that is told what is missing.
        """
        self._video, self._target, self._notes = video, target, notes
        self._source: InputContainer | None = None
        self._left: Iterator[MaybePacket] = iter(())
        self._next: MaybePacket = None
        self._ends = False
        if not video.path.is_file() or not video.origins:
            return
        try:
            self._source = open_input(video.path)
        except VideoError:  # a picture
            return
        known = [s for s in self._source.streams.audio if s.codec_context is not None]
        if not known:
            if self._source.streams.audio:
                notes.append("the film is silent: the codec of the sound is not known")
            return
        stream = max(known, key=lambda s: bool(s.disposition & Disposition.default))
        try:
            self._left = self._made(stream)
            self._next = next(self._left, None)  # its stream must exist before the header
        except (ArgumentError, InvalidDataError, ValueError) as error:
            notes.append(f"the film is silent: {error}")

    def mux_until(self, time: Fraction | None) -> None:
        """Write the packets that begin before a time since the first frame; None: all."""
        self._ends = time is None
        try:
            while True:
                if self._next is None:
                    self._next = next(self._left)
                if self._next is None:
                    return
                at = cast(int, self._next.pts) * self._next.time_base
                if time is not None and at > time:
                    return
                packet, self._next = self._next, None
                self._target.mux(packet)
        except StopIteration:
            return
        except (ArgumentError, InvalidDataError) as error:
            self._left, self._next = iter(()), None
            self._notes.append(f"the film's sound ends early: {error.strerror}")

    def close(self) -> None:
        """Free the decoder."""
        if self._source is not None:
            self._source.close()

    def _made(self, stream: AudioStream) -> Iterator[MaybePacket]:
        """Yield packets of the film; None: not before more frames of the video are read."""
        last: int | None = None
        for packet in (self._copied if self._holds(stream) else self._as_aac)(stream):
            if packet is None:
                yield None
                continue
            if packet.pts is None or packet.pts < 0 or packet.dts is None:
                continue
            # The end of a recording may overlap with the one that was joined to it.
            if last is None or packet.dts > last:
                last = packet.dts
                yield packet

    def _holds(self, stream: AudioStream) -> bool:
        """Return whether the film can hold the sound as it is; its header may be damaged."""
        form = self._target.format.name
        if stream.codec_context.name not in _HELD[form]:
            return False
        try:
            with open_input(self._video.path) as source, av.open(BytesIO(), "w", form) as trial:
                copy = trial.add_stream_from_template(source.streams[stream.index])
                for packet in islice(source.demux(stream.index), _TRIED):
                    if packet.size:
                        packet.stream = copy
                        trial.mux(packet)
        except (FFmpegError, ValueError):
            return False
        return True

    def _copied(self, stream: AudioStream) -> Iterator[MaybePacket]:
        copy = self._target.add_stream_from_template(stream)
        for packet in self._packets(stream):
            if packet is not None:
                try:
                    packet.decode()
                except FFmpegError:  # the film could not be finished with a damaged packet
                    continue
                packet.stream = copy
            yield packet

    def _as_aac(self, stream: AudioStream) -> Iterator[MaybePacket]:
        encoder = _aac(stream.codec_context)
        copy = self._target.add_stream("aac", rate=encoder.sample_rate)
        copy.codec_context.layout = encoder.layout
        resampler = _resampler(copy.codec_context)
        for packet in self._packets(stream):
            if packet is None:
                yield None
                continue
            try:
                frames = packet.decode()
            except FFmpegError:
                continue
            for frame in frames:
                try:
                    parts = resampler.resample(frame)
                except (ValueError, FFmpegError):  # the sound's own format has changed
                    resampler = _resampler(copy.codec_context)
                    parts = resampler.resample(frame)
                for part in parts:
                    yield from copy.encode(part)
        for part in resampler.resample(None):
            yield from copy.encode(part)
        yield from copy.encode(None)

    def _packets(self, stream: AudioStream) -> Iterator[MaybePacket]:
        """Yield all packets that can be read, by the time since the video's first frame.

        Where recordings are joined, those of the next one wait until its first frame is known.
        """
        source = cast(InputContainer, self._source)
        clock: Clock | None = None
        packets = source.demux(stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, FFmpegError):  # a file that breaks off has sound up to there
                return
            if not packet.size or packet.pts is None or packet.dts is None:
                continue
            unit = packet.time_base
            if clock is None:
                clock = Clock(packet.dts, unit, None, jumps(source))
            clock(packet.dts)
            recording = len(clock.zeros) - 1
            while recording >= len(self._video.origins):
                if self._ends:
                    return
                yield None
            shift = round(self._video.origins[recording] / unit)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            yield packet


def _aac(sound: AudioCodecContext) -> AudioCodecContext:
    """Return an encoder for a sound, of the nearest rate and layout that AAC knows."""
    layout = sound.layout
    if layout.name.endswith("channels"):  # AVI and others give a number without a layout
        layout = AudioLayout(_USUAL.get(layout.nb_channels, "stereo"))
    rates = sorted(Codec("aac", "w").audio_rates or [sound.sample_rate])
    rate = next((one for one in rates if one >= sound.sample_rate), rates[-1])
    for name in (layout.name, "stereo"):
        encoder = CodecContext.create("aac", "w")
        encoder.sample_rate, encoder.layout, encoder.format = rate, name, "fltp"
        encoder.time_base = Fraction(1, rate)
        try:
            encoder.open()
        except FFmpegError:
            continue
        return encoder
    raise ValueError(f"no AAC of {rate} samples per second and {layout.name}")


def _resampler(encoder: AudioCodecContext) -> AudioResampler:
    return AudioResampler("fltp", encoder.layout, encoder.sample_rate, frame_size=1024)
