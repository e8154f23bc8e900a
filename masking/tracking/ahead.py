"""Frames with their embeddings, a little before they are needed."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, TypeVar

import cv2
import numpy as np

from masking.images.arrays import Pixels
from masking.segmenter.sam import Prepared, Segmenter
from masking.tracking import state
from masking.tracking.state import Scene
from masking.video.reader import Frame

T = TypeVar("T")
_AHEAD = 3  # micro-batches that wait
Wanted = Callable[[int], bool]


def scenes(
    segmenter: Segmenter, frames: Iterator[Frame], size: tuple[int, int], wanted: Wanted
) -> Generator[tuple[Frame, Scene | None], None, None]:
    """Frames with their embeddings, made in micro-batches by threads that run ahead.

    One decodes and resizes, one encodes, while the caller tracks, draws or writes: so neither a GPU
    nor its network waits for a decoder.
    """
    prepared = ahead(_prepared(segmenter, frames, size, wanted), "decode")
    with closing(ahead(_encoded(segmenter, prepared), "encode")) as encoded:
        for some in encoded:
            yield from some


def ahead(items: Generator[T, None, None], name: str) -> Generator[T, None, None]:
    """What a generator gives, made by a thread that runs ahead of the caller.

    Closed, it closes the other one, in that thread, and waits for its end.
    """
    results, reader = _Line(_AHEAD), threading.current_thread()

    def work() -> None:
        try:
            with closing(items):
                for item in items:
                    if not results.put((item, None)):
                        return
            results.put((None, StopIteration()))
        except BaseException as error:  # the caller's to see
            results.put((None, error))

    worker = _Worker(target=work, name=name, daemon=True)
    worker.start()
    try:
        while True:
            item, error = results.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        results.close()
        # The garbage collector may close this in any thread: in one that runs ahead of the reader,
        # and so maybe this very one, it would wait for itself.
        here = threading.current_thread()
        if here is reader or not isinstance(here, _Worker):
            worker.join()


class _Worker(threading.Thread):
    """A thread that runs ahead."""


class _Line:
    """Things that wait for their turn.

    A line that was full takes no more until half of it is gone. Else an encoder that is the faster
    one would start over whenever a frame is taken, and the decoder of that very frame would find
    the device busy.
    """

    def __init__(self, most: int) -> None:
        """Of at most so many."""
        self._most, self._closed = most, False
        self._items: deque[tuple[Any, BaseException | None]] = deque()
        self._changed = threading.Condition()

    def put(self, item: tuple[Any, BaseException | None]) -> bool:
        """Add one, as soon as there is room; or say that nobody wants it any more."""
        with self._changed:
            if len(self._items) >= self._most:
                self._changed.wait_for(lambda: self._closed or len(self._items) <= self._most // 2)
            self._items.append(item)
            self._changed.notify_all()
            return not self._closed

    def get(self) -> tuple[Any, BaseException | None]:
        """Take the next one, as soon as it is there."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) > 0)
            self._changed.notify_all()
            return self._items.popleft()

    def close(self) -> None:
        """Take no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


_Batch = tuple[list[Frame], dict[int, Pixels], Prepared | None]
"""Frames that are encoded together; of those that are wanted the grey picture by index, and what
`Segmenter.encode` takes."""


def _prepared(
    segmenter: Segmenter, frames: Iterator[Frame], size: tuple[int, int], wanted: Wanted
) -> Generator[_Batch, None, None]:
    for some in _batches(frames, segmenter.frames_at_once):
        images = {frame.index: _scaled(frame.image, size) for frame in some if wanted(frame.index)}
        greys = {index: state.shrunk_grey(image) for index, image in images.items()}
        yield some, greys, segmenter.prepare(np.stack([*images.values()])) if images else None


def _encoded(
    segmenter: Segmenter, batches: Generator[_Batch, None, None]
) -> Generator[list[tuple[Frame, Scene | None]], None, None]:
    with closing(batches):
        for frames, greys, prepared in batches:
            scenes = {}
            if prepared is not None:
                embeddings = segmenter.encode(prepared)
                keys = segmenter.keys(embeddings)
                for i, (index, grey) in enumerate(greys.items()):
                    scenes[index] = Scene(embeddings[i : i + 1], keys[i].clone(), grey)
            yield [(frame, scenes.get(frame.index)) for frame in frames]


def _batches(frames: Iterator[Frame], most: int) -> Iterator[list[Frame]]:
    """Up to `most` frames of the same size."""
    some: list[Frame] = []
    for frame in frames:
        if some and (len(some) == most or some[0].image.shape != frame.image.shape):
            yield some
            some = []
        some.append(frame)
    if some:
        yield some


def _scaled(image: Pixels, size: tuple[int, int]) -> Pixels:
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
