"""Video files as streams of decoded frames, by PyAV (FFmpeg)."""

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.format import Flags
from av.stream import Disposition
from av.video.frame import VideoFrame

from masking.images.lfs import POINTER, is_pointer
from masking.video.frame import Report, VideoError

MAX_PIXELS = 1 << 27
"""Frames of more pixels are refused by the decoder: 16,384 x 8,192."""
FORMATS = (
    "mov", "matroska", "mpegts", "mpeg", "avi", "asf", "flv", "ogg", "mxf", "ivf", "gif", "apng",
    "yuv4mpegpipe", "h264", "hevc", "vvc", "av1", "obu", "mpegvideo", "m4v", "mjpeg",
    "jpeg_pipe", "webp_pipe",
)  # fmt: skip
"""FFmpeg's names of the formats that are read. All hold their own pictures: a playlist or a pattern
of names would make a job read other files of the machine."""
OPENING_S = 30
"""Seconds that opening a file, or reading one packet, may take."""
_NOT_THE_FILE = {
    errno.ESTALE, errno.EACCES, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE,
    errno.ENOTCONN, errno.EHOSTDOWN, errno.ENODEV,
}  # fmt: skip
"""Errors of a disk, the network or this machine, which damage to the file does not cause."""
_PICTURES = ("mjpeg", "png", "bmp", "webp", "gif")
"""Codecs of a preview beside the film of a file."""
_CHUNK = 1 << 22
_PLENTY = 1 << 30
"""Bytes that are more than any frame takes."""
_HEAD = 64
_TEXT = bytes([9, 10, 13, *range(32, 127)])


def open_input(path: Path) -> InputContainer:
    """Open a file of sound and pictures.

    Raises:
        VideoError: it is missing, or cannot be opened.
        OSError, MemoryError: the machine failed, not the file.
    """
    # Messages of FFmpeg that matter are raised as exceptions, too.
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    only = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    try:
        return av.open(
            str(path.absolute()),
            container_options=only,
            metadata_errors="replace",
            timeout=OPENING_S,
        )
    except (FFmpegError, OSError) as error:
        _check_machine(error, path)
        if error.errno == errno.ENOENT:
            raise VideoError("not_found", f"{path}: no such file (any more)") from error
        raise VideoError(
            "not_a_video", f"{path}: not a video that can be opened: {_reason(error, path)}"
        ) from error


def _reason(error: FFmpegError | OSError, path: Path) -> str:
    if isinstance(error, av.error.ExitError):
        return f"it takes more than {OPENING_S} s"
    if is_pointer(path):
        return f"it {POINTER}"
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if head and head.translate(None, _TEXT) == b"":
        return "it is text; playlists and other lists of files are not read"
    if error.errno == errno.EINVAL:
        return f"it is none of the formats that are read ({', '.join(FORMATS)})"
    return str(error.strerror)


def open_container(path: Path) -> tuple[InputContainer, av.VideoStream]:
    """Open a file; return the container and the video stream that a player shows.

    Raises:
        VideoError: the file is missing, is no video, or has no decoder.
        OSError, MemoryError: the machine failed, not the file.
    """
    container = open_input(path)
    if not container.streams.video:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
        container.close()
        raise VideoError("no_video_stream", f"{path}: no video stream (streams: {kinds})")
    stream = max(container.streams.video, key=_rank)  # the first of equal ones
    context = stream.codec_context
    if context is None:
        container.close()
        raise VideoError("no_decoder", f"{path}: no decoder for its codec")
    # Threads by slice, the default: threads by frame silently lose frames near broken ones.
    context.options = {"max_pixels": str(MAX_PIXELS)}
    return container, stream


def _rank(stream: av.VideoStream) -> tuple[bool, bool, bool, bool, int]:
    """Return what makes a player show a stream: a film rather than a cover, one that decodes, the
    one that is marked as the default, the largest."""
    context, flags = stream.codec_context, stream.disposition
    is_cover = bool(flags & (Disposition.attached_pic | Disposition.timed_thumbnails))
    if context is None:
        return not is_cover, True, False, False, 0
    is_film = context.name not in _PICTURES or stream.frames != 1
    area = context.width * context.height
    return not is_cover, is_film, True, bool(flags & Disposition.default), area


def note_streams(container: InputContainer, stream: av.VideoStream, report: Report) -> None:
    """Note which of several video streams is read, covers not counted."""
    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if len(films) > 1:
        report.note(
            f"stream {stream.index} ({_size(stream)}) is read, of {len(films)} video streams; the"
            " others: " + ", ".join(f"{s.index} ({_size(s)})" for s in films if s is not stream)
        )


def _size(stream: av.VideoStream) -> str:
    context = stream.codec_context
    return "no decoder" if context is None else f"{context.width} x {context.height}"


def jumps(container: InputContainer) -> bool:
    """Return whether timestamps may jump, as in transport streams and on DVDs."""
    return bool(container.format.flags & cast(int, Flags.ts_discont.value))


def decoded_frames(
    container: InputContainer, stream: av.VideoStream, report: Report
) -> Iterator[VideoFrame]:
    """Yield all frames that decode; packets that do not are counted and skipped.

    Raises:
        OSError, MemoryError: the machine failed, not the file, which may be whole.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (FFmpegError, OSError) as error:
            _check_machine(error, container.name)
            # After an error of the demuxer there may be only errors: take what the decoder still
            # holds, then stop.
            report.cut_off = True
            report.note(f"the container cannot be read to its end: {error.strerror}")
            yield from _flushed(stream, report)
            return
        try:
            for frame in packet.decode():
                report.corrupt_packets += bool(frame.is_corrupt)
                yield frame
        except (FFmpegError, OSError) as error:
            report.corrupt_packets += 1
            report.note(f"the decoder fails: {error.strerror}")


def _flushed(stream: av.VideoStream, report: Report) -> Iterator[VideoFrame]:
    try:
        yield from stream.codec_context.decode(None)
    except (FFmpegError, OSError) as error:
        report.note(f"the decoder fails: {error.strerror}")


def seek(container: InputContainer, stream: av.VideoStream, stamp: int) -> bool:
    """Move to a timestamp; return whether the container can.

    Raises:
        OSError, MemoryError: the machine failed, not the file.
    """
    try:
        container.seek(stamp, stream=stream)
    except (FFmpegError, OSError) as error:
        _check_machine(error, container.name)
        return False
    return True


def _check_machine(error: FFmpegError | OSError, path: Path | str) -> None:
    """Raise an error that is not the file's fault as OSError or MemoryError.

    For damage, too, FFmpeg's readers return EIO, and ENOMEM for a size that is none. Then all bytes
    of the file can be read, and memory can be allocated.
    """
    if error.errno == errno.ENOMEM and not _has_memory():
        raise MemoryError(f"{path}: the machine is out of memory") from error
    if error.errno in _NOT_THE_FILE:
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    if error.errno == errno.EIO:
        with Path(path).open("rb") as stream:
            while stream.read(_CHUNK):
                pass


def _has_memory() -> bool:
    try:
        np.empty(_PLENTY, np.uint8)
    except MemoryError:
        return False
    return True
