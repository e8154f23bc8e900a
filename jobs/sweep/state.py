"""The state of a sweep: its trials, which one is next, which one stops, and when the sweep ends."""

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from jobs.classifier.task import TrainConfig
from jobs.cluster.workers import FAILED_ALIKE
from jobs.storage.location import Location
from jobs.sweep.plan import SweepPlan
from jobs.sweep.record import Trial, WallClock, read_trials, trial_folder, write_trial
from jobs.sweep.rungs import Curve, below_median, passes, rung_budgets, value_at
from jobs.sweep.searchers import PastTrial
from vit.search import Sample


class Sweep:
    """The trials of a sweep and the decisions on them; any thread may call any method."""

    def __init__(
        self,
        plan: SweepPlan,
        folder: Location,
        suggest: Callable[[Sequence[PastTrial]], Sample | None],
    ) -> None:
        """Resume the sweep in `folder`, or start it.

        Args:
            plan: the settings and costs of trials.
            folder: the run folder.
            suggest: returns the next sample, or None when there is none left.

        Raises:
            ConfigError: the record in `folder` cannot be resumed.
        """
        self.plan, self.config, self.folder = plan, plan.config, folder
        self.suggest = suggest
        self.halted = ""
        """Why trials are no longer started or continued; empty while they are."""
        self.at_limit = False
        """Whether the reason is a limit that the settings name."""
        self.trial_gpus = plan.config.gpus_per_trial or 0.0
        """Number of GPUs of a trial; set again once the cluster is known."""
        self.trials = read_trials(folder)
        self.clock = WallClock(folder)
        self.rungs = (
            rung_budgets(plan.trial_budget, self.config.first_rung, self.config.reduction)
            if self.config.scheduler == "asha"
            else []
        )
        self._lock = threading.RLock()
        self._running: set[int] = set()
        self._same_failures: list[Trial] = []
        self._without_checkpoints: set[int] = set()

    def _write(self, trial: Trial) -> None:
        write_trial(self.folder, trial)

    def trial_folder(self, trial: Trial) -> Location:
        """Return the folder of a trial."""
        return trial_folder(self.folder, trial)

    def settings(self, trial: Trial) -> TrainConfig:
        """Return the settings of a trial's training."""
        return self.plan.settings(trial.sample, self.trial_folder(trial))

    # What Ray Tune's searcher and scheduler call.

    def next_trial(self) -> Trial | None:
        """Return the trial to run now: an unfinished one, else a new one, else None."""
        with self._lock:
            if self._is_halted():
                return None
            for trial in self.trials:
                if not trial.fate and trial.number not in self._running:
                    self._running.add(trial.number)
                    return trial
            if len(self.trials) >= self.config.trials:
                return None
            sample = self.suggest([self._past(trial) for trial in self.trials])
            if sample is None:
                return None
            trial = self._new_trial(sample)
            self.trials.append(trial)
            self._running.add(trial.number)
            self._write(trial)
            return trial

    def _new_trial(self, sample: Sample) -> Trial:
        number = len(self.trials)
        settings = self.plan.settings(sample, self.folder)
        flops, size = self.plan.flops_per_sample(settings), self.plan.parameters(settings)
        return Trial(number, sample, flops, size, settings.epochs)

    def report(self, number: int, row: dict[str, Any]) -> bool:
        """Record an epoch's row; return whether the trial continues.

        A row that is known comes from an epoch that was repeated after a kill: it changes nothing.
        """
        with self._lock:
            trial = self.trials[number]
            if trial.fate:
                return False
            if row["epoch"] <= len(trial.rows):
                return not self._is_halted()
            trial.rows.append(row)
            continues = self._continues(trial)
            if not continues and not trial.fate:
                trial.fate = "stopped"
            self._write(trial)
            whole = len(trial.rows) == trial.epochs  # only the end of its training is missing
            return continues and (whole or not self._is_halted())

    def _continues(self, trial: Trial) -> bool:
        config, curve, whole = self.config, self.curve(trial), self.plan.trial_budget
        spent = curve[-1][0]
        if config.budget == "seconds" and spent >= whole:
            trial.fate = "finished"
            return False
        match config.scheduler:
            case "asha":
                return all(self._passes_rung(trial, rung, curve) for rung in range(len(self.rungs)))
            case "median" if spent >= config.first_rung * whole:
                others = [self.curve(other) for other in self.trials if other is not trial]
                if below_median(curve, others):
                    trial.reason = f"below the median at {spent / whole:.0%} of a trial"
                    return False
        return True

    def _passes_rung(self, trial: Trial, rung: int, curve: Curve) -> bool:
        """Return whether the trial continues at this rung, and record a new decision.

        It also continues if it has no value there, or was judged there before.
        """
        value = value_at(curve, self.rungs[rung])
        if value is None or any(arrival["rung"] == rung for arrival in trial.arrivals):
            return True
        all_arrivals = [arrival for other in self.trials for arrival in other.arrivals]
        earlier = [_value(arrival) for arrival in all_arrivals if arrival["rung"] == rung]
        passed = passes(earlier, value, self.config.reduction)
        self._record_arrival(trial, rung, value, passed)
        if not passed:
            rank = 1 + sum(other >= value for other in earlier)
            trial.reason = f"rank {rank} of {len(earlier) + 1} trials at this rung"
        return passed

    def _record_arrival(self, trial: Trial, rung: int, value: float, passed: bool) -> None:
        order = sum(len(other.arrivals) for other in self.trials)
        known = value if math.isfinite(value) else None
        trial.arrivals.append({"rung": rung, "order": order, "value": known, "passed": passed})

    def end(self, number: int, fate: str, reason: str = "", facts: Any = None) -> None:
        """Record how a trial ended; a fate that it has already stays."""
        with self._lock:
            trial = self.trials[number]
            if not trial.fate:
                trial.fate, trial.reason, trial.facts = fate, reason, facts or {}
                if fate == "diverged" and trial.last_rung + 1 < len(self.rungs):
                    # It counts at the next rung, so that others are compared with it.
                    self._record_arrival(trial, trial.last_rung + 1, -math.inf, passed=False)
                self._write(trial)
                self._halt_if_failures_repeat(trial)
            self._running.discard(number)

    def _halt_if_failures_repeat(self, trial: Trial) -> None:
        """End the sweep when trials in a row fail before an epoch, and for the same reason.

        Then a node or the data are at fault, not the trials: the next start runs them again.
        """
        trained = trial.fate != "failed" or bool(trial.rows)
        if trained or (self._same_failures and self._same_failures[0].reason != trial.reason):
            self._same_failures = []
        if trained or "out of memory" in trial.reason:
            return
        self._same_failures.append(trial)
        if len(self._same_failures) == FAILED_ALIKE:
            self.halt(f"{FAILED_ALIKE} trials in a row failed for the same reason: {trial.reason}")
            for failed in self._same_failures:
                failed.fate, failed.reason, failed.facts = "", "", {}
                write_trial(self.folder, failed, reopen=True)

    def release(self, number: int) -> None:
        """Take note that a trial no longer runs; if it has no fate, a later start continues it."""
        with self._lock:
            self._running.discard(number)

    def halt(self, reason: str) -> None:
        """Start no more trials, and let none continue."""
        with self._lock:
            self.halted = self.halted or reason

    @property
    def running(self) -> set[int]:
        """Numbers of the trials that run now."""
        with self._lock:
            return set(self._running)

    @property
    def unfinished(self) -> list[Trial]:
        """Trials that were started, do not run now, and are not over."""
        with self._lock:
            return [t for t in self.trials if not t.fate and t.number not in self._running]

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to run: a limit is reached, or all trials are over."""
        with self._lock:
            if self._is_halted():
                return True
            past = [self._past(trial) for trial in self.trials]
            more = len(past) < self.config.trials and self.suggest(past) is not None
            return not more and not self.unfinished

    def delete_checkpoints(self, again: bool = False) -> None:
        """Delete the checkpoints of trials that are over: nothing resumes from them.

        A deletion that fails, because a process still writes there, is repeated by the next call.
        With `again`, folders that were deleted before are deleted once more.
        """
        for trial in self.snapshot():
            if trial.fate and (again or trial.number not in self._without_checkpoints):
                with suppress(OSError):
                    (self.trial_folder(trial) / "checkpoints").delete()
                    self._without_checkpoints.add(trial.number)

    def _is_halted(self) -> bool:
        """Whether trials may not continue; checks the limits of the sweep."""
        config = self.config
        train_seconds = sum(trial.train_seconds for trial in self.trials)
        for name, limit, now in (
            ("--max-hours", config.max_hours, self.clock.seconds / 3600),
            ("--max-flops", config.max_flops, self.flops_spent),
            ("--max-gpu-hours", config.max_gpu_hours, train_seconds / 3600 * self.trial_gpus),
        ):
            if limit is not None and now >= limit and not self.halted:
                self.halted, self.at_limit = f"{name} {limit:g} is reached", True
        return bool(self.halted)

    # How good trials are.

    @property
    def flops_spent(self) -> float:
        """Training FLOPs of all trials so far."""
        return sum(trial.flops_spent for trial in self.trials)

    def curve(self, trial: Trial) -> list[tuple[float, float]]:
        """Return (spent, value) of each epoch, in units of the budget; a larger value is better."""
        measure, sign = self.config.measure, self.config.sign
        return [
            (self.plan.spent(row, trial.flops), _finite(sign * row[measure])) for row in trial.rows
        ]

    def value(self, trial: Trial) -> float | None:
        """Return the value at the end of the whole training; None if the trial did not finish.

        It is not the best epoch's: among more epochs, the best is higher by chance.
        """
        return self.curve(trial)[-1][1] if trial.fate == "finished" and trial.rows else None

    def _past(self, trial: Trial) -> PastTrial:
        values = {arrival["rung"]: _value(arrival) for arrival in trial.arrivals}
        if trial.fate == "stopped" and not values and trial.rows:
            values = {0: self.curve(trial)[-1][1]}
        final = self.value(trial)
        if trial.fate == "diverged":
            final = -math.inf
        over, failed = bool(trial.fate), trial.fate == "failed"
        return PastTrial(trial.sample, values, final, over=over, failed=failed)

    def ranking(self) -> list[Trial]:
        """Return the trials, best first: finished ones by value, others by rung and last value."""

        def key(trial: Trial) -> tuple[float, ...]:
            value = self.value(trial)
            if value is not None:
                return (1.0, value, 0.0)
            curve = self.curve(trial)
            if not curve or trial.fate in ("diverged", "failed"):
                return (-1.0, 0.0, 0.0)
            return (0.0, float(trial.last_rung), curve[-1][1])

        with self._lock:
            return sorted(self.trials, key=key, reverse=True)

    def snapshot(self) -> list[Trial]:
        """Return a copy of the list of trials."""
        with self._lock:
            return list(self.trials)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _value(arrival: dict[str, Any]) -> float:
    """Return the value with which a trial reached a rung; -inf if the trial diverged."""
    return -math.inf if arrival["value"] is None else float(arrival["value"])
