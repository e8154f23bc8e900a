"""Batches of a set of images on the device of the training: resident, or decoded ahead of it.

A set that is kept decoded is resident: whole on a GPU, as uint8, or in pages that all processes of
the node share. A packed set is streamed: other processes decode its images while the training
computes, and batches are copied to a GPU meanwhile. The batches are the same either way.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vit.data.decode import DataError, Pack, Pixels
from vit.data.pool import Pool
from vit.data.reader import Ints
from vit.data.sets import Images


class Feed(Protocol):
    """A set of images that gives batches."""

    def __len__(self) -> int:
        """How many images the set has."""

    def take(self, samples: Tensor, then: Iterable[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Return images and labels of a batch, on the device; the host does not wait for it.

        Args:
            samples: (b,) int64 on the CPU, positions in the set; at least one.
            then: the batches that will be taken after this one. It is read only when `samples`
                were not announced before: at the start, and after a resume.

        Returns:
            (b, 3, S, S) uint8 and (b,) int64, not to be written to.
        """


@dataclass(frozen=True)
class Resident:
    """A set of decoded images, on the device, or in host memory if they do not fit there."""

    images: Tensor
    """(N, 3, S, S) uint8, perhaps shared with another set."""
    labels: Tensor
    """(N,) int64, on the device of `images`."""
    rows: Tensor
    """(n,) int64, the rows of the set, on the device of `images`."""
    device: torch.device
    """Device of the batches."""

    def __len__(self) -> int:
        """How many images the set has."""
        return len(self.rows)

    def take(self, samples: Tensor, then: Iterable[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Return images and labels of a batch, as `Feed` says; `then` is not used."""
        rows = self.rows[samples.to(self.images.device, non_blocking=True)]
        images, labels = self.images[rows], self.labels[rows]
        # Compared by type: "cuda" does not equal "cuda:0", on which its tensors lie. The host does
        # not wait for copies from pinned memory.
        if self.device.type != images.device.type:
            images = images.pin_memory().to(self.device, non_blocking=True)
            labels = labels.pin_memory().to(self.device, non_blocking=True)
        return images, labels


class Streamed:
    """A set of encoded images that other processes decode ahead of the training.

    There are as many processes as torch has threads here: --cpus-per-worker. They run until the
    last batch that was announced is taken; a set of one batch announces none and keeps them.
    """

    def __init__(self, pack: Pack, labels: Ints, rows: Ints, device: torch.device) -> None:
        """Start nothing yet.

        Args:
            pack: N encoded images, perhaps shared with another set.
            labels: (N,) int64.
            rows: (n,) int64, the rows of the set.
            device: device of the batches.
        """
        self._pack, self._labels, self._rows = pack, torch.from_numpy(labels), rows
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pool: Pool | None = None
        self._plan: Iterator[Tensor] = iter(())
        self._planned = False
        self._submitted: deque[Tensor] = deque()
        """Batches that the pool is decoding, or has decoded."""
        self._early: deque[_Arrived] = deque()
        """At most one batch that is copied to the device before it is taken."""
        self._last: _Arrived | None = None
        """The batch taken last. The first step of a start is repeated, so it may be taken again."""

    def __len__(self) -> int:
        """How many images the set has."""
        return len(self._rows)

    def take(self, samples: Tensor, then: Iterable[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Return images and labels of a batch, as `Feed` says.

        Raises:
            DataError: an image changed since the data set was packed.
            RuntimeError: a decoding process ended.
        """
        if not torch.equal(self._next(), samples):
            if self._last and torch.equal(self._last.samples, samples):
                return self._last.here()
            self._start(samples, then)
        arrived = self._last = self._early.popleft() if self._early else self._receive()
        self._submit()
        if self._copies and self._submitted and self._pool and self._pool.ready():
            self._early.append(self._receive())
        if self._planned and not self._submitted and not self._early:
            self._stop()
        return arrived.here()

    def _next(self) -> Tensor:
        """Samples of the next batch that was announced; empty if there is none."""
        if self._early:
            return self._early[0].samples
        return self._submitted[0] if self._submitted else torch.empty(0, dtype=torch.int64)

    def _start(self, samples: Tensor, then: Iterable[Tensor]) -> None:
        """Start decoding from `samples` on; batches decoded for another order are dropped."""
        if self._submitted or self._early or not self._pool or self._pool.batch < len(samples):
            self._stop()
            # A rank's parts of one global batch and the next may differ by a pair.
            self._pool = Pool(self._pack, len(samples) + 2, torch.get_num_threads())
        self._plan = itertools.chain([samples], then)
        self._submit()
        self._planned = len(self._submitted) > 1

    def _stop(self) -> None:
        if self._pool:
            self._pool.close()
        self._pool = None
        self._submitted.clear()
        self._early.clear()

    def _submit(self) -> None:
        """Submit the next batches to the pool, as many as it takes."""
        assert self._pool
        while not self._pool.full and (samples := next(self._plan, None)) is not None:
            self._pool.submit(self._rows[samples.numpy()])
            self._submitted.append(samples)

    def _receive(self) -> "_Arrived":
        """Wait for the next batch, and start its copy to the device."""
        assert self._pool
        samples = self._submitted.popleft()
        rows = self._rows[samples.numpy()]
        pixels, failed = self._pool.receive()
        for position in failed:
            pixels[position] = self._decode_here(int(rows[position]))
        images, labels = torch.from_numpy(pixels), self._labels[rows]
        if self._copies is None:
            return _Arrived(samples, images.clone(), labels, None)
        with torch.cuda.stream(self._copies):
            images = images.pin_memory().to(self._device, non_blocking=True)
            labels = labels.pin_memory().to(self._device, non_blocking=True)
            return _Arrived(samples, images, labels, self._copies.record_event())

    def _decode_here(self, row: int) -> Pixels:
        """Decode an image that another process could not decode: a read may fail once."""
        try:
            return self._pack.decode(row)
        except (DataError, OSError) as error:
            raise DataError(
                f"{self._pack.place(row)}: {error}; it changed after the data set was packed:"
                " restore it, or start a run in another --out"
            ) from error


@dataclass(frozen=True)
class _Arrived:
    """A batch on the device, or being copied to it."""

    samples: Tensor
    images: Tensor
    labels: Tensor
    copied: torch.cuda.Event | None

    def here(self) -> tuple[Tensor, Tensor]:
        """Return images and labels; the current stream waits for their copy."""
        if self.copied:
            current = torch.cuda.current_stream(self.images.device)
            current.wait_event(self.copied)
            self.images.record_stream(current)
            self.labels.record_stream(current)
        return self.images, self.labels


def each(feed: Feed, samples: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels of `samples`, (n,) int64 on the CPU, `size` of them at a time."""
    parts = samples.split(size)
    for number, part in enumerate(parts, 1):
        if len(part):
            yield feed.take(part, parts[number:])


def place(sets: Mapping[str, Images | None], device: torch.device) -> dict[str, Feed]:
    """Make a feed of each set.

    A GPU holds decoded sets if that leaves half of this process's free memory to the training, and
    an array that two sets share only once; a CPU works on the pages that all processes of the node
    share.

    Args:
        sets: by name; None for a set that the data set does not have.
        device: device of the batches.
    """
    moved: dict[int, tuple[Tensor, Tensor]] = {}
    placed: dict[str, Feed] = {}
    for name, images in sets.items():
        if images is None:
            continue
        if isinstance(images.images, Pack):
            placed[name] = Streamed(images.images, images.labels, images.rows, device)
            continue
        if id(images.images) not in moved:
            moved[id(images.images)] = _move(images.images, images.labels, device)
        pixels, labels = moved[id(images.images)]
        rows = torch.from_numpy(images.rows).to(pixels.device)
        placed[name] = Resident(pixels, labels, rows, device)
    return placed


def _move(pixels: Pixels, labels: Ints, device: torch.device) -> tuple[Tensor, Tensor]:
    fits = device.type != "cuda" or pixels.nbytes < _free(device) / 2
    where = device if fits else torch.device("cpu")
    return torch.from_numpy(pixels).to(where), torch.from_numpy(labels).to(where)


def _free(device: torch.device) -> float:
    """Return the bytes of a GPU that this process may still take, of the share that is its own."""
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.get_per_process_memory_fraction(device) * total
    return min(free, own - torch.cuda.memory_allocated(device))
