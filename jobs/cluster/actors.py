"""Rows of work for a pool of Ray Data's actors, one row at a time for each actor."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar

import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from jobs.cluster import connect, nodes
from jobs.cluster.capacity import Demand
from jobs.cluster.workers import CHECK_SECONDS
from jobs.run.config import JobConfig
from jobs.run.signals import Stop, background

IDLE_SECONDS = 30.0
"""Time without any busy actor after which rows count as stuck, if nodes are missing too."""


class Activity(ExecutionCallback):
    """Records when an actor of the running dataset was last busy, and can abort the dataset.

    When a node is lost for good, Ray Data waits forever for the actors that were there, each with
    its row, and for rows that no other actor gets. Ray Data makes one instance for every dataset,
    without arguments, and sends the class to workers: so the state belongs to the class.
    """

    last_busy: ClassVar[float] = 0.0
    """When an actor was last busy, by `time.monotonic`."""
    _aborted: ClassVar[bool] = False

    @classmethod
    def reset(cls) -> None:
        """Forget what was recorded of the earlier dataset."""
        cls.last_busy, cls._aborted = time.monotonic(), False

    @classmethod
    def abort(cls) -> None:
        """End the running dataset: its iteration raises AbortedError."""
        cls._aborted = True

    @classmethod
    def was_aborted(cls) -> bool:
        """Whether `abort` was called for this dataset."""
        return cls._aborted

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Take note of busy actors; Ray Data calls this many times a second."""
        if Activity._aborted:
            raise AbortedError
        for operator in executor._topology or ():
            pool = getattr(operator, "_actor_pool", None)
            states = pool._running_actors.values() if pool is not None else ()
            if any(state.num_tasks_in_flight and not state.is_restarting for state in states):
                Activity.last_busy = time.monotonic()


class AbortedError(Exception):
    """The dataset was ended by `Activity.abort`."""


class LostNodesError(Exception):
    """Nodes were lost, and no actor fits on those that are left."""


def _pass_settings_by_value() -> None:
    """Have Ray Data send actors their settings with their start, not through the object store.

    Ray restarts an actor with the same arguments, and warns at each start that it cannot if those
    in the object store are lost. Ours take a few kB, so they can go with the call.
    """
    operator: Any = ActorPoolMapOperator
    operator._data_context_ref = property(attrgetter("data_context"))
    operator._map_transformer_ref = property(attrgetter("_map_transformer"))


def dataset(
    rows: Sequence[dict[str, Any]],
    actor: Any,
    arguments: tuple[Any, ...],
    config: JobConfig,
    workers: int,
    gpus: float | None,
) -> Any:
    """Return a dataset that has actors process each row, in any order, once it is iterated.

    Args:
        rows: units of work and of retry; the first ones start first.
        actor: a class whose instances are called with a row (Ray's types know functions only).
        arguments: of its constructor.
        config: of the job; has the number of CPUs of an actor.
        workers: number of actors.
        gpus: GPUs of an actor; None for none.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # wait for a row however long it takes
    context.custom_execution_callback_classes = [Activity]
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised as well
    _pass_settings_by_value()
    Activity.reset()
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
    """Have actors process each row; when nodes are lost, continue with the rows that are left.

    Args:
        rows: units of work by name; the first ones start first.
        actor: see `dataset`; so are `arguments`, `config` and `gpus`.
        arguments: of the actor's constructor.
        config: of the job.
        gpus: GPUs of an actor; None for none.
        take: called with each result, on another thread; returns the name of its row.
        stop: ends the run when a stop is requested.
        show: called several times a second.

    Returns:
        Whether all rows were processed; False after a stop.

    Raises:
        ClusterError: the actors do not fit; nothing was started.
        LostNodesError: nodes were lost, and no actor fits on those that are left.
    """
    left, wait = dict(rows), config.wait_for_nodes
    at_least = None if wait is None else 1
    while left:
        workers, cpus = min(config.workers, len(left)), config.cpus_per_worker
        try:
            connect.require(workers, cpus, gpus or 0.0, stop, wait=wait, at_least=at_least)
        except connect.ClusterError as error:
            if len(left) == len(rows):
                raise
            raise LostNodesError(str(error)) from error
        results = dataset(list(left.values()), actor, arguments, config, workers, gpus)
        stuck = _StuckRows(Demand(workers, cpus, gpus or 0.0), wait, show)
        try:
            if not wait_for(partial(_take_all, results, left, take), stop, stuck.check):
                return False
        except Exception:
            if not Activity.was_aborted():
                raise
            print(f"a node is lost; {len(left):,} rows are left for the other nodes")
        at_least = 1
    return True


def _take_all(results: Any, left: dict[str, Any], take: Callable[[dict[str, Any]], str]) -> None:
    for row in results.iter_rows():
        del left[take(row)]


class _StuckRows:
    """Aborts a dataset whose rows wait for actors on nodes that do not return."""

    def __init__(self, demand: Demand, wait: float | None, show: Callable[[], object]) -> None:
        self._missing, self._show, self._next = nodes.MissingNodes(demand, wait), show, 0.0

    def check(self) -> None:
        """Call `show`, and abort the dataset if its rows are stuck."""
        self._show()
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + CHECK_SECONDS
        gone = self._missing.too_long(nodes.current_nodes())
        if gone and now - Activity.last_busy > IDLE_SECONDS:
            Activity.abort()


def wait_for(call: Callable[[], object], stop: Stop, show: Callable[[], object]) -> bool:
    """Run `call`, which iterates a dataset, until it returns or a stop is requested.

    Args:
        call: runs on a thread of its own; what it raises is raised here.
        stop: ends the waiting.
        show: called several times a second meanwhile.

    Returns:
        Whether it returned before a stop was requested.
    """
    running = background(call)
    while not running.done() and not stop.requested.wait(0.2):
        show()
    if not running.done():
        return False
    running.result()
    return True


def reason(error: BaseException) -> str:
    """Return the last line of an error of Ray's, which is the worker's own message."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else repr(error)
