"""Messages between a driver and its workers: progress to the driver, stop requests to workers."""

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_KEPT_MESSAGES = 10_000
"""Number of messages that wait for the driver; older ones are dropped, so that memory stays small
if the driver hangs."""

_WATCH_SECONDS = 0.2
"""Time between a worker's checks for a stop request; `ray job stop` gives 3 s."""


class _Mailbox:
    """The actor behind a Link.

    It runs one call at a time, and the calls of a worker in their order. An asynchronous actor, in
    which workers could await the stop, runs calls in any order: progress would jump back.
    """

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._stopped = False

    def push(self, message: dict[str, Any]) -> None:
        self._messages.append(message)
        del self._messages[:-_KEPT_MESSAGES]

    def drain(self) -> list[dict[str, Any]]:
        messages, self._messages = self._messages, []
        return messages

    def stop(self) -> None:
        self._stopped = True

    def stopped(self) -> bool:
        return self._stopped


@dataclass(frozen=True)
class Link:
    """Carries progress from workers to their driver, and stop requests from driver to workers.

    It can be sent to workers, e.g. in Ray Train's `train_loop_config`. No method raises, and `push`
    does not wait: no training fails because of a line of progress.
    """

    actor: Any
    """Handle of the actor that holds the messages."""

    @classmethod
    def open(cls) -> "Link":
        """Start the actor on the driver's node; it takes no CPU and ends with the driver."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(_Mailbox)
        options = {"num_cpus": 0, "max_restarts": -1, "max_pending_calls": _KEPT_MESSAGES}
        return cls(actor.options(scheduling_strategy=here, **options).remote())

    def push(self, message: dict[str, Any]) -> None:
        """Send a small message from a worker; it is lost if the driver cannot be reached."""
        with contextlib.suppress(RayError):
            self.actor.push.remote(message)

    def drain(self) -> list[dict[str, Any]]:
        """Return, on the driver, the messages since the last call, each worker's in its order."""
        try:
            messages: list[dict[str, Any]] = ray.get(self.actor.drain.remote(), timeout=5)
        except RayError:
            return []
        return messages

    def stop(self) -> None:
        """Request, on the driver, that the workers save and end."""
        with contextlib.suppress(RayError):
            self.actor.stop.remote()

    def watch(self) -> threading.Event:
        """Return, on a worker, an event that is set when a stop is requested or the driver is gone.

        When the driver is gone, Ray ends its workers within seconds; a save may still succeed.
        """
        requested = threading.Event()

        def wait() -> None:
            stopped = self.actor.stopped.options(max_task_retries=-1)  # if it is restarted
            with contextlib.suppress(RayError):
                while not ray.get(stopped.remote()):
                    time.sleep(_WATCH_SECONDS)
            requested.set()

        threading.Thread(target=wait, name="watch", daemon=True).start()
        return requested
