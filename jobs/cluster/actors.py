"""Rows of work over a pool of actors of Ray Data, one row at a time for each."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from jobs.cluster import connect, nodes
from jobs.cluster.capacity import Ask
from jobs.run.config import JobConfig
from jobs.run.signals import Stop, background

IDLE_SECONDS = 30.0
"""Without any actor at work, from which on rows count as stuck if nodes are missing, too."""
LOOK_SECONDS = 5.0
"""Between two looks at the nodes of the cluster."""


class Watch(ExecutionCallback):
    """Whether any actor of the dataset that runs is at work, and a way to end it from outside.

    When a node is lost for good, Ray Data waits without end for the actors that were there, each
    with its row, and for rows that nobody else is given. It makes one of these for every dataset,
    without arguments, and sends the class to workers: so what it knows is the class's.
    """

    worked: ClassVar[float] = 0.0
    """When an actor was last at work, by `time.monotonic`."""
    _cut: ClassVar[bool] = False

    @classmethod
    def begin(cls) -> None:
        """Before a dataset."""
        cls.worked, cls._cut = time.monotonic(), False

    @classmethod
    def cut(cls) -> None:
        """End the dataset that runs: its iteration raises `CutError`."""
        cls._cut = True

    @classmethod
    def was_cut(cls) -> bool:
        """Whether that was asked for."""
        return cls._cut

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Called by Ray Data many times a second."""
        if Watch._cut:
            raise CutError
        for operator in executor._topology or ():
            pool = getattr(operator, "_actor_pool", None)
            states = pool._running_actors.values() if pool is not None else ()
            if any(state.num_tasks_in_flight and not state.is_restarting for state in states):
                Watch.worked = time.monotonic()


class CutError(Exception):
    """The dataset was ended by `Watch.cut`."""


def dataset(
    rows: Sequence[dict[str, Any]],
    actor: Any,
    arguments: tuple[Any, ...],
    config: JobConfig,
    workers: int,
    gpus: float | None,
) -> Any:
    """A dataset that has actors make something of each row, in no order, once it is iterated.

    Args:
        rows: units of work and of retry; the first go first.
        actor: a class, called with a row (Ray's types know functions only).
        arguments: of its constructor.
        config: of the job; says how many CPUs an actor has.
        workers: actors.
        gpus: of an actor; None: none.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # wait for a row however long it takes
    context.custom_execution_callback_classes = [Watch]
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is raised, too
    Watch.begin()
    return ray.data.from_items(list(rows), override_num_blocks=len(rows)).map(
        actor,
        fn_constructor_args=arguments,
        num_cpus=config.cpus_per_worker,
        num_gpus=gpus,
        # One row at a time for each actor: a second would wait behind the first, bound to it.
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
    )


def run(
    rows: Mapping[str, dict[str, Any]],
    actor: Any,
    arguments: tuple[Any, ...],
    config: JobConfig,
    gpus: float | None,
    take: Callable[[dict[str, Any]], str],
    stop: Stop,
    show: Callable[[], object],
) -> bool:
    """Have actors make something of each row; goes on with what is left when nodes are lost.

    Args:
        rows: units of work by name; the first go first.
        actor, arguments, config, gpus: as of `dataset`.
        take: called with each result, on another thread; returns the name of its row.
        stop: ends it.
        show: called now and then.

    Returns:
        Whether all were made; False after a stop.

    Raises:
        ClusterError: the actors do not fit; nothing was started.
        LostError: nodes were lost, and no actor fits on those that are left.
    """
    left, wait = dict(rows), config.wait_for_nodes
    least = None if wait is None else 1
    while left:
        workers, cpus = min(config.workers, len(left)), config.cpus_per_worker
        try:
            connect.require(workers, cpus, gpus or 0.0, stop, wait=wait, least=least)
        except connect.ClusterError as error:
            if len(left) == len(rows):
                raise
            raise LostError(str(error)) from error
        made = dataset(list(left.values()), actor, arguments, config, workers, gpus)
        stuck = _Stuck(Ask(workers, cpus, gpus or 0.0), wait, show)
        try:
            if not follow(lambda made=made: _take_all(made, left, take), stop, stuck.look):  # type: ignore[misc]
                return False
        except Exception:
            if not Watch.was_cut():
                raise
            print(f"a node is lost; {len(left):,} left to do, on the nodes that are there")
        least = 1
    return True


def _take_all(made: Any, left: dict[str, Any], take: Callable[[dict[str, Any]], str]) -> None:
    for row in made.iter_rows():
        del left[take(row)]


class LostError(Exception):
    """Nodes were lost, and no actor fits on those that are left."""


class _Stuck:
    """Ends a dataset whose rows wait for actors on nodes that are not coming back."""

    def __init__(self, ask: Ask, wait: float | None, show: Callable[[], object]) -> None:
        self._missing, self._show, self._next = nodes.Missing(ask, wait), show, 0.0

    def look(self) -> None:
        """Called while a dataset runs; ends it if need be."""
        self._show()
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LOOK_SECONDS
        gone = self._missing.too_long(nodes.there())
        if gone and now - Watch.worked > IDLE_SECONDS:
            Watch.cut()


def follow(call: Callable[[], object], stop: Stop, show: Callable[[], object]) -> bool:
    """Run `call`, which iterates a dataset, until it ends or a stop is asked for.

    Args:
        call: on a thread of its own.
        stop: ends the waiting.
        show: called now and then meanwhile.

    Returns:
        Whether it came to its end. Raises what it raised.
    """
    running = background(call)
    while not running.done() and not stop.requested.wait(0.2):
        show()
    if not running.done():
        return False
    running.result()
    return True


def reason(error: BaseException) -> str:
    """The worker's own words in an error of Ray's: its last line."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else repr(error)
