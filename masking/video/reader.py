"""A video as a stream of RGB frames, in the order and the orientation in which it is shown.

    with Video.open(path) as video:
        for frame in video:             # one at a time; nothing is kept
            frame.image                 # (H, W, 3) uint8 RGB

A frame's index is its place in the order of a default decode, from 0: containers' own counts are
wrong too often to be asked. A file whose decoder stumbles gives what can be had; `Video.report`
says what was lost. Files are read by PyAV (FFmpeg); a folder of images is a video too.
"""

import errno
import logging
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import av
import numpy as np
from av.error import FFmpegError
from av.filter import Graph
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter

from masking.images.arrays import Pixels
from masking.images.decode import ImageError, read_image

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""What of a folder is a frame, by the ending of its name."""

RING_BYTES = 256 << 20
"""Decoded frames that a backward pass holds at a time."""
MAX_PIXELS = 1 << 27
"""Frames of more pixels are refused by the decoder: 16,384 x 8,192."""
HD_LINES = 720
"""Untagged video of so many lines is BT.709, of fewer BT.601, as players take it."""
_NOT_THE_FILE = {
    errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENODEV,
}  # fmt: skip
"""What a disk, the network or this machine says when a file is read; no damage to it does."""
_HDR = {16: "PQ", 18: "HLG"}  # colour transfers of ITU-T H.273
_UNTAGGED = 2
_KEPT_MESSAGES = 5


class VideoError(ValueError):
    """A video that cannot be used: a code for programs, and for people what was wrong where."""

    def __init__(self, code: str, message: str) -> None:
        """`code`: not_found, not_a_video, no_video_stream, no_decoder, no_frames."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Frame:
    """A decoded frame."""

    index: int
    """From 0, in presentation order."""
    pts: int | None
    """Its time stamp in units of the video's `time_base`, as the file has it; None: it has none."""
    time_s: float | None
    """Seconds since the first frame; None for images of a folder and without a time stamp."""
    image: Pixels
    """(H, W, 3) uint8 RGB as displayed: rotation applied, pixel aspect not."""


@dataclass
class Report:
    """What went wrong in reading, so far."""

    frames: int = 0
    """Frames that came out."""
    corrupt_packets: int = 0
    """Packets that did not decode, and frames that the decoder says are damaged."""
    cut_off: bool = False
    """The container ended in an error, before its end."""
    unsorted: int = 0
    """Frames whose time stamp is not later than the one before."""
    notes: list[str] = field(default_factory=list)
    """What else is to be known, and the first messages of the decoder."""

    def note(self, text: str) -> None:
        """Keep a message, once, and not more than a few."""
        if text not in self.notes and len(self.notes) < _KEPT_MESSAGES:
            self.notes.append(text)


@dataclass(frozen=True)
class Moment:
    """A frame without its pixels: when it is shown, and what finds it again."""

    pts: int | None
    """As of `Frame`."""
    time_s: float | None
    """As of `Frame`."""
    key: bool
    """Whether the file says that decoding can begin with it."""


class Video:
    """An open video. Iterate over it once, forward; or `backward` from a frame, as often as wanted.

    Close it, or use it in a `with` statement: FFmpeg's threads live as long as it does.
    """

    def __init__(self, path: Path, source: "_File | _Folder") -> None:
        """Use `Video.open`."""
        self.path = path
        self._source = source

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a video file, or a folder of images in natural order of their names.

        Raises:
            VideoError: nothing there, no video, or no decoder for it.
        """
        path = Path(path)
        if path.is_dir():
            return cls(path, _Folder(path))
        if not path.is_file():
            raise VideoError("not_found", f"{path}: no such file or folder")
        return cls(path, _File(path))

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Free the decoder."""
        self._source.close()

    @property
    def report(self) -> Report:
        """Of the forward pass so far."""
        return self._source.report

    @property
    def rate(self) -> Fraction | None:
        """Average frames a second that the container claims; None: unknown."""
        return self._source.rate

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise by which stored frames are turned for display."""
        return self._source.rotation

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec; "images" for a folder."""
        return self._source.codec

    def __iter__(self) -> Iterator[Frame]:
        """Frames from the first to the last."""
        return self.forward()

    def forward(self, start: int = 0) -> Iterator[Frame]:
        """Frames from `start` on. Those before it are decoded too, but not converted.

        Raises:
            VideoError: no frame at all.
        """
        yield from self._source.forward(start)

    def times(self) -> Iterator[float | None]:
        """Seconds of each frame since the first, decoded but not converted."""
        yield from self._source.times()

    def moments(self) -> Iterator[Moment]:
        """All frames without their pixels, decoded but not converted; `report` is of this pass."""
        yield from self._source.moments()

    def seek(self, index: int, moments: Sequence[Moment], clean: bool) -> Iterator[Frame]:
        """The frames that `forward(index)` gives, from the key frame before instead of the start.

        Args:
            index: of the first frame that is wanted.
            moments: what `moments` has given so far, at least up to `index`; it may grow meanwhile.
            clean: whether that pass met no damage. If it did, or time stamps do not rise, all
                frames before are decoded all the same.
        """
        yield from self._source.seek(index, moments, clean)

    def backward(self, last: int, ring_bytes: int = RING_BYTES) -> Iterator[Frame]:
        """Frames from `last` to the first, by groups of pictures, each decoded forward into a ring.

        Args:
            last: the index to begin with; of a shorter video, its last frame is.
            ring_bytes: decoded frames held at a time. A longer group is decoded in several goes.
        """
        yield from self._source.backward(last, ring_bytes)


