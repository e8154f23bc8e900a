"""Frames with their embeddings, a little before they are needed."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from masking import track
from masking.decode import Pixels
from masking.sam import Segmenter
from masking.track import Scene
from masking.video import Frame

_AHEAD = 2  # micro-batches that wait


def scenes(
    segmenter: Segmenter,
    frames: Iterator[Frame],
    size: tuple[int, int],
    wanted: Callable[[int], bool],
) -> Iterator[tuple[Frame, Scene | None]]:
    """Frames with their embeddings, made in micro-batches by a thread that runs ahead.

    Decoding, resizing and encoding go on while the caller tracks, draws or writes.
    """
    results: queue.Queue[Any] = queue.Queue(maxsize=_AHEAD)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                results.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for some in _batches(frames, segmenter.frames_at_once):
                if not put(_encoded(segmenter, some, size, wanted)):
                    return
            put(None)
        except BaseException as error:  # the caller's to see
            put(error)

    worker = threading.Thread(target=work, name="encode", daemon=True)
    worker.start()
    try:
        while (item := results.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield from item
    finally:
        stop.set()
        worker.join()


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


def _encoded(
    segmenter: Segmenter, frames: list[Frame], size: tuple[int, int], wanted: Callable[[int], bool]
) -> list[tuple[Frame, Scene | None]]:
    asked = [frame for frame in frames if wanted(frame.index)]
    scenes = {}
    if asked:
        images = [_scaled(frame.image, size) for frame in asked]
        embeddings = segmenter.encode(np.stack(images))
        keys = segmenter.keys(embeddings)
        for i, (frame, image) in enumerate(zip(asked, images, strict=True)):
            grey = track.shrunk_grey(image)
            scenes[frame.index] = Scene(embeddings[i : i + 1], keys[i].clone(), grey)
    return [(frame, scenes.get(frame.index)) for frame in frames]


def _scaled(image: Pixels, size: tuple[int, int]) -> Pixels:
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
