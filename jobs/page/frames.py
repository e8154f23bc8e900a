"""Frames of a video by number: the ones that `jobs.mask` will see, soon enough to step through.

A thread goes through the file once, without converting it, and notes when each frame is shown: only
so are numbers exact, containers' own counts being wrong too often. Any frame that it has passed is
found again from the key frame before it.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from masking.images.arrays import Pixels
from masking.video.reader import Frame, Moment, Video, VideoError

KEPT_BYTES = 256 << 20
"""Decoded frames that a video keeps."""
BACK = 12
"""Frames before the one that is asked for that are kept when going backward."""
_NEAR = 8  # frames ahead up to which it is quicker to decode on than to look for a key frame
_JPEG_QUALITY = 95
_NICE = 10


class Survey:
    """When the frames of a video are shown: a list that grows until the file has been gone through.

    Methods may be called from any thread.
    """

    def __init__(self, path: Path) -> None:
        """Open a file or a folder, and begin.

        Raises:
            VideoError: it is no video.
        """
        self.path, self.version = path, version(path)
        self.video = Video.open(path)
        self.moments: list[Moment] = []
        self.complete = self._closed = False
        self._passed = threading.Condition()
        self._thread = threading.Thread(target=self._pass, name="survey", daemon=True)
        self._thread.start()

    def close(self, wait: bool = False) -> None:
        """Stop where it is."""
        self._closed = True
        if wait:
            self._thread.join()

    @property
    def notes(self) -> list[str]:
        """What is odd about the file, so far."""
        report = self.video.report
        lost = report.corrupt_packets
        return [*report.notes, *([f"{lost:,} packets did not decode"] if lost else [])]

    @property
    def changed(self) -> bool:
        """Whether the file is another one by now, or gone."""
        return version(self.path) != self.version

    @property
    def clean(self) -> bool:
        """Whether no damage was met, so far."""
        return not self.video.report.corrupt_packets

    def times(self, start: int = 0) -> tuple[list[float | None], bool]:
        """Seconds of frames from `start` on, as far as they are known; whether these are all."""
        with self._passed:
            return [moment.time_s for moment in self.moments[start:]], self.complete

    def wait(self, index: int, timeout: float | None = None) -> int:
        """Wait until a frame is known, or that there is none; how many frames are known then."""
        with self._passed:
            self._passed.wait_for(lambda: self.complete or len(self.moments) > index, timeout)
            return len(self.moments)

    def _pass(self) -> None:
        try:
            for index, moment in enumerate(self.video.moments()):
                if index == _NEAR:  # the first ones are waited for
                    yield_to_others()
                with self._passed:
                    self.moments.append(moment)
                    self._passed.notify_all()
                if self._closed:
                    return
        except VideoError as error:
            self.video.report.note(str(error))
        finally:
            with self._passed:
                self.complete = True
                self._passed.notify_all()
            self.video.close()


class Frames:
    """A video's frames by number, the last ones kept. Methods may be called from any thread."""

    def __init__(self, survey: Survey) -> None:
        """Of a video that is being gone through."""
        self.survey = survey
        self._video = Video.open(survey.path)
        self._lock = threading.Lock()
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

    @cached_property
    def size(self) -> tuple[int, int]:
        """(H, W) of the first frame, in whose pixels clicks are meant; raises as `get`."""
        height, width = self.get(0).image.shape[:2]
        return height, width

    def get(self, index: int) -> Frame:
        """A frame.

        Raises:
            VideoError: `no_frames`, the video ends before it; `changed`, the file is not what it
                was.
        """
        path = self.survey.path
        count = self.survey.wait(max(0, index))
        if not 0 <= index < count:
            what = f"has no frame {index:,}" if count else "has not one frame that decodes"
            raise VideoError("no_frames", f"{path.name} {what}")
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
            if self.survey.changed:
                raise VideoError("changed", f"{path} is not the file that was opened, or is gone")
            return self._decode(index)

    def _decode(self, index: int) -> Frame:
        ahead = index - self._next
        if self._cursor is None or not 0 <= ahead < _NEAR:
            # Whoever goes back a frame will go back another one.
            start = max(0, index - BACK) if -2 * BACK < ahead < 0 else index
            self._cursor = self._video.seek(start, self.survey.moments, self.survey.clean)
        for frame in self._cursor:
            self._keep(frame)
            if frame.index == index:
                self._next = index + 1
                return frame
        self._cursor = None
        path = self.survey.path
        raise VideoError("changed", f"{path}: frame {index:,} does not decode a second time")

    def _keep(self, frame: Frame) -> None:
        if frame.index not in self._kept:
            self._bytes += frame.image.nbytes
        self._kept[frame.index] = frame
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].image.nbytes


def version(path: Path) -> str:
    """What changes when a file is written anew; empty if it is gone."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"


def yield_to_others() -> None:
    """Have this thread wait where another one could work; Linux knows priorities of threads."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def jpeg(image: Pixels, longest: int | None = None) -> bytes:
    """(H, W, 3) uint8 RGB as a JPEG, colours as sharp as light; at most `longest` pixels long."""
    if longest is not None and max(image.shape) > longest:
        scale = longest / max(image.shape[:2])
        size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    encoded: np.ndarray = cv2.imencode(".jpg", image[..., ::-1], options)[1]
    return encoded.tobytes()
