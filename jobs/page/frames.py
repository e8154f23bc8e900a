"""Frames of a video by number, the same that `jobs.mask` decodes, fast enough to step through.

A thread decodes the whole file once and records the timestamp of each frame, because the counts in
containers are often wrong. Each frame that it has passed can then be decoded from the key frame
before it.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from masking.images.arrays import Pixels
from masking.video.frame import Frame, Timestamp, VideoError
from masking.video.reader import Video

KEPT_BYTES = 256 << 20
"""Bytes of decoded frames that are kept per video."""
OPENING = 30.0
"""Seconds in which the first frame of a video must decode."""
BACK = 12
"""Number of frames before the requested one that are decoded with it when stepping backward."""
_NEAR = 8  # frames ahead up to which decoding on is faster than seeking a key frame
_JPEG_QUALITY = 95
_NICE = 10


class VideoScan:
    """A thread that decodes a video once and records the timestamp of each frame.

    Methods may be called from any thread.
    """

    def __init__(self, path: Path) -> None:
        """Open a video file or a folder of frames, and start the thread.

        Raises:
            VideoError: it is no video.
        """
        self.path, self.version = path, version(path)
        self.video = Video.open(path)
        self.timestamps: list[Timestamp] = []
        self.complete = self._closed = False
        self._grown = threading.Condition()
        self._thread = threading.Thread(target=self._scan, name="scan", daemon=True)
        self._thread.start()

    def close(self, until: float = 0) -> None:
        """Stop the thread, and wait for it up to a time of `time.monotonic`."""
        self._closed = True
        with self._grown:
            self._grown.notify_all()
        self._thread.join(max(0.0, until - time.monotonic()))

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def names(self) -> tuple[str, ...] | None:
        """File names of the frames of a folder; None: the video is a file."""
        return self.video.names

    @property
    def notes(self) -> list[str]:
        """Messages about what is unusual in the part of the file that was scanned."""
        report = self.video.report
        lost = report.corrupt_packets
        return [*report.notes, *([f"{lost:,} packets did not decode"] if lost else [])]

    @property
    def changed(self) -> bool:
        """Whether the file was replaced or deleted since it was opened."""
        return version(self.path) != self.version

    @property
    def clean(self) -> bool:
        """Whether every packet decoded in the part of the file that was scanned."""
        return not self.video.report.corrupt_packets

    def times(self, start: int = 0) -> tuple[list[float | None], bool]:
        """Return the seconds of the frames from `start` on that are known, and if these are all."""
        with self._grown:
            return [known.time_s for known in self.timestamps[start:]], self.complete

    def wait(self, index: int, timeout: float | None = None) -> int:
        """Wait until a frame, or the end of the video, is known; returns the number known then.

        Args:
            index: number of the frame.
            timeout: seconds to wait at most; None: without limit.
        """
        with self._grown:
            self._grown.wait_for(
                lambda: self.complete or self._closed or len(self.timestamps) > index, timeout
            )
            return len(self.timestamps)

    def _scan(self) -> None:
        try:
            for index, timestamp in enumerate(self.video.timestamps()):
                if index == _NEAR:  # a person waits for the frames before
                    yield_to_others()
                with self._grown:
                    self.timestamps.append(timestamp)
                    self._grown.notify_all()
                if self._closed:
                    return
        except VideoError as error:
            self.video.report.note(str(error))
        finally:
            with self._grown:
                self.complete = True
                self._grown.notify_all()
            self.video.close()


class Frames:
    """The frames of a video by number, with a cache. Methods may be called from any thread."""

    def __init__(self, scan: VideoScan) -> None:
        """Open the video of a scan a second time, to decode frames."""
        self.scan = scan
        self._video = Video.open(scan.path)
        self._lock = threading.Lock()
        self._size: tuple[int, int] | None = None
        self._kept: OrderedDict[int, Frame] = OrderedDict()
        self._bytes = 0
        self._cursor: Iterator[Frame] | None = None
        self._next = 0

    def close(self) -> None:
        """Free the decoder."""
        with self._lock:
            self._cursor = None
            self._kept.clear()
            self._video.close()

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the first frame; clicks are in its pixels. Raises as `get`."""
        if self._size is None:  # no cached_property: its lock is one for all videos
            height, width = self.get(0).image.shape[:2]
            self._size = height, width
        return self._size

    def get(self, index: int) -> Frame:
        """Return a frame.

        Raises:
            VideoError: with code `no_frames`, the video has no such frame; with code `changed`, the
                file was replaced or deleted, or the video was closed.
        """
        path = self.scan.path
        if not self.scan.wait(0, OPENING) and not self.scan.complete and not self.scan.closed:
            raise VideoError(
                "no_frames", f"{path.name}: no frame was decoded in {OPENING:.0f} s; is it a video?"
            )
        count = self.scan.wait(max(0, index))
        if index >= count and self.scan.closed and not self.scan.complete:
            raise VideoError("changed", f"{path.name} was closed meanwhile")
        if not 0 <= index < count:
            what = f"has no frame {index:,}" if count else "has no frame that decodes"
            raise VideoError("no_frames", f"{path.name} {what}")
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
            if self.scan.changed:
                raise VideoError("changed", f"{path} was replaced or deleted since it was opened")
            return self._decode(index)

    def _decode(self, index: int) -> Frame:
        ahead = index - self._next
        if self._cursor is None or not 0 <= ahead < _NEAR:
            # A step backward is usually followed by another one.
            start = max(0, index - BACK) if -2 * BACK < ahead < 0 else index
            self._cursor = self._video.seek(start, self.scan.timestamps, self.scan.clean)
        for frame in self._cursor:
            self._keep(frame)
            if frame.index == index:
                self._next = index + 1
                return frame
        self._cursor = None
        path = self.scan.path
        raise VideoError("changed", f"{path}: frame {index:,} does not decode a second time")

    def _keep(self, frame: Frame) -> None:
        if frame.index not in self._kept:
            self._bytes += frame.image.nbytes
        self._kept[frame.index] = frame
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].image.nbytes


def version(path: Path) -> str:
    """Return a text that changes when the file is written again; empty if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"


def yield_to_others() -> None:
    """Lower the priority of this thread, which Linux allows, so that others come first."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def jpeg(image: Pixels, longest: int | None = None) -> bytes:
    """Return an image as JPEG, with colours at full resolution (4:4:4).

    Args:
        image: (H, W, 3) uint8 RGB.
        longest: the image is shrunk to this longer side, in pixels; None: it keeps its size.
    """
    if longest is not None and max(image.shape) > longest:
        scale = longest / max(image.shape[:2])
        size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    encoded: np.ndarray = cv2.imencode(".jpg", image[..., ::-1], options)[1]
    return encoded.tobytes()
