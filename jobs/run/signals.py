"""Signals as a request to stop; work on another thread, so that signals are handled."""

import os
import queue
import select
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TypeVar

T = TypeVar("T")


AGAIN_SECONDS = 1.0
"""Time after the first signal from which a SIGINT is a second request of a person: `timeout` sends
every signal twice, to the job and to its process group."""


class Stop:
    """Context that turns SIGTERM, SIGINT and SIGHUP into a request to stop; for the main thread.

    On a signal, another thread sets `requested` and calls what `then` was given: the handler itself
    may have interrupted Ray, or the holder of a lock, anywhere. Further signals change nothing, so
    that a save is not cut off; only a SIGINT after AGAIN_SECONDS raises KeyboardInterrupt at once.
    A SIGHUP that the process ignores, under `nohup`, stays ignored. After a SIGHUP, output to a
    terminal that was closed is dropped. `ray job stop` kills the job 3 s after its SIGTERM.
    """

    def __init__(self) -> None:
        """Start without a request; handlers are installed on entering."""
        self.requested = threading.Event()
        self._signal: int | None = None
        self._first = 0.0
        self._inbox: queue.SimpleQueue[bool] = queue.SimpleQueue()  # its put is safe in a handler
        self._lock = threading.Lock()
        self._calls: list[Callable[[], object]] = []

    @property
    def exit_code(self) -> int:
        """Exit code of the process: 129 after SIGHUP, 130 SIGINT, 143 SIGTERM; else 0."""
        return 128 + self._signal if self._signal else 0

    def then(self, call: Callable[[], object]) -> None:
        """Call `call` when a stop is requested, or at once if it already is."""
        with self._lock:
            if not self.requested.is_set():
                self._calls.append(call)
                return
        call()

    def __enter__(self) -> "Stop":
        """Install the handlers."""
        threading.Thread(target=self._notify, name="stop", daemon=True).start()
        signals = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signals.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the earlier handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._inbox.put(False)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            outputs = select.poll()
            for descriptor in (1, 2):
                outputs.register(descriptor, 0)
            _drop_closed(outputs, wait_ms=0)
            threading.Thread(target=_drop_closed, args=(outputs,), daemon=True).start()
        if self._signal is None:
            self._signal, self._first = number, time.monotonic()
            self._inbox.put(True)
        elif number == signal.SIGINT and time.monotonic() - self._first > AGAIN_SECONDS:
            raise KeyboardInterrupt

    def _notify(self) -> None:
        if self._inbox.get():
            with self._lock:
                self.requested.set()
            for call in self._calls:
                call()


def _drop_closed(outputs: select.poll, wait_ms: int | None = None) -> None:
    """Send what is written to outputs whose other end is closed to /dev/null: writes would fail.

    Args:
        outputs: file descriptors, registered without events.
        wait_ms: time to wait for an end to be closed; None: until all are.
    """
    with suppress(OSError):
        while found := outputs.poll(wait_ms):
            for descriptor, _ in found:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
                outputs.unregister(descriptor)
            if wait_ms == 0:
                return


def background(call: Callable[[], T]) -> Future[T]:
    """Run `call` on another thread, which leaves the main one free for signals and progress.

    On the main thread, `TorchTrainer.fit` would replace the handler of SIGINT by one that aborts
    the workers before they can save. The thread does not keep the process from ending.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="background", daemon=True).start()
    return future