class _File:
    """A container, read by PyAV."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.report = Report()
        self.rotation = 0
        self._container, self._stream = _open(path)
        self.rate = self._stream.average_rate or self._stream.guessed_rate
        self.codec = self._stream.codec_context.name
        self._convert = _Converter(self.report)

    def close(self) -> None:
        self._container.close()

    def forward(self, start: int) -> Iterator[Frame]:
        first: int | None = None
        last: int | None = None
        self.report = self._convert.report = Report()
        container, stream = _open(self.path)
        with container:
            for raw in _decoded(container, stream, self.report):
                index, pts = self.report.frames, raw.pts
                self.report.frames += 1
                if index == 0:
                    first = pts
                    self.rotation = _rotation(raw, self.report)
                if pts is not None:
                    self.report.unsorted += last is not None and pts <= last
                    last = pts
                if index >= start:
                    yield self._frame(raw, index, first)
        if missing := missing_bytes(self.path):
            self.report.cut_off = True
            self.report.note(f"the file ends {missing:,} bytes before it says")
        if not self.report.frames:
            raise VideoError(
                "no_frames",
                f"{self.path}: not one frame decodes"
                + "".join(f"; {note}" for note in self.report.notes[:1]),
            )

    def times(self) -> Iterator[float | None]:
        return (moment.time_s for moment in self._moments(Report()))

    def moments(self) -> Iterator[Moment]:
        self.report = Report()
        for moment in self._moments(self.report):
            self.report.frames += 1
            yield moment

    def _moments(self, report: Report) -> Iterator[Moment]:
        container, stream = _open(self.path)
        with container:
            first: int | None = None
            for index, raw in enumerate(_decoded(container, stream, report)):
                if index == 0:
                    first = raw.pts
                    self.rotation = _rotation(raw, report)
                yield Moment(raw.pts, _time(raw, first), bool(raw.key_frame))

    def seek(self, index: int, moments: Sequence[Moment], clean: bool) -> Iterator[Frame]:
        sure = clean and _ordered(moments)
        begin = max((i for i in range(index + 1) if moments[i].key), default=0) if sure else 0
        following = index
        for at, raw in self._from(begin, moments, sure):
            if at >= following:
                yield self._frame(raw, at, moments[0].pts)
                following = at + 1
        if sure and following < len(moments):  # a decoder that does not say the same twice
            for at, raw in self._from(0, moments, False):
                if at >= following:
                    yield self._frame(raw, at, moments[0].pts)

    def _frame(self, raw: VideoFrame, index: int, first: int | None) -> Frame:
        return Frame(index, raw.pts, _time(raw, first), self._convert(raw))

    def backward(self, last: int, ring_bytes: int) -> Iterator[Frame]:
        moments, sure = self._survey(last)
        stop = len(moments)
        while stop > 0:
            ring = self._before(stop, moments, sure, ring_bytes)
            if not ring:
                if not sure:  # a decoder that does not say the same twice
                    return
                sure = False
                continue
            stop = ring[0].index
            while ring:
                yield ring.pop()

    def _before(
        self, stop: int, moments: list[Moment], sure: bool, ring_bytes: int
    ) -> deque[Frame]:
        """The frames that end with `stop - 1`, of its group and as many as may be held.

        Empty if that frame was not found again.
        """
        begin = max((i for i in range(stop) if moments[i].key), default=0) if sure else 0
        ring: deque[Frame] = deque()
        most = stop
        for index, raw in self._from(begin, moments, sure):
            if index >= stop:
                break
            if ring:
                most = max(1, ring_bytes // ring[0].image.nbytes)
            if not ring or index >= stop - most:  # others would leave the ring again
                ring.append(self._frame(raw, index, moments[0].pts))
            while len(ring) > most:
                ring.popleft()
        return ring if ring and ring[-1].index == stop - 1 else deque()

    def _survey(self, last: int) -> tuple[list[Moment], bool]:
        """Decode up to a frame; what frames there are, and whether key frames can be trusted."""
        report = Report()
        moments = [*islice(self._moments(report), last + 1)]
        return moments, not report.corrupt_packets and _ordered(moments)

    def _from(
        self, begin: int, moments: Sequence[Moment], sure: bool
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Frames from an index on, found by their time stamps after a seek; or all from the start.

        It ends early where frames are not those of the survey.
        """
        container, stream = _open(self.path)
        with container:
            if not sure or begin == 0:
                yield from enumerate(_decoded(container, stream, Report()))
                return
            # Not before a key frame's own stamp, or some demuxers land on the one before.
            container.seek(cast(int, moments[begin].pts), stream=stream)
            index = begin
            for raw in _decoded(container, stream, Report()):
                if raw.pts is None or index >= len(moments):
                    return
                if raw.pts < cast(int, moments[begin].pts):
                    continue
                if raw.pts != moments[index].pts:
                    return
                yield index, raw
                index += 1


