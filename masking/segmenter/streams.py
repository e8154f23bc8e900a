"""Two CUDA streams: frames are encoded on one while objects are tracked on the other.

On one stream a mask decoder, which takes milliseconds, would wait for all frames that are queued
for the encoder. The stream of the tracker has priority: its kernels are the next to start. On a CPU
nothing here does anything.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from torch import Tensor


class Streams:
    """The streams of one device. Work in neither `encoding` nor `tracking` is on the caller's own
    stream, as everywhere in torch."""

    def __init__(self, device: torch.device, weights: Sequence[Tensor]) -> None:
        """Take the streams; what is queued on the device so far comes first.

        Args:
            device: the device.
            weights: tensors on it that are used on both streams for as long as they live.
        """
        self._device = device
        self._encoding: torch.cuda.Stream | None = None
        self._tracking: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._encoding, self._tracking = _streams(device)
            for stream in (self._encoding, self._tracking):
                stream.wait_stream(torch.cuda.current_stream(device))
                for weight in weights:
                    weight.record_stream(stream)

    def encoding(self) -> AbstractContextManager[object]:
        """Queue what the block computes on the stream of the encoder."""
        return nullcontext() if self._encoding is None else torch.cuda.stream(self._encoding)

    def encoded(self) -> torch.cuda.Event | None:
        """Return an event after which all that was encoded so far is there; None: it is there."""
        return None if self._encoding is None else self._encoding.record_event()

    @contextmanager
    def tracking(
        self, encoded: torch.cuda.Event | None, tensors: Iterable[Tensor]
    ) -> Iterator[None]:
        """Queue what the block computes on the stream of the tracker.

        Args:
            encoded: what `encoded` returned after the frame; None: it was encoded on the caller's
                stream.
            tensors: all tensors of the frame that the block uses: their memory is not given to the
                encoder again before the block's work is done.
        """
        if self._tracking is None:
            yield
            return
        outer = torch.cuda.current_stream(self._device)
        self._tracking.wait_stream(outer)
        if encoded is not None:
            self._tracking.wait_event(encoded)
        for tensor in tensors:
            tensor.record_stream(self._tracking)
        with torch.cuda.stream(self._tracking):
            yield
        outer.wait_stream(self._tracking)


@cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Return the streams of a device, the same for all segmenters: they share cached tensors."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device, priority=-1)
