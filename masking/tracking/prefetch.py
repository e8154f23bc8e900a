"""Frames with their embeddings, made by threads a little before they are needed."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cache
from typing import Any, TypeVar

import cv2

from masking.images.arrays import Pixels
from masking.tracking.interface import Scene, Tracking
from masking.video.frame import Frame

T = TypeVar("T")
_AHEAD = 4  # micro-batches that wait in a queue, encoded or to be encoded


def prefetch_scenes(
    tracking: Tracking[Any, Scene],
    frames: Iterator[Frame],
    size: tuple[int, int],
    needed: Callable[[int], bool],
) -> Generator[tuple[Frame, Scene | None], None, None]:
    """Yield frames with their scenes, prefetched in micro-batches.

    One thread decodes and resizes, one encodes, while the caller tracks, draws or writes: so a GPU
    does not wait for a decoder. The thread that encodes is the same for all videos and passes of a
    process: every thread that calls cuDNN builds its execution plans again, which takes time and
    memory.

    Args:
        tracking: makes the scenes.
        frames: the frames, in the order in which they are wanted.
        size: (H, W) that frames are scaled to.
        needed: whether the frame with an index needs a scene; others come with None.
    """
    with closing(prefetch(_encoded(tracking, frames, size, needed), "decode")) as batches:
        for batch, encoded in batches:
            scenes = {} if encoded is None else encoded.result()
            for frame in batch:
                yield frame, scenes.get(frame.index)


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


@cache
def _encoder(process: int) -> ThreadPoolExecutor:
    """Return the thread that encodes in a process: a fork has none of its parent's threads."""
    return ThreadPoolExecutor(1, "encode")


def _encoded(
    tracking: Tracking[Any, Scene],
    frames: Iterator[Frame],
    size: tuple[int, int],
    needed: Callable[[int], bool],
) -> Generator[tuple[list[Frame], Future[Mapping[int, Scene]] | None], None, None]:
    """Yield frames that are encoded together, with their scenes by index; None: none is needed.

    What has not begun to be encoded when this generator is closed is never encoded.
    """
    waiting: list[Future[Mapping[int, Scene]]] = []
    try:
        for batch in _batches(frames, tracking.segmenter.frames_at_once):
            images = {f.index: _scaled(f.image, size) for f in batch if needed(f.index)}
            if not images:
                yield batch, None
                continue
            future = _encoder(os.getpid()).submit(tracking.scenes, tracking.prepare(images))
            waiting = [*(one for one in waiting if not one.done()), future]
            yield batch, future
    except BaseException:
        for future in waiting:
            future.cancel()
        raise


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
