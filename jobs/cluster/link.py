"""The way between a driver and its workers: progress up, the request to stop down."""

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_KEPT_MESSAGES = 10_000
"""The newest of those that the driver did not fetch yet: if it hangs, memory must not fill up."""

_WATCH_SECONDS = 0.2
"""Between a worker's looks for the request to stop, of the 3 s that `ray job stop` gives."""


class _Mailbox:
    """The actor behind a Link.

    It runs one call at a time, each worker's in its order. An asynchronous actor, in which workers
    could await the stop, runs calls in any order: a progress line would jump back.
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
    """The way between a driver and its workers: progress up, the request to stop down.

    It can be sent to workers, e.g. in Ray Train's `train_loop_config`. Nothing in it raises, and
    `push` does not wait: no training fails for a line of progress.
    """

    actor: Any

    @classmethod
    def open(cls) -> "Link":
        """Make one; it lives on the driver's node, takes no CPU, and dies with the driver."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(_Mailbox)
        options = {"num_cpus": 0, "max_restarts": -1, "max_pending_calls": _KEPT_MESSAGES}
        return cls(actor.options(scheduling_strategy=here, **options).remote())

    def push(self, message: dict[str, Any]) -> None:
        """From a worker: send a small message; lost if the driver cannot be reached."""
        with contextlib.suppress(RayError):
            self.actor.push.remote(message)

    def drain(self) -> list[dict[str, Any]]:
        """On the driver: what was pushed since the last call, each worker's in its order."""
        try:
            messages: list[dict[str, Any]] = ray.get(self.actor.drain.remote(), timeout=5)
        except RayError:
            return []
        return messages

    def stop(self) -> None:
        """On the driver: ask the workers to save and end."""
        with contextlib.suppress(RayError):
            self.actor.stop.remote()

    def watch(self) -> threading.Event:
        """On a worker: set when the driver asks to stop, or is gone.

        When it is gone, Ray ends its workers within seconds, which may do for a save.
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
