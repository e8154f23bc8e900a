"""Tracks a few seconds of a video while a person waits, to check whether the clicks suffice."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.page.frames import Frames, yield_to_others
from masking.images.arrays import Bools
from masking.images.masks import decode_rle, encode_rle
from masking.manifest.plans import ObjectPlan
from masking.segmenter.sam import Segmenter
from masking.tracking.directions import Directions, frames_before
from masking.tracking.masking import Masking
from masking.tracking.masks import FrameMasks
from masking.tracking.state import TrackConfig
from masking.video.frame import Frame, Report, VideoError
from masking.video.reader import RING_BYTES, Video

UNWATCHED = 20.0
"""Seconds after which a track stops if no request asked for its progress: the page was closed."""


class TrackError(ValueError):
    """There is nothing to track."""


class _CancelledError(Exception):
    """The track was cancelled, or its page was closed."""


@dataclass(frozen=True)
class Window:
    """The part of a video that is tracked, with the prompts in it."""

    start: int
    """First frame."""
    stop: int
    """Frame after the last one."""
    plans: tuple[ObjectPlan, ...]
    """Objects that are tracked, with their prompts in the window."""


def window(plans: Sequence[ObjectPlan], frame: int, frames: int, count: int) -> Window:
    """Return what has to be tracked to show some frames.

    An object is tracked from the last clicks on it at or before the first of these frames, or else
    from the first clicks after it. Prompts beyond the window are left out.

    Args:
        plans: all objects of the video.
        frame: first frame to show.
        frames: number of frames to show.
        count: number of frames of the video.

    Raises:
        TrackError: no object is clicked on before the last of these frames.
    """
    stop = min(count, frame + frames)
    chosen = []
    for plan in plans:
        directions = Directions(plan)
        begins = [index for index in plan.prompts if directions.is_located(index) and index < stop]
        start = max(
            (index for index in begins if index <= frame), default=min(begins, default=stop)
        )
        inside = {index: prompt for index, prompt in plan.prompts.items() if start <= index < stop}
        ended = any(index <= frame and prompt.role == "end" for index, prompt in inside.items())
        if inside and not (ended and max(inside) <= frame):
            first = max(plan.start, min(start, frame))
            chosen.append(replace(plan, start=first, prompts=inside))
    if not chosen:
        raise TrackError(
            f"nothing to track: no object is clicked on at frame {stop - 1:,} or before it"
        )
    return Window(min(frame, *(plan.start for plan in chosen)), stop, tuple(chosen))


class _WindowVideo(Video):
    """The frames of a window, with their numbers in the whole video."""

    def __init__(self, frames: Frames, window: Window, read: Callable[[], None]) -> None:
        self._frames, self._window, self._read = frames, window, read
        self._report = Report()

    @property
    def report(self) -> Report:
        return self._report

    def forward(self, start: int = 0) -> Iterator[Frame]:
        return self._all(range(max(start, self._window.start), self._window.stop))

    def backward(self, last: int, ring_bytes: int = RING_BYTES) -> Iterator[Frame]:
        return self._all(range(last, self._window.start - 1, -1))

    def _all(self, numbers: range) -> Iterator[Frame]:
        for number in numbers:
            yield self._frames.get(number)
            self._read()

    def close(self) -> None:
        self._frames.close()


class Tracking:
    """A thread that tracks a window, and the frames that it has tracked so far."""

    def __init__(
        self, frames: Frames, window: Window, size: tuple[int, int], segmenter: Segmenter
    ) -> None:
        """Start the thread.

        Args:
            frames: frames of the video; the thread closes them at the end.
            window: part of the video to track.
            size: (H, W) of the frame whose pixels the clicks are in.
            segmenter: makes the masks; others may use it at the same time.
        """
        self.window = window
        self._total = window.stop - window.start + frames_before(window.plans)
        self._read = 0
        self._found: list[dict[str, Any]] = []
        self._error = ""
        self._cancelled, self._done = threading.Event(), threading.Event()
        self._polled = time.monotonic()
        part = _WindowVideo(frames, window, self._count_frame)
        masking = Masking(part, segmenter, window.plans, size, TrackConfig())
        self._thread = threading.Thread(
            target=self._run, args=(masking,), name="track", daemon=True
        )
        self._thread.start()

    def cancel(self, until: float = 0) -> None:
        """Stop after the current frame; frames that were tracked stay.

        Args:
            until: time of `time.monotonic` up to which to wait for the thread.
        """
        self._cancelled.set()
        self._thread.join(max(0.0, until - time.monotonic()))

    def since(self, count: int) -> dict[str, Any]:
        """Return the progress, and the frames that were tracked after the first `count`."""
        self._polled = time.monotonic()
        done = self._done.is_set()  # read first: if it is set, no frame follows
        return {
            "start": self.window.start, "stop": self.window.stop, "read": self._read,
            "total": self._total, "done": done, "cancelled": self._cancelled.is_set(),
            "error": self._error, "frames": self._found[count:],
        }  # fmt: skip

    def mask(self, frame: int, object_id: int) -> Bools | None:
        """Return the (H, W) mask of an object on a frame, or None if it is not visible there."""
        found = [each for each in self._found if each["frame"] == frame]
        for each in found[0]["objects"] if found else ():
            if each["object_id"] == object_id:
                mask = decode_rle(each["rle"], (found[0]["height"], found[0]["width"]))
                return mask if mask.any() else None
        return None

    def _count_frame(self) -> None:
        self._read += 1
        if time.monotonic() - self._polled > UNWATCHED:
            self._cancelled.set()
        if self._cancelled.is_set():
            raise _CancelledError

    def _run(self, masking: Masking) -> None:
        yield_to_others()
        try:
            with masking:
                for frame in masking:
                    self._found.append(frame_json(frame))
        except _CancelledError:
            pass
        except (VideoError, MemoryError) as error:
            self._error = str(error) or "the machine is out of memory"
        except Exception as error:  # the page shows any error to the person who waits
            self._error = f"{type(error).__name__}: {error}"
        finally:
            self._done.set()


def frame_json(frame: FrameMasks) -> dict[str, Any]:
    """Return a tracked frame as the page takes it: its number, size in pixels, and objects."""
    height, width = frame.image.shape[:2]
    objects = [
        {"object_id": number, "state": one.state, "score": one.score,
         "rle": encode_rle(one.mask).decode()}
        for number, one in zip(frame.objects, frame.found, strict=True)
        if one is not None
    ]  # fmt: skip
    return {"frame": frame.index, "height": height, "width": width, "objects": objects}
