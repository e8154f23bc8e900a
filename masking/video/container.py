"""Video files as streams of decoded frames, by PyAV (FFmpeg)."""

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import av
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame

from masking.video.frame import Report, VideoError

MAX_PIXELS = 1 << 27
"""Frames of more pixels are refused by the decoder: 16,384 x 8,192."""
_NOT_THE_FILE = {
    errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENODEV,
}  # fmt: skip
"""Errors of a disk, the network or this machine, which damage to the file does not cause."""


def open_container(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open a file; return the container and its first video stream that is not a cover picture.

    Raises:
        VideoError: the file is missing, is no video, or has no decoder.
    """
    # Messages of FFmpeg that matter are raised as exceptions, too.
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    try:
        container = av.open(str(path.absolute()), metadata_errors="replace")
    except FFmpegError as error:
        _check_machine(error, path)
        if error.errno == errno.ENOENT:
            raise VideoError("not_found", f"{path}: no such file (any more)") from error
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
    # Threads by slice, the default: threads by frame silently lose frames near broken ones.
    context.options = {"max_pixels": str(MAX_PIXELS)}
    return container, stream


def decoded_frames(
    container: av.container.InputContainer, stream: av.VideoStream, report: Report
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


def _check_machine(error: FFmpegError | OSError, path: Path | str) -> None:
    """Raise an error that is not the file's fault as OSError or MemoryError."""
    if error.errno == errno.ENOMEM:
        raise MemoryError(f"{path}: the machine is out of memory") from error
    if error.errno in _NOT_THE_FILE:
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
