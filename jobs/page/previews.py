"""Previews of the masks of clicks, made fast: frames are encoded ahead, and results are cached.

A preview is a function of an object's clicks on a frame, in their order. It is made as tracking
makes the masks of prompted frames (`masking.tracking.prompting`): it is what a mask job would give,
and obeys all clicks. Results are cached.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.page.frames import yield_to_others
from masking.images.arrays import Bools, Pixels
from masking.manifest.prompt import FramePrompt
from masking.segmenter.sam import Embeddings, Prompts, Segmenter
from masking.tracking.kinds import tracking_of
from masking.tracking.obeying import obey_in_frame
from masking.tracking.query import Answer

T = TypeVar("T")
Key = tuple[str, str, int]
"""A frame: id of the video, version of its file, number of the frame."""
Logits = NDArray[np.float32]
"""(H, W) of a mask at the low resolution of the decoder."""

KEPT_BYTES = 256 << 20
"""Bytes of embeddings that are kept."""
_DECODED = 512  # results of the decoder that are kept


@dataclass(frozen=True)
class Click:
    """A point, or a box, in pixels of the frame."""

    x: float
    """Position of the point, or left edge of the box."""
    y: float
    """Position of the point, or top edge of the box."""
    label: int = 1
    """1: on the object; 0: not on it."""
    corner: tuple[float, float] | None = None
    """Right and bottom edge of a box; None: a point."""


@dataclass(frozen=True)
class Preview:
    """The mask that a segmenter predicts for an object's clicks."""

    mask: Bools
    """(H, W), in pixels of the frame."""
    score: float
    """Predicted IoU."""


class WorkQueue:
    """A thread that runs one call after another; calls that have not begun can be cancelled."""

    def __init__(self, name: str, yielding: bool = False, newest_first: bool = False) -> None:
        """Start the thread.

        Args:
            name: of the thread.
            yielding: whether other threads have priority.
            newest_first: whether the last call that was submitted runs next, instead of the first.
        """
        self._next = -1 if newest_first else 0
        self._waiting: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, args=(yielding,), name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Add a call to the queue."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                future.cancel()
            self._waiting.append((future, call))
            self._changed.notify()
        return future

    def renew(self, future: Future[Any]) -> None:
        """Treat a call that has not begun as the last one that was submitted."""
        with self._changed:
            self._waiting.sort(key=lambda each: each[0] is future)

    def close(self, until: float) -> None:
        """Cancel calls that have not begun; wait for the one that runs up to a time.

        Args:
            until: time of `time.monotonic`.
        """
        with self._changed:
            self._closed = True
            for future, _ in self._waiting:
                future.cancel()
            self._changed.notify()
        self._thread.join(max(0.0, until - time.monotonic()))

    def _work(self, yielding: bool) -> None:
        if yielding:
            yield_to_others()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                future, call = self._waiting.pop(self._next)
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)


