"""Records of attempts at a video, so that one that ends its worker twice is not tried again.

An attempt is written to storage before it begins and deleted when it ends. A record that is still
there means that the attempt ended its worker.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import ray

from jobs.masks.folder import file_name
from jobs.storage.location import Location

ATTEMPTS_PER_VIDEO = 2
"""Times that a video may end its worker before it is quarantined."""
TIME_LIMIT = "time_limit"
"""Code of a failure: the video took longer than `--time-limit`."""
_EXIT_SECONDS = 30.0  # to write down why a process ends


def node_here() -> str:
    """Return the id of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def node_alive(name: str) -> bool:
    """Return whether the node with this id is alive."""
    return any(each["NodeID"] == name and each["Alive"] for each in ray.nodes())


class Attempts:
    """Attempts of one start of the job, one record in storage for each."""

    def __init__(self, folder: Location, alive: Callable[[str], bool]) -> None:
        """Keep records in a folder; `alive` returns whether the node with an id is alive."""
        self.folder, self.alive = folder, alive

    def begin(self, video_id: str, node: str) -> str | None:
        """Record an attempt at a video.

        An earlier attempt whose node is no longer alive does not count: the node's failure, not the
        video, ended it.

        Returns:
            None, or the code of the reason why the video must not be tried again.
        """
        place = self.folder / file_name(video_id)
        earlier = [(place / entry.name).read_json() for entry in place.list()]
        if any(attempt.get("code") == TIME_LIMIT for attempt in earlier):
            return TIME_LIMIT
        counted = [attempt for attempt in earlier if self.alive(attempt["node"])]
        if len(counted) >= ATTEMPTS_PER_VIDEO:
            return "quarantined"
        self._file = place / f"{time.time_ns()}.json"
        self._attempt = {"node": node, "pid": os.getpid(), "begun": time.time()}
        self._file.write_json(self._attempt)
        return None

    def fail(self, code: str) -> None:
        """Record why the worker is about to end."""
        self._file.write_json(self._attempt | {"code": code})

    def done(self) -> None:
        """Delete the record of the attempt: it did not end the worker."""
        with suppress(OSError):  # the attempt is over, and the job deletes the folder
            self._file.delete()

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """End this process if the block takes longer, as a decoder that hangs cannot be
        interrupted. Ray starts another worker."""
        timer = threading.Timer(seconds, self._end_process)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end_process(self) -> None:
        threading.Timer(_EXIT_SECONDS, os._exit, (1,)).start()  # storage may hang, too
        try:
            self.fail(TIME_LIMIT)
        finally:
            os._exit(1)


def refusal_message(code: str, time_limit: float) -> str:
    """Return the message for a code of `Attempts.begin`; `time_limit` in seconds."""
    if code == TIME_LIMIT:
        return f"the video was not done after {time_limit:g} s (--time-limit)"
    return f"the video ended its worker {ATTEMPTS_PER_VIDEO} times"
