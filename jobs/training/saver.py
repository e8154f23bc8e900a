"""A thread that writes checkpoints while the training continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Saver:
    """Runs saves in a thread of its own, in order, while the training continues."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        """Call `complain` with a message after every save that fails."""
        self.error: str | None = None
        self._complain = complain
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a save is running."""
        return self._pending is not None and not self._pending.done()

    def submit(self, save: Callable[[], object]) -> None:
        """Run `save` in the thread; waits for the save before it, so at most one holds memory."""
        self.wait()
        self._pending = self._pool.submit(self._run, save)

    def wait(self) -> None:
        """Wait until no save is running; `error` then says how the last one ended."""
        if self._pending is not None:
            self._pending.result()

    def _run(self, save: Callable[[], object]) -> None:
        try:
            save()
            self.error = None
        except Exception as error:  # no failed save, for any reason, may end the training
            self.error = f"{type(error).__name__}: {error}"
            self._complain(
                f"save failed ({self.error}); the last good checkpoint stays, training continues"
            )