class Previewer:
    """Makes previews with a segmenter. Its methods may be called from any thread."""

    def __init__(self, segmenter: Segmenter) -> None:
        """Start the threads that use a segmenter."""
        self.segmenter, self._tracking = segmenter, tracking_of(segmenter)
        # The newest request is of the frame on the screen; older ones are of frames left behind.
        self._requests = WorkQueue("preview", newest_first=True)
        self._ahead = WorkQueue("encode ahead", yielding=True)
        self._lock = threading.Lock()
        self._embeddings: OrderedDict[Key, Future[Embeddings]] = OrderedDict()
        self._expected: list[Key] = []
        self._asking: dict[Key, list[threading.Event]] = {}  # `gone` of all who wait for a frame
        self._decoded: OrderedDict[Any, tuple[Logits, float]] = OrderedDict()

    def close(self, until: float = 0) -> None:
        """End the threads, and wait for them up to a time of `time.monotonic`."""
        self._ahead.close(until)
        self._requests.close(until)

    def encode_ahead(self, keys: Iterable[Key], image: Callable[[Key], Pixels]) -> None:
        """Encode frames in the background, instead of those of the last call.

        Args:
            keys: frames to encode, in this order.
            image: returns a frame, (H, W, 3) uint8 RGB.
        """
        with self._lock:
            for key in self._expected:
                if key in self._embeddings and self._embeddings[key].cancel():
                    del self._embeddings[key]
            self._expected = [key for key in keys if key not in self._embeddings]
            for key in self._expected:
                self._embeddings[key] = self._ahead.submit(partial(self._encode, key, image))

    def preview(
        self,
        key: Key,
        image: Callable[[Key], Pixels],
        clicks: Sequence[Click],
        before: Bools | None = None,
        gone: threading.Event | None = None,
    ) -> Preview | None:
        """Return the mask of an object's clicks, or None if none of them is on the object.

        The last request comes first. What nobody waits for any more is not computed.

        Args:
            key: the frame.
            image: returns the frame, (H, W, 3) uint8 RGB.
            clicks: clicks in the order in which they were made.
            before: (H, W) mask that the clicks correct, if there is one.
            gone: set once nobody waits for the preview any more.

        Raises:
            CancelledError: nobody waited for the preview any more, or the previewer was closed.
            PromptError: a click is outside the frame.
            VideoError: the frame cannot be read.
        """
        gone = gone or threading.Event()
        embeddings = self._find_or_encode(key, image, gone).result()
        call = partial(self._predict, key, embeddings, clicks, before, gone)
        return self._requests.submit(call).result()

    def _find_or_encode(
        self, key: Key, image: Callable[[Key], Pixels], gone: threading.Event
    ) -> Future[Embeddings]:
        with self._lock:
            found = self._embeddings.get(key)
            failed = found is not None and found.done() and found.exception() is not None
            if found is None or failed or (key in self._expected and found.cancel()):
                self._asking[key] = [gone]
                found = self._requests.submit(partial(self._encode_if_asked, key, image))
                self._embeddings[key] = found
                self._expected = [other for other in self._expected if other != key]
            elif key in self._asking:  # it has not begun
                self._asking[key].append(gone)
                self._requests.renew(found)
            self._embeddings.move_to_end(key)
            return found

    def _encode_if_asked(self, key: Key, image: Callable[[Key], Pixels]) -> Embeddings:
        with self._lock:
            if all(gone.is_set() for gone in self._asking.pop(key)):
                del self._embeddings[key]
                raise CancelledError
        return self._encode(key, image)

    def _encode(self, key: Key, image: Callable[[Key], Pixels]) -> Embeddings:
        embeddings = self.segmenter.encode(image(key)[None])
        size = sum(part.numel() * part.element_size() for part in embeddings.features)
        with self._lock:
            kept = max(8, KEPT_BYTES // size)
            done = [key for key, future in self._embeddings.items() if future.done()]
            for key in done[: max(0, len(self._embeddings) - kept)]:
                del self._embeddings[key]
        return embeddings

    def _predict(
        self,
        key: Key,
        embeddings: Embeddings,
        clicks: Sequence[Click],
        before: Bools | None,
        gone: threading.Event,
    ) -> Preview | None:
        if gone.is_set():  # also if somebody else has the same preview made
            raise CancelledError
        if not clicks or (before is None and not any(click.label for click in clicks)):
            return None
        size = embeddings.frame_size
        prompt = prompt_of(size, clicks, before)
        step = (key, None if before is None else hash(before.tobytes()), tuple(clicks))
        if step not in self._decoded:

            def check() -> None:
                if gone.is_set():
                    raise CancelledError

            answer = cast(Answer, self._tracking.answer(embeddings, prompt, before, check))
            self._decoded[step] = (answer.logits.numpy(), answer.predicted)
            while len(self._decoded) > _DECODED:
                self._decoded.popitem(last=False)
        logits, score = self._decoded[step]
        full = self.segmenter.upsample(torch.from_numpy(logits), size).cpu().numpy()
        return Preview(obey_in_frame(full, prompt.points, prompt.labels) > 0, score)


def prompt_of(
    size: tuple[int, int], clicks: Sequence[Click], before: Bools | None = None
) -> FramePrompt:
    """Return clicks on a frame (H, W) as a manifest has them.

    Raises:
        PromptError: a click is outside of the frame.
    """
    points = [click for click in clicks if click.corner is None]
    boxes = [(*(c.x, c.y), *c.corner) for c in clicks if c.corner is not None]
    places = np.array([(click.x, click.y) for click in points], np.float32).reshape(-1, 2)
    labels = np.array([click.label for click in points], np.int64)
    box = np.array(boxes[-1], np.float32) if boxes else None
    mask = None if before is None else before.astype(np.float32)
    Prompts.of(size, [places], [labels], boxes=[box], mask_input=[mask])
    return FramePrompt(places, labels, box)
