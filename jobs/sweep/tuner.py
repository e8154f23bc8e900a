"""The trials of a sweep on Ray Tune: who is next, who is stopped, and the processes of a trial.

Tune starts, watches and restarts trials, and gives out the cluster. What is tried and what is
stopped is decided by `jobs.sweep.record`, whose record is all that a later start resumes from;
Tune's own state is written, below `.ray`, and never read.

A trial of several processes holds one placement group of Tune's, a bundle for each. The trial's
own process is rank 0 and starts the others in the group's other bundles, so Tune counts what they
take, and all of it is free again when Tune stops the trial. (Ray Train's trainer inside a trial
would make a second group that Tune does not know of.)
"""

import contextlib
import logging
import os
import secrets
import socket
import threading
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from jobs.classifier.task import TrainConfig, VitTask, load
from jobs.cluster.actors import reason
from jobs.cluster.link import Link
from jobs.cluster.workers import DATA_SECONDS, LaunchError, Resources, keep_memory
from jobs.run.folder import hardware, write_metrics
from jobs.storage.location import Location
from jobs.sweep.record import Sweep
from jobs.training.checkpoints import Checkpoints
from jobs.training.loop import run
from jobs.training.ranks import AgreedError, Ranks
from jobs.training.task import Hooks

ABANDON_SECONDS = 30.0
"""After another rank was lost: how long rank 0 may take to notice, before its process ends."""


@dataclass(frozen=True)
class Work:
    """What the processes of a trial are told."""

    number: int
    config: TrainConfig
    resources: Resources
    link: Link
    test: bool
    """Read the test set at the end."""


class _Hooks:
    """The loop's hooks on one rank of a trial; rank 0 is the one that Tune hears."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._stop = work.link.watch()

    def report(self, row: dict[str, Any]) -> None:
        """Give Tune the row, and wait for its decision: a trial that it stops does not go on."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            tune.report({"rows": [row]})

    def progress(self, facts: dict[str, Any]) -> None:
        """Show facts on the driver's terminal."""
        if "row" not in facts:
            self._work.link.push({"trial": self._work.number, **facts})

    def say(self, line: str) -> None:
        """Keep it: a line of one among many trials is noise."""

    def record(self, history: list[dict[str, Any]]) -> None:
        """Publish the trial's metrics.csv."""
        write_metrics(Location.parse(self._work.config.out), history)

    def stop_requested(self) -> bool:
        """Whether the driver was told to stop."""
        return self._stop.is_set()

    def preempted(self) -> bool:
        """Ray tells Train's workers only."""
        return False


def _train(work: Work, rank: int, address: str) -> dict[str, Any]:
    """One rank of a trial."""
    keep_memory()
    resources = work.resources
    torch.set_num_threads(max(1, int(resources.cpus)))
    if resources.workers > 1:
        dist.init_process_group(
            resources.backend,
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=resources.workers,
            timeout=timedelta(seconds=DATA_SECONDS),
        )
    device = torch.device("cpu")
    if resources.cuda:
        device = torch.device("cuda", 0)  # Ray shows a process the GPUs that are its own
        torch.cuda.set_device(device)
    facts = train_trial(work.config, device, _Hooks(work), work.test)
    return {**facts, "hardware": hardware()}


def _other_ranks(work: Work, address: str) -> list[Any]:
    """Start the other ranks in the other bundles of this trial's placement group."""
    group: Any = ray.util.get_current_placement_group()
    remote: Any = ray.remote(max_calls=1)(_train)  # no later task inherits its process group
    return [
        remote.options(
            num_cpus=work.resources.cpus,
            num_gpus=work.resources.gpus,
            max_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=rank
            ),
        ).remote(work, rank, address)
        for rank in range(1, work.resources.workers)
    ]


def _watch(others: list[Any], lost: list[str]) -> None:
    """End this process when another rank is gone and the collectives do not notice.

    gloo raises at once, NCCL may wait for its timeout. Tune starts the trial anew.
    """
    waiting = others
    while waiting:
        done, waiting = ray.wait(waiting)
        try:
            ray.get(done)
        except Exception as error:
            lost.append(reason(error))
            threading.Event().wait(ABANDON_SECONDS)
            os._exit(1)


def _entry(config: dict[str, Any]) -> None:
    """Run by Tune in the trial's own process: rank 0."""
    work: Work = config["work"]
    checkpoints = Checkpoints(Location.parse(work.config.out) / "checkpoints", "")
    if (name := checkpoints.latest()) is not None:  # rows that the driver may not have heard
        tune.report({"rows": checkpoints.state(name)["history"]})
    address = _free_address()
    lost: list[str] = []
    others = _other_ranks(work, address)
    if others:
        threading.Thread(target=_watch, args=(others, lost), daemon=True).start()
    try:
        facts = _train(work, 0, address)
    except Exception as error:
        if lost or not _is_final(error, alone=not others):
            raise  # Tune starts the trial anew, from its last checkpoint
        facts = {"ended": "failed", "error": _words(error)}
    facts.pop("history", None)
    tune.report({"end": [facts]})  # a list: Tune flattens what is nested otherwise


