"""Frames with their embeddings, made by threads a little before they are needed."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, TypeVar

import cv2

from masking.images.arrays import Pixels
from masking.tracking.interface import Scene, Tracking
from masking.video.frame import Frame

T = TypeVar("T")
_AHEAD = 3  # micro-batches that wait in a queue


def prefetch_scenes(
    tracking: Tracking[Any, Scene],
    frames: Iterator[Frame],
    size: tuple[int, int],
    needed: Callable[[int], bool],
) -> Generator[tuple[Frame, Scene | None], None, None]:
    """Yield frames with their scenes, prefetched in micro-batches.

    One thread decodes and resizes, one encodes, while the caller tracks, draws or writes: so a GPU
    does not wait for a decoder.

    Args:
        tracking: makes the scenes.
        frames: the frames, in the order in which they are wanted.
        size: (H, W) that frames are scaled to.
        needed: whether the frame with an index needs a scene; others come with None.
    """
    prepared = prefetch(_prepared(tracking, frames, size, needed), "decode")
    with closing(prefetch(_encoded(tracking, prepared), "encode")) as encoded:
        for batch in encoded:
            yield from batch


def prefetch(
    items: Generator[T, None, None], name: str, most: int = _AHEAD
) -> Generator[T, None, None]:
    """Yield what a generator yields, from a thread that runs ahead of the caller.

    When this generator is closed, it closes the other one in that thread, and waits for its end.

    Args:
        items: the generator.
        name: of the thread.
        most: items that wait for the caller at most.
    """
    results, reader = _Queue(most), threading.current_thread()

    def work() -> None:
        try:
            with closing(items):
                for item in items:
                    if not results.put((item, None)):
                        return
            results.put((None, StopIteration()))
        except BaseException as error:  # raised again for the caller
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
        # The garbage collector may close this generator in any thread. In a worker, which may be
        # this generator's own, the thread would wait for itself.
        here = threading.current_thread()
        if here is reader or not isinstance(here, _Worker):
            worker.join()


class _Worker(threading.Thread):
    """A thread that prefetches."""


class _Queue:
    """A bounded queue. Once full, it takes no more until it is half empty.

    Otherwise an encoder that is faster than the caller would start again whenever an item is taken,
    and the mask decoder that works on that item would find the device busy.
    """

    def __init__(self, most: int) -> None:
        """Make a queue of at most `most` items."""
        self._most, self._closed = most, False
        self._items: deque[tuple[Any, BaseException | None]] = deque()
        self._changed = threading.Condition()

    def put(self, item: tuple[Any, BaseException | None]) -> bool:
        """Add an item as soon as there is room; return whether anybody still wants items."""
        with self._changed:
            if len(self._items) >= self._most:
                self._changed.wait_for(lambda: self._closed or len(self._items) <= self._most // 2)
            self._items.append(item)
            self._changed.notify_all()
            return not self._closed

    def get(self) -> tuple[Any, BaseException | None]:
        """Take the next item as soon as there is one."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) > 0)
            self._changed.notify_all()
            return self._items.popleft()

    def close(self) -> None:
        """Refuse further items."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


_Batch = tuple[list[Frame], Any]
"""Frames that are encoded together; and those that need a scene, as `Tracking.prepare` returns
them, or None."""


def _prepared(
    tracking: Tracking[Any, Any],
    frames: Iterator[Frame],
    size: tuple[int, int],
    needed: Callable[[int], bool],
) -> Generator[_Batch, None, None]:
    for batch in _batches(frames, tracking.segmenter.frames_at_once):
        images = {frame.index: _scaled(frame.image, size) for frame in batch if needed(frame.index)}
        yield batch, tracking.prepare(images) if images else None


def _encoded(
    tracking: Tracking[Any, Scene], batches: Generator[_Batch, None, None]
) -> Generator[list[tuple[Frame, Scene | None]], None, None]:
    with closing(batches):
        for frames, prepared in batches:
            scenes = {} if prepared is None else tracking.scenes(prepared)
            yield [(frame, scenes.get(frame.index)) for frame in frames]


def _batches(frames: Iterator[Frame], most: int) -> Iterator[list[Frame]]:
    """Yield batches of up to `most` frames of the same size."""
    batch: list[Frame] = []
    for frame in frames:
        if batch and (len(batch) == most or batch[0].image.shape != frame.image.shape):
            yield batch
            batch = []
        batch.append(frame)
    if batch:
        yield batch


def _scaled(image: Pixels, size: tuple[int, int]) -> Pixels:
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