class _Folder:
    """Images of a folder."""

    codec = "images"
    rotation = 0
    rate: Fraction | None = None

    def __init__(self, path: Path) -> None:
        self.report = Report()
        self.path = path
        files = [file for file in path.iterdir() if is_frame(file.name) and file.is_file()]
        self._files = sorted(files, key=lambda file: _natural(file.name))
        if not files:
            raise VideoError(
                "not_a_video", f"{path}: a folder without images ({', '.join(IMAGES)} are read)"
            )

    def close(self) -> None:
        pass

    def forward(self, start: int) -> Iterator[Frame]:
        for index, file in enumerate(self._files[start:], start):
            frame = self._read(file, index)
            self.report.frames = index + 1
            yield frame

    def times(self) -> Iterator[float | None]:
        yield from [None] * len(self._files)

    def moments(self) -> Iterator[Moment]:
        yield from [Moment(None, None, True)] * len(self._files)

    def seek(self, index: int, moments: Sequence[Moment], clean: bool) -> Iterator[Frame]:
        return self.forward(index)

    def backward(self, last: int, ring_bytes: int) -> Iterator[Frame]:
        for index in range(min(last, len(self._files) - 1), -1, -1):
            yield self._read(self._files[index], index)

    def _read(self, file: Path, index: int) -> Frame:
        """An image that does not decode is an error: a gap would shift all frames after it."""
        try:
            return Frame(index, None, None, read_image(file, 0)[0])
        except ImageError as error:
            raise VideoError("not_a_video", f"{file}: frame {index}: {error}") from error


def _ordered(moments: Sequence[Moment]) -> bool:
    """Whether time stamps only rise, so that a frame is known again by its own."""
    stamps = [moment.pts for moment in moments if moment.pts is not None]
    rising = all(a < b for a, b in pairwise(stamps))
    return rising and len(stamps) == len(moments) > 0 and moments[0].key


def _time(raw: VideoFrame, first: int | None) -> float | None:
    """Seconds since the frame whose time stamp is `first`."""
    if raw.pts is None or raw.time_base is None:
        return None
    return float((raw.pts - (first or 0)) * raw.time_base)


