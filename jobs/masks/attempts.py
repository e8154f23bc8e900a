"""Attempts at a video, written down first: one that ends its worker twice is not tried again."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import ray

from jobs.masks.folder import file_name
from jobs.masks.plan import ATTEMPTS_PER_VIDEO
from jobs.storage.location import Location

TIME_LIMIT = "time_limit"


_LAST_WORDS = 30.0  # seconds for writing down why a process ends


def node_here() -> str:
    """The name of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def node_alive(name: str) -> bool:
    """Whether a node is still there."""
    return any(each["NodeID"] == name and each["Alive"] for each in ray.nodes())


class Attempts:
    """What was begun on a video, and what ended its worker."""

    def __init__(self, folder: Location, alive: Callable[[str], bool]) -> None:
        """In a folder of this start of the job; `alive` says whether a node still is."""
        self.folder, self.alive = folder, alive

    def begin(self, video_id: str, node: str) -> str | None:
        """Write an attempt down; or say why there must not be another one.

        An attempt that is still there ended its worker: it counts, unless its node went too.
        """
        place = self.folder / file_name(video_id)
        earlier = [(place / entry.name).read_json() for entry in place.list()]
        if any(attempt.get("code") == TIME_LIMIT for attempt in earlier):
            return TIME_LIMIT
        ended = [attempt for attempt in earlier if self.alive(attempt["node"])]
        if len(ended) >= ATTEMPTS_PER_VIDEO:
            return "quarantined"
        self._mine = place / f"{time.time_ns()}.json"
        self._about = {"node": node, "pid": os.getpid(), "begun": time.time()}
        self._mine.write_json(self._about)
        return None

    def fail(self, code: str) -> None:
        """Say why the worker is about to end."""
        self._mine.write_json(self._about | {"code": code})

    def done(self) -> None:
        """It did not end the worker."""
        with suppress(OSError):  # what it was for is done; the folder goes with the job
            self._mine.delete()

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """End this process when what is done here takes longer: a decoder that hangs cannot be
        interrupted. Ray starts another one."""
        timer = threading.Timer(seconds, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        threading.Timer(_LAST_WORDS, os._exit, (1,)).start()  # storage may hang, too
        try:
            self.fail(TIME_LIMIT)
        finally:
            os._exit(1)


def why_not(code: str, time_limit: float) -> str:
    """In words why a video is not tried (again)."""
    if code == TIME_LIMIT:
        return f"not done after {time_limit:g} s (--time-limit)"
    return f"ended its worker {ATTEMPTS_PER_VIDEO} times"
