"""Processes that decode images of a `Pack` ahead of the training, in order, batch by batch.

They are processes, not threads: while it decodes a small image, Pillow mostly holds Python's lock,
so that two threads are slower than one and both delay the training's next step. Pixels come back in
shared memory; requests and replies are numbers in two pipes that all processes share, so that the
next free process takes the next image. When the process that requests them ends, or is killed, the
pipes are closed and the decoding processes end.

torch's DataLoader comes near only with forked workers (the pool decodes 1.04 times as many images/s
at 32 pixels, 1.16 times at 224), and fork is unsafe in a Ray worker with threads and CUDA. With
spawned workers the pool decodes 1.24 and 1.59 times as many, and the loader takes twice the memory
and 1.6 to 2.1 s to start (medians of 5 on two cores, by `python -m benchmarks.training.loader`).
"""

import fcntl
import os
import select
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from vit.data import decode as program
from vit.data.decode import RECORD, DataError, Pack, Pixels, Slots

AHEAD = 3
"""Batches that are decoded ahead: enough to even out slow images, with little memory."""
_PIPE_BYTES = 1 << 20
"""Size that Linux allows any user's pipe."""
_SURVEYED = 64
"""Images in a batch when a whole pack is decoded to find faults."""


class Pool:
    """Processes that decode batches of rows of a pack; up to `ahead` batches are under way."""

    def __init__(self, pack: Pack, batch: int, processes: int) -> None:
        """Start processes that decode.

        Args:
            pack: images.
            batch: largest number of rows in a batch.
            processes: how many processes to start.

        Raises:
            DataError: a batch is larger than a pipe can hold.
        """
        self.pack, self.batch = pack, batch
        pipes = os.pipe(), os.pipe()
        (requests, self._requests), (self._replies, replies) = pipes
        # Neither side may wait for the other to make room in a pipe: both could wait for ever.
        records = min(map(_widen, (requests, replies))) // RECORD.itemsize
        if batch > records:
            raise DataError(
                f"a worker's batch has {batch:,} images; at most {records:,} can be decoded ahead:"
                " use a smaller batch, or more workers"
            )
        self.ahead = max(1, min(AHEAD, records // batch))
        self._blocks = self.ahead + 1
        memory = os.memfd_create("decoded", os.MFD_CLOEXEC)
        count = self._blocks * batch
        self._slots = Slots(memory, count, pack.size)
        os.set_blocking(self._replies, False)
        given = (memory, requests, replies)
        self._processes = [_start(pack, count, given) for _ in range(processes)]
        for descriptor in given:
            os.close(descriptor)
        mine = (self._requests, self._replies)
        self.close = weakref.finalize(self, _stop, self._processes, mine)
        """End the processes; this also happens when the pool is collected as garbage."""
        self._lengths: deque[int] = deque()
        self._left = np.zeros(self._blocks, np.int64)
        self._done = np.ones(count, np.bool_)
        self._first = 0
        self._poll = select.poll()
        self._poll.register(self._replies, select.POLLIN)

    @property
    def full(self) -> bool:
        """Whether a batch must be received before another is submitted."""
        return len(self._lengths) >= self.ahead

    def submit(self, rows: NDArray[np.int64]) -> None:
        """Submit a batch, rows (b,) of the pack; overwrites what `receive` returned before last."""
        block = (self._first + len(self._lengths)) % self._blocks
        slots = np.arange(len(rows), dtype=RECORD) + block * self.batch
        self._slots.rows[slots] = rows
        self._done[slots] = False
        self._left[block] = len(rows)
        self._lengths.append(len(rows))
        view = memoryview(slots.tobytes())
        with suppress(BrokenPipeError):  # no process is left; `receive` says why
            while view:
                view = view[os.write(self._requests, view) :]

    def ready(self) -> bool:
        """Whether the oldest batch can be received without waiting."""
        self._drain()
        return not self._left[self._first]

    def receive(self) -> tuple[Pixels, list[int]]:
        """Wait for the oldest batch and return it.

        Returns:
            (b, 3, S, S) uint8 in shared memory, valid until the submit after the next `receive`;
            and the positions of images that could not be decoded.

        Raises:
            RuntimeError: a process ended, out of memory or because an image crashed its decoder.
        """
        while not self.ready():
            if not self._poll.poll(1000):
                self._check_alive()
        first = self._first * self.batch
        part = slice(first, first + self._lengths.popleft())
        self._first = (self._first + 1) % self._blocks
        return self._slots.pixels[part], np.flatnonzero(self._slots.failed[part]).tolist()

    def _drain(self) -> None:
        """Read all replies that have arrived."""
        with suppress(BlockingIOError):
            while content := os.read(self._replies, _PIPE_BYTES):
                slots = np.frombuffer(content, RECORD)
                self._done[slots] = True
                self._left -= np.bincount(slots // self.batch, minlength=self._blocks)
            self._check_alive()  # the pipe has ended: no process is left

    def _check_alive(self) -> None:
        for process in self._processes:
            if (code := process.poll()) is not None:
                lost = np.flatnonzero((self._slots.owners == process.pid) & ~self._done)
                at = [self.pack.place(int(row)) for row in self._slots.rows[lost]]
                raise RuntimeError(
                    f"a decoding process ended with code {code}"
                    + (f" at {at[0]}" if at else "")
                    + (": out of memory?" if code == -9 else "")
                )


def _widen(pipe: int) -> int:
    """Enlarge a pipe; returns its size in bytes."""
    with suppress(OSError):  # the pipes of an unprivileged user may have used up what is allowed
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)


def _start(pack: Pack, count: int, given: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start one process in a session of its own, so that Ctrl-C reaches the training only."""
    arguments = [str(value) for value in (pack.folder, pack.size, count, *given)]
    return subprocess.Popen(
        [sys.executable, "-P", program.__file__, *arguments],
        stdin=subprocess.DEVNULL,
        pass_fds=given,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )


def _stop(processes: Sequence[subprocess.Popen[bytes]], pipes: Sequence[int]) -> None:
    """Close the pipes and end the processes."""
    for pipe in pipes:
        os.close(pipe)
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def faults(pack: Pack, processes: int) -> Iterator[tuple[int, str]]:
    """Decode a whole pack once; yields each row that does not decode, ascending, and the reason.

    Raises:
        DataError: a file cannot be read.
    """
    pool = Pool(pack, _SURVEYED, processes)
    waiting: deque[NDArray[np.int64]] = deque()
    rest = iter(np.split(np.arange(len(pack)), range(_SURVEYED, len(pack), _SURVEYED)))
    while True:
        while not pool.full and (rows := next(rest, None)) is not None:
            pool.submit(rows)
            waiting.append(rows)
        if not waiting:
            break
        rows = waiting.popleft()
        for position in pool.receive()[1]:
            row = int(rows[position])
            try:
                pack.decode(row)
            except DataError as error:
                yield row, str(error)
            except OSError as error:
                raise DataError(f"{pack.place(row)} cannot be read: {error}") from error
    pool.close()