def is_frame(name: str) -> bool:
    """Whether a file of a folder is one of its frames."""
    return name.lower().endswith(IMAGES) and not name.startswith(".")


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers by value: frame 9 before frame 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _open(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    """A container and its first video stream that is not a cover picture."""
    logging.getLogger("libav").setLevel(logging.CRITICAL)  # its messages come as exceptions too
    try:
        container = av.open(str(path.absolute()), metadata_errors="replace")
    except FFmpegError as error:
        _check_machine(error, path)
        if error.errno == errno.ENOENT:
            raise VideoError("not_found", f"{path} is not there (any more)") from error
        raise VideoError(
            "not_a_video", f"{path}: not a video that can be opened: {error.strerror}"
        ) from error
    videos = container.streams.video
    films = [s for s in videos if not s.disposition & Disposition.attached_pic]
    if not videos:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
        container.close()
        raise VideoError("no_video_stream", f"{path}: no video stream (streams: {kinds})")
    stream = (films or list(videos))[0]
    context = stream.codec_context
    if context is None:
        container.close()
        raise VideoError("no_decoder", f"{path}: no decoder for its codec")
    # Threads by slice, the default: threads by frame lose frames beside broken ones, in silence.
    context.options = {"max_pixels": str(MAX_PIXELS)}
    return container, stream


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream, report: Report
) -> Iterator[VideoFrame]:
    """All frames that can be had: packets that do not decode are counted and skipped.

    Raises:
        OSError, MemoryError: the trouble is not the file's, which may be whole.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (FFmpegError, OSError) as error:
            _check_machine(error, container.name)
            # After an error of the demuxer there may be nothing but errors: what the decoder
            # still holds is asked for, then it is over.
            report.cut_off = True
            report.note(f"the container breaks off: {error.strerror}")
            yield from _flushed(stream, report)
            return
        try:
            for frame in packet.decode():
                report.corrupt_packets += bool(frame.is_corrupt)
                yield frame
        except (FFmpegError, OSError) as error:
            report.corrupt_packets += 1
            report.note(f"the decoder says: {error.strerror}")


def _flushed(stream: av.VideoStream, report: Report) -> Iterator[VideoFrame]:
    try:
        yield from stream.codec_context.decode(None)
    except (FFmpegError, OSError) as error:
        report.note(f"the decoder says: {error.strerror}")


def _check_machine(error: FFmpegError | OSError, path: Path | str) -> None:
    """Raise what is no fault of the file as what it is."""
    if error.errno == errno.ENOMEM:
        raise MemoryError(f"{path}: no memory left") from error
    if error.errno in _NOT_THE_FILE:
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def missing_bytes(path: Path) -> int:
    """How much shorter a file is than it says itself, as an upload leaves it that broke off.

    FFmpeg only logs it, or says nothing where the cut lies in what it skips. Of Matroska and WebM,
    MP4 and QuickTime, AVI; 0 for all others.
    """
    with path.open("rb") as stream:
        head = stream.read(4096)
        size = path.stat().st_size
        if head.startswith(b"\x1a\x45\xdf\xa3"):
            return max(0, _matroska_end(head) - size)
        following = {b"RIFF": _riff_chunk}.get(head[:4])
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
            following = _iso_box
        at = 0
        while following is not None and at < size:
            stream.seek(at)
            length = following(stream.read(16))
            if length == 0:  # to the end, or nothing that belongs to it
                return 0
            at += length
    return max(0, at - size)


def _matroska_end(head: bytes) -> int:
    """RFC 8794: a master element is its id and its length, which takes as many bytes as the first
    of them has zeros in front, and one; all ones: unknown, as of a live stream."""
    at = head.find(b"\x18\x53\x80\x67") + 4  # Segment, which holds all that follows
    if at < 4 or at >= len(head) or not head[at]:
        return 0
    width = 9 - head[at].bit_length()
    unknown = (1 << 7 * width) - 1
    length = int.from_bytes(head[at : at + width], "big") & unknown
    return 0 if length == unknown else at + width + length


def _iso_box(head: bytes) -> int:
    """ISO 14496-12, 4.2: length and name, then the length again where it takes 64 bits."""
    length, name = int.from_bytes(head[:4], "big"), head[4:8]
    if len(name) < 4 or not name.isascii() or not name.decode().isprintable():
        return 0
    if length == 1 and len(head) == 16:
        length = int.from_bytes(head[8:], "big")
    return length if length >= 8 else 0


def _riff_chunk(head: bytes) -> int:
    """Of AVI the first chunk holds all; of more than a gigabyte others like it follow."""
    length = int.from_bytes(head[4:8], "little")
    known = head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX")
    return 8 + length + length % 2 if known and 0 < length < (1 << 32) - 1 else 0


def _rotation(raw: VideoFrame, report: Report) -> int:
    """Degrees, a multiple of 90; 0 where the matrix is rubbish."""
    if raw.rotation % 90 or abs(raw.rotation) > 360:
        report.note(f"a rotation of {raw.rotation} degrees is left out: no multiple of 90")
        return 0
    return int(raw.rotation)


class _Converter:
    """Frames of any format to RGB in display orientation."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._reformatter = VideoReformatter()
        self._mappers: dict[tuple[Any, ...], Graph | None] = {}

    def __call__(self, raw: VideoFrame) -> Pixels:
        """(H, W, 3) uint8 RGB."""
        transfer = _HDR.get(int(raw.color_trc))
        image = self._mapped(raw, transfer) if transfer else None
        if image is None:
            image = self._plain(raw)
        turns = 0 if raw.rotation % 90 or abs(raw.rotation) > 360 else raw.rotation // 90
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    def _plain(self, raw: VideoFrame) -> Pixels:
        matrix = None
        if int(raw.colorspace) == _UNTAGGED and not raw.format.is_rgb:
            matrix = Colorspace.ITU709 if raw.height >= HD_LINES else Colorspace.ITU601
        frame = self._reformatter.reformat(
            raw, format="rgb24", src_colorspace=matrix, threads=1 if raw.height < 720 else 0
        )
        return cast(Pixels, frame.to_ndarray())

    def _mapped(self, raw: VideoFrame, transfer: str) -> Pixels | None:
        """High dynamic range to BT.709, by FFmpeg's scaler (8.0 and later); None: it cannot."""
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
