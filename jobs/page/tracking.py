"""A few seconds of tracking while a person waits, to see whether the clicks will do."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.page.frames import Frames, yield_to_others
from masking.images.arrays import Bools
from masking.images.masks import decode_rle, encode_rle
from masking.manifest.rows import ObjectPlan
from masking.segmenter.sam import Segmenter
from masking.tracking.masking import FrameMasks, Masking
from masking.tracking.state import TrackConfig
from masking.tracking.ways import Ways
from masking.video.reader import RING_BYTES, Frame, Report, Video, VideoError

UNWATCHED = 20.0
"""Seconds after which a run that nobody asks about stops: its page is gone."""


class TrackError(ValueError):
    """Nothing can be tracked; the message says why."""


class _CancelledError(Exception):
    """A person, or the lack of one, stopped it."""


@dataclass(frozen=True)
class Window:
    """Which part of a video is tracked, and what is asked there."""

    start: int
    """First frame."""
    stop: int
    """Frame after the last."""
    plans: tuple[ObjectPlan, ...]


def window(plans: Sequence[ObjectPlan], here: int, frames: int, count: int) -> Window:
    """What has to be tracked in order to see a few frames from here on.

    An object is followed from the last clicks at or before `here` that say where it is, or else
    from the first ones behind; what is asked of it beyond the window is left out.

    Args:
        plans: of all objects.
        here: the frame that a person looks at.
        frames: how many to see.
        count: of frames of the video.

    Raises:
        TrackError: no object is clicked on in reach.
    """
    stop = min(count, here + frames)
    chosen = []
    for plan in plans:
        ways = Ways(plan)
        begins = [index for index in plan.asked if ways.turns(index) and index < stop]
        start = max((index for index in begins if index <= here), default=min(begins, default=stop))
        asked = {index: word for index, word in plan.asked.items() if start <= index < stop}
        ended = any(index <= here and word.role == "end" for index, word in asked.items())
        if asked and not (ended and max(asked) <= here):
            first = max(plan.start, min(start, here))
            chosen.append(replace(plan, start=first, asked=asked))
    if not chosen:
        raise TrackError(
            f"nothing to track: no object is clicked on at frame {stop - 1:,} or before"
        )
    return Window(min(here, *(plan.start for plan in chosen)), stop, tuple(chosen))


class _Part(Video):
    """Some frames of a video, numbered as in all of it."""

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
    """Frames that are tracked by a thread of its own."""

    def __init__(
        self, frames: Frames, window: Window, size: tuple[int, int], segmenter: Segmenter
    ) -> None:
        """Begin.

        Args:
            frames: no one else's; closed at the end.
            window: which of them, and what is asked.
            size: (H, W) that the clicks are in pixels of.
            segmenter: may be asked by others meanwhile.
        """
        stretches = [s for plan in window.plans if (s := Ways(plan).stretch()) is not None]
        back = max((s[1] for s in stretches), default=0) - min((s[0] for s in stretches), default=1)
        self.window, self._total = window, window.stop - window.start + back + 1
        self._read = 0
        self._found: list[dict[str, Any]] = []
        self._error = ""
        self._cancelled, self._done = threading.Event(), threading.Event()
        self._asked = time.monotonic()
        part = _Part(frames, window, self._step)
        masking = Masking(part, segmenter, window.plans, size, TrackConfig())
        self._thread = threading.Thread(
            target=self._run, args=(masking,), name="track", daemon=True
        )
        self._thread.start()

    def cancel(self, wait: bool = False) -> None:
        """Stop after the frame that it is at; what was found stays."""
        self._cancelled.set()
        if wait:
            self._thread.join()

    def since(self, count: int) -> dict[str, Any]:
        """How far it is, and the frames that were found after the first `count`."""
        self._asked = time.monotonic()
        done = self._done.is_set()  # asked first: what comes after it is known to be all
        return {
            "start": self.window.start, "stop": self.window.stop, "read": self._read,
            "total": self._total, "done": done, "cancelled": self._cancelled.is_set(),
            "error": self._error, "frames": self._found[count:],
        }  # fmt: skip

    def mask(self, frame: int, object_id: int) -> Bools | None:
        """(H, W) of an object on a frame; None: it was not seen there."""
        found = [one for one in self._found if one["frame"] == frame]
        for one in found[0]["objects"] if found else ():
            if one["object_id"] == object_id:
                mask = decode_rle(one["rle"], (found[0]["height"], found[0]["width"]))
                return mask if mask.any() else None
        return None

    def _step(self) -> None:
        self._read += 1
        if time.monotonic() - self._asked > UNWATCHED:
            self._cancelled.set()
        if self._cancelled.is_set():
            raise _CancelledError

    def _run(self, masking: Masking) -> None:
        yield_to_others()
        try:
            with masking:
                for frame in masking:
                    self._found.append(found_on(frame))
        except _CancelledError:
            pass
        except (VideoError, MemoryError) as error:
            self._error = str(error) or "no memory left"
        except Exception as error:  # a person waits: whatever it is, it has to be said
            self._error = f"{type(error).__name__}: {error}"
        finally:
            self._done.set()


def found_on(frame: FrameMasks) -> dict[str, Any]:
    """What the page shows of a frame."""
    height, width = frame.image.shape[:2]
    objects = [
        {"object_id": number, "state": one.state, "score": one.score,
         "rle": encode_rle(one.mask).decode()}
        for number, one in zip(frame.objects, frame.found, strict=True)
        if one is not None
    ]  # fmt: skip
    return {"frame": frame.index, "height": height, "width": width, "objects": objects}
