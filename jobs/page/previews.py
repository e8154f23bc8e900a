"""The mask of some clicks, at once: frames encoded ahead, and earlier answers gone on from.

A preview is a function of an object's clicks on a frame, in their order: the first is asked alone,
each further one together with the logits that the clicks before it gave, as SAM was trained. What
was asked before is remembered, so a click costs one decoding.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from jobs.page.frames import yield_to_others
from masking.images.arrays import Bools, Pixels
from masking.segmenter.sam import Embeddings, Prompts, Segmenter
from masking.tracking.step import SURE

T = TypeVar("T")
Key = tuple[str, str, int]
"""Video, version of its file, frame."""
Logits = NDArray[np.float32]

KEPT_BYTES = 256 << 20
"""Embeddings that are kept."""
_ANSWERS = 512  # that are remembered


@dataclass(frozen=True)
class Click:
    """A point, or a box."""

    x: float
    y: float
    label: int = 1
    """1 on the object, 0 not."""
    corner: tuple[float, float] | None = None
    """Right and bottom edge: it is a box then."""


@dataclass(frozen=True)
class Preview:
    """What a segmenter makes of an object's clicks."""

    mask: Bools
    """(H, W)."""
    score: float
    """IoU that it predicts."""


class Line:
    """A thread that does one thing after another; what still waits can be cancelled."""

    def __init__(self, name: str, yielding: bool = False, newest_first: bool = False) -> None:
        """`yielding`: other threads come first; `newest_first`: what came last is done next."""
        self._next = -1 if newest_first else 0
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._more = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, args=(yielding,), name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Have it done in its turn."""
        future: Future[T] = Future()
        self._waiting.append((future, call))
        self._more.release()
        return future

    def close(self) -> None:
        """Give up what waits, and wait for what is being done: a process must not end under it."""
        for future, _ in [*self._waiting]:
            future.cancel()
        self.submit(_end)
        self._thread.join()

    def _work(self, yielding: bool) -> None:
        if yielding:
            yield_to_others()
        while self._more.acquire():
            future, call = self._waiting[self._next]
            del self._waiting[self._next]
            if call is _end:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)


def _end() -> None:
    """The last thing that a line does."""


class Previewer:
    """A segmenter that is asked about frames; methods may be called from any thread."""

    def __init__(self, segmenter: Segmenter) -> None:
        """Take a segmenter that is ready."""
        self.segmenter = segmenter
        # Who steps on does not wait for frames that were left: what is asked last is shown first.
        self._front = Line("preview", newest_first=True)
        self._behind = Line("encode ahead", yielding=True)
        self._lock = threading.Lock()
        self._known: OrderedDict[Key, Future[Embeddings]] = OrderedDict()
        self._expected: list[Key] = []
        self._answers: OrderedDict[Any, tuple[Logits, float]] = OrderedDict()

    def close(self) -> None:
        """End its threads."""
        self._behind.close()
        self._front.close()

    def look(self, keys: Iterable[Key], image: Callable[[Key], Pixels]) -> None:
        """Encode frames when nothing else is to be done, in this order, instead of earlier ones.

        Args:
            keys: of the frames.
            image: gives a frame, (H, W, 3) uint8 RGB.
        """
        with self._lock:
            for key in self._expected:
                if key in self._known and self._known[key].cancel():
                    del self._known[key]
            self._expected = [key for key in keys if key not in self._known]
            for key in self._expected:
                self._known[key] = self._behind.submit(partial(self._encode_of, key, image))

    def preview(
        self,
        key: Key,
        image: Callable[[Key], Pixels],
        clicks: Sequence[Click],
        before: Bools | None = None,
    ) -> Preview | None:
        """The mask of an object's clicks; None if none of them says where it is.

        Args:
            key: of the frame.
            image: gives the frame.
            clicks: in the order in which they were made.
            before: (H, W) the mask that they correct.

        Raises:
            PromptError: clicks outside the frame.
            VideoError: the frame cannot be had.
        """
        embeddings = self._embeddings(key, image).result()
        return self._front.submit(lambda: self._answer(key, embeddings, clicks, before)).result()

    def _embeddings(self, key: Key, image: Callable[[Key], Pixels]) -> Future[Embeddings]:
        """Of a frame: as they are known, or as they are being made, or made now."""
        with self._lock:
            found = self._known.get(key)
            failed = found is not None and found.done() and found.exception() is not None
            if found is None or failed or (key in self._expected and found.cancel()):
                found = self._front.submit(partial(self._encode_of, key, image))
                self._known[key] = found
                self._expected = [other for other in self._expected if other != key]
            self._known.move_to_end(key)
            return found

    def _encode_of(self, key: Key, image: Callable[[Key], Pixels]) -> Embeddings:
        embeddings = self.segmenter.encode(image(key)[None])
        size = sum(part.numel() * part.element_size() for part in embeddings.features)
        with self._lock:
            kept = max(8, KEPT_BYTES // size)
            done = [key for key, future in self._known.items() if future.done()]
            for key in done[: max(0, len(self._known) - kept)]:
                del self._known[key]
        return embeddings

    def _answer(
        self, key: Key, embeddings: Embeddings, clicks: Sequence[Click], before: Bools | None
    ) -> Preview | None:
        size = embeddings.frame_size
        logits = None if before is None else self._as_logits(before, size)
        start = None if before is None else hash(before.tobytes())
        score = 0.0
        told = before is not None
        for count in range(1, len(clicks) + 1):
            told = told or clicks[count - 1].label == 1
            if not told:
                continue
            asked = (key, start, tuple(clicks[:count]))
            if asked not in self._answers:
                self._answers[asked] = self._decode(embeddings, clicks[:count], logits)
                while len(self._answers) > _ANSWERS:
                    self._answers.popitem(last=False)
            logits, score = self._answers[asked]
        if logits is None or not clicks:
            return None
        full = self.segmenter.upsample(torch.from_numpy(logits), size) > 0
        return Preview(full.cpu().numpy(), score)

    def _decode(
        self, embeddings: Embeddings, clicks: Sequence[Click], logits: Logits | None
    ) -> tuple[Logits, float]:
        points = [click for click in clicks if click.corner is None]
        boxes = [(*(c.x, c.y), *c.corner) for c in clicks if c.corner is not None]
        prompts = Prompts.of(
            embeddings.frame_size,
            [[(click.x, click.y) for click in points]],
            [[click.label for click in points]],
            boxes=[boxes[-1] if boxes else None],
            mask_input=[logits],
        )
        # One click may mean several things: the best of three answers. More of them are clear.
        alone = len(clicks) == 1 and not boxes and logits is None
        found = self.segmenter.logits(embeddings, prompts)
        outputs, scores = found[0][0], found[1][0]
        best = 1 + int(scores[1:].argmax()) if alone else 0
        return outputs[best].float().cpu().numpy(), float(scores[best])

    def _as_logits(self, mask: Bools, size: tuple[int, int]) -> Logits:
        """A mask (H, W) as a network would have said it, at low resolution."""
        h, w = self.segmenter.low_res(size)
        scale = self.segmenter.mask_scale(size)
        inner = (max(1, min(w, round(size[1] * scale))), max(1, min(h, round(size[0] * scale))))
        share = cv2.resize(mask.astype(np.float32), inner, interpolation=cv2.INTER_AREA)
        logits = np.full((h, w), -SURE, np.float32)
        logits[: inner[1], : inner[0]] = SURE * (2 * share - 1)
        return logits
