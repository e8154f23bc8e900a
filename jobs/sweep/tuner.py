"""The trials of a sweep on Ray Tune: which one is next, which one stops, how each ended.

Tune starts, watches and restarts trials, and shares out the cluster. `jobs.sweep.state` decides
what is tried and stopped, and its record is all that a later start resumes from; Tune's own state
is written below `.ray` and never read.
"""

import contextlib
import logging
import secrets
from typing import Any

from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from jobs.cluster.actors import reason
from jobs.cluster.link import Link
from jobs.cluster.workers import LaunchError, Resources
from jobs.sweep.processes import TrialWork, run_trial
from jobs.sweep.state import Sweep


class _NotSaved:
    """Base of what Tune would pickle for a restore, which never happens: nothing of it is saved."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Searcher(_NotSaved, Searcher):
    """Tune's searcher, which gets the next trial from the sweep."""

    def __init__(self, sweep: Sweep, resources: Resources, link: Link, test: bool) -> None:
        super().__init__()
        self._sweep, self._resources, self._link, self._test = sweep, resources, link, test

    def suggest(self, trial_id: str) -> Any:
        """Return the work of the next trial."""
        trial = self._sweep.next_trial()
        if trial is None:
            return Searcher.FINISHED
        settings = self._sweep.settings(trial)
        return {"work": TrialWork(trial.number, settings, self._resources, self._link, self._test)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the scheduler has told the sweep."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the sweep has its own record."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the sweep has its own record."""


class _Scheduler(_NotSaved, FIFOScheduler):
    """Tune's scheduler, which has the sweep decide."""

    _supports_buffered_results = False

    def __init__(self, sweep: Sweep) -> None:
        super().__init__()
        self._sweep = sweep

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pass the rows and the end of a trial to the sweep; return whether it continues."""
        number = trial.config["work"].number
        for row in result.get("rows", ()):
            if not self._sweep.report(number, row):
                self._sweep.release(number)
                return self.STOP
        for facts in result.get("end", ()):
            _record_end(self._sweep, number, facts)
        return self.CONTINUE


def _record_end(sweep: Sweep, number: int, facts: dict[str, Any]) -> None:
    """Record how the training of a trial ended."""
    fates = {"epochs": "finished", "patience": "finished", "non-finite": "diverged"}
    if facts["ended"] == "stopped":
        sweep.release(number)
    else:
        lost = f"its last save failed: {facts['save_error']}" if facts.get("save_error") else ""
        fate = fates.get(facts["ended"], "failed")
        sweep.end(number, fate, facts["error"] or lost, facts)


class _Failures(_NotSaved, tune.Callback):
    """Records trials that Tune gave up."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that a trial failed: it was lost more often than --max-restarts allows."""
        error = None
        with contextlib.suppress(Exception):
            error = trial.get_pickled_error() or trial.get_error()
        why = "its processes were lost; Ray gives no reason" if error is None else reason(error)
        self._sweep.end(trial.config["work"].number, "failed", why)


def _tune_name(trial: Any) -> str:
    """Return Tune's name of a trial: its number, and an id of this start."""
    return f"{trial.config['work'].number:04}-{trial.trial_id}"


def run_trials(
    sweep: Sweep, resources: Resources, at_once: int, link: Link, test: bool = False
) -> None:
    """Run the trials of a sweep until none is left.

    Args:
        sweep: decides which trials run and stop, and records how they end.
        resources: of a trial.
        at_once: number of trials that run at the same time.
        link: for progress and stop requests.
        test: whether to measure on the test set at the end of each trial.

    Raises:
        LaunchError: Ray gave up.
        StorageError: a trial could not be recorded.
    """
    # Its warnings are about files that are not written on purpose.
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    bundle = {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})
    path, filesystem = (sweep.folder / ".ray").ray_storage()
    (sweep.folder / ".ray").delete()
    entry: Any = tune.with_resources(
        run_trial, tune.PlacementGroupFactory([bundle] * resources.workers)
    )
    tuner = tune.Tuner(
        entry,
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(sweep, resources, link, test),
            scheduler=_Scheduler(sweep),
            num_samples=1_000_000,  # the searcher ends the sweep before
            max_concurrent_trials=at_once,
            reuse_actors=False,
            trial_name_creator=_tune_name,
            trial_dirname_creator=_tune_name,
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
