"""Rows of work over a pool of actors of Ray Data, one row at a time for each."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import ray

from jobs.config import JobConfig
from jobs.signals import Stop, background


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
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data.from_items(list(rows), override_num_blocks=len(rows)).map(
        actor,
        fn_constructor_args=arguments,
        num_cpus=config.cpus_per_worker,
        num_gpus=gpus,
        # One row at a time for each actor: a second would wait behind the first, bound to it.
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
    )


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
