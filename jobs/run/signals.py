"""SIGTERM and SIGINT as a request to stop; work on another thread, so that signals are handled."""

import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType, TracebackType
from typing import TypeVar

T = TypeVar("T")


class Stop:
    """Context that turns SIGTERM and SIGINT into a request to stop; for the main thread.

    On a signal, another thread sets `requested` and calls what `then` was given: the handler itself
    may have interrupted Ray, or the holder of a lock, anywhere. A second SIGINT raises
    KeyboardInterrupt at once. `ray job stop` kills the job 3 s after its SIGTERM.
    """

    def __init__(self) -> None:
        """Start without a request; handlers are installed on entering."""
        self.requested = threading.Event()
        self._signal: int | None = None
        self._inbox: queue.SimpleQueue[bool] = queue.SimpleQueue()  # its put is safe in a handler
        self._lock = threading.Lock()
        self._calls: list[Callable[[], object]] = []

    @property
    def exit_code(self) -> int:
        """Exit code of the process: 130 after SIGINT, 143 after SIGTERM, else 0."""
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
        signals = (signal.SIGTERM, signal.SIGINT)
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
        if self._signal is None:
            self._signal = number
            self._inbox.put(True)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def _notify(self) -> None:
        if self._inbox.get():
            with self._lock:
                self.requested.set()
            for call in self._calls:
                call()


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