def _is_final(error: Exception, alone: bool) -> bool:
    """Whether a new start would meet the same error: all but the loss of another rank."""
    return alone or _is_out_of_memory(error)


def _is_out_of_memory(error: BaseException) -> bool:
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}"
    return f"out of memory ({text})" if _is_out_of_memory(error) else text


def _free_address() -> str:
    host = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


class _NotKept:
    """Tune pickles what it is given, for a restore that we never ask for: nothing of it is kept."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_NotKept, Searcher):
    """Tune's searcher: asks the sweep."""

    def __init__(self, sweep: Sweep, resources: Resources, link: Link, test: bool) -> None:
        super().__init__()
        self._sweep, self._resources, self._link, self._test = sweep, resources, link, test

    def suggest(self, trial_id: str) -> Any:
        """The next trial's work."""
        found = self._sweep.next()
        if found is None:
            return Searcher.FINISHED
        settings = self._sweep.settings(found)
        return {"work": Work(found.number, settings, self._resources, self._link, self._test)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The sweep knows already."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's record is elsewhere."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Scheduler(_NotKept, FIFOScheduler):
    """Tune's scheduler: the sweep decides."""

    _supports_buffered_results = False

    def __init__(self, sweep: Sweep) -> None:
        super().__init__()
        self._sweep = sweep

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Take rows and the end of a trial."""
        number = trial.config["work"].number
        for row in result.get("rows", ()):
            if not self._sweep.report(number, row):
                self._sweep.leave(number)
                return self.STOP
        for facts in result.get("end", ()):
            _end(self._sweep, number, facts)
        return self.CONTINUE


def _end(sweep: Sweep, number: int, facts: dict[str, Any]) -> None:
    """Write down how a trial's training ended."""
    fates = {"epochs": "finished", "patience": "finished", "non-finite": "diverged"}
    if facts["ended"] == "stopped":
        sweep.leave(number)
    else:
        lost = f"its last save failed: {facts['save_error']}" if facts.get("save_error") else ""
        fate = fates.get(facts["ended"], "failed")
        sweep.end(number, fate, facts["error"] or lost, facts)


class _Failures(_NotKept, tune.Callback):
    """Hears which trials Tune gave up."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial was lost more often than it may be."""
        error = None
        with contextlib.suppress(Exception):
            error = trial.get_pickled_error() or trial.get_error()
        why = "lost, Ray gives no reason" if error is None else reason(error)
        self._sweep.end(trial.config["work"].number, "failed", why)


def _name(trial: Any) -> str:
    """What Tune calls a trial: its number, and an id of this start."""
    return f"{trial.config['work'].number:04}-{trial.trial_id}"


def run_trials(
    sweep: Sweep, resources: Resources, slots: int, link: Link, test: bool = False
) -> None:
    """Run the trials of a sweep until none is left, `slots` at once.

    Args:
        sweep: what to try, and what to stop; knows afterwards how it went.
        resources: of a trial.
        slots: trials at once.
        link: for progress, and for the request to stop.
        test: read the test set at the end of each trial.

    Raises:
        LaunchError: Ray gave up.
        StorageError: a trial could not be written down.
    """
    logging.getLogger("ray.tune").setLevel(
        logging.ERROR
    )  # misses files that we told it not to write
    bundle = {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})
    path, filesystem = (sweep.folder / ".ray").ray_storage()
    (sweep.folder / ".ray").delete()
    entry: Any = tune.with_resources(
        _entry, tune.PlacementGroupFactory([bundle] * resources.workers)
    )
    tuner = tune.Tuner(
        entry,
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(sweep, resources, link, test),
            scheduler=_Scheduler(sweep),
            num_samples=1_000_000,  # the sweep says when it is enough
            max_concurrent_trials=slots,
            reuse_actors=False,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"start-{secrets.token_hex(4)}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=sweep.config.max_restarts),
            callbacks=[_Failures(sweep)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except (tune.TuneError, RayError) as error:
        raise LaunchError(reason(error)) from error


def train_trial(
    config: TrainConfig, device: torch.device, hooks: Hooks, test: bool
) -> dict[str, Any]:
    """The training of a trial, on every rank of it; goes on where an earlier start stopped.

    Args:
        config: of the trial.
        device: of this rank.
        hooks: who listens.
        test: read the test set once, at the end; a sweep does not.

    Returns:
        The facts of `jobs.training.loop.run`.
    """
    ranks = Ranks.here()
    try:
        dataset = ranks.each(lambda: load(config))
        dataset = dataset if test else replace(dataset, test=None)
        task = VitTask(config, dataset, device, ranks)
        return run(task, config, Location.parse(config.out) / "checkpoints", hooks)
    except AgreedError as error:
        return {"ended": "failed", "error": str(error)}
