"""The state of a sweep, and its record in the run folder: what has been tried, and how it went.

One file a trial, `trials/<number>/trial.json`, written before anybody acts on it. It is all that a
start needs to go on: rungs and searcher are functions of these files. Nothing here knows Ray.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.classifier.task import TrainConfig
from jobs.run.config import ConfigError
from jobs.storage.location import Location, StorageError
from jobs.sweep.plan import Plan
from jobs.sweep.rungs import Curve, below_median, milestones, passes, value_at
from jobs.sweep.searchers import Past
from vit.search import Sample

FORMAT = 1
"""Version of trial.json."""

CLOCK_SECONDS = 15.0
"""Between two notes of the wall time: what a kill may lose of it."""

FAILED_ALIKE = 3
"""Trials running that fail for the same reason, after which a sweep ends."""

FATES = ("finished", "stopped", "diverged", "failed")
"""How a trial that is over ended; one that was left by a limit or a signal has none yet."""


@dataclass
class Trial:
    """One sample, and what became of it."""

    number: int
    sample: Sample
    flops: int
    """Of training, per sample of data."""
    parameters: int
    epochs: int
    """Of its whole training."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One an epoch, of `jobs.training.loop`."""
    arrivals: list[dict[str, Any]] = field(default_factory=list)
    """At rungs: `rung`, `order` among all arrivals of the sweep, `value` (larger is better, None:
    diverged), `passed`."""
    fate: str = ""
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """What its training said at its end."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number:04}"

    @property
    def samples_seen(self) -> int:
        """Training images, repeats counted."""
        return int(self.rows[-1]["samples_seen"]) if self.rows else 0

    @property
    def flops_spent(self) -> float:
        """On training."""
        return float(self.samples_seen * self.flops)

    @property
    def train_seconds(self) -> float:
        """Of steps alone."""
        return self.samples_seen / self.rows[-1]["images_per_s"] if self.rows else 0.0

    @property
    def reached(self) -> int:
        """The last rung at which it was judged; -1: none."""
        return max((arrival["rung"] for arrival in self.arrivals), default=-1)

    @property
    def stopped_at(self) -> int | None:
        """The rung at which it was stopped, from 0."""
        missed = [arrival["rung"] for arrival in self.arrivals if not arrival["passed"]]
        return missed[0] if missed else None


class Sweep:
    """All trials of a sweep; every method may be called from any thread."""

    def __init__(
        self, plan: Plan, folder: Location, suggest: Callable[[Sequence[Past]], Sample | None]
    ) -> None:
        """Take up what `folder` holds.

        Args:
            plan: what trials cost.
            folder: of the run.
            suggest: the next sample, or None when there is none left.
        """
        self.plan, self.config, self.folder = plan, plan.config, folder
        self.suggest = suggest
        self.over = ""
        """Why no trial is begun any more, and none goes on, once that is so."""
        self.at_limit = False
        """Whether that is a limit that the settings name."""
        self.gpus = plan.config.gpus_per_trial or 0.0
        """Of a trial; whoever has seen the cluster knows better."""
        self._lock = threading.RLock()
        self._running: set[int] = set()
        self._alike: list[Trial] = []
        self._forgotten: set[int] = set()
        self.trials = self._load()
        known = folder / "clock.json"
        self._wall_before = float(known.read_json()["wall_s"]) if known.exists() else 0.0
        self._noted = self._wall_before
        self._started = time.monotonic()
        config = self.config
        self.rungs = (
            milestones(plan.most, config.first_rung, config.reduction)
            if config.scheduler == "asha"
            else []
        )

    def _load(self) -> list[Trial]:
        """The trials on record, which are numbered without a gap. Raises ConfigError."""
        found = []
        for entry in (self.folder / "trials").list():
            path = self.folder / "trials" / entry.name / "trial.json"
            if path.exists():
                about = path.read_json()
                if about.pop("format") != FORMAT:
                    raise ConfigError(f"{path} has another format; this version reads {FORMAT}")
                found.append(Trial(**about))
        found.sort(key=lambda trial: trial.number)
        missing = set(range(len(found))) - {trial.number for trial in found}
        if missing:
            raise ConfigError(
                f"{self.folder / 'trials'} lacks trial {min(missing)}: what is tried and stopped"
                " hangs on all of them; bring it back, or begin anew in another --out"
            )
        return found

    def _write(self, trial: Trial) -> None:
        path = self.folder / "trials" / trial.name / "trial.json"
        path.write_json({"format": FORMAT, **asdict(trial)})

    def note_clock(self, now: bool = False) -> None:
        """Write down the wall time now and then; with `now` at once.

        A write that fails costs some seconds of the record, not the trials: the next one may do.
        """
        if now or self.wall_seconds - self._noted > CLOCK_SECONDS:
            self._noted = self.wall_seconds
            with suppress(StorageError):
                (self.folder / "clock.json").write_json({"wall_s": self._noted})

    @property
    def wall_seconds(self) -> float:
        """Since the sweep began, times at which it did not run left out."""
        return self._wall_before + time.monotonic() - self._started

    def place(self, trial: Trial) -> Location:
        """The folder of a trial."""
        return self.folder / "trials" / trial.name

    def settings(self, trial: Trial) -> TrainConfig:
        """The settings of a trial's training."""
        return self.plan.trial(trial.sample, self.place(trial))

    # What the scheduler does.

    def next(self) -> Trial | None:
        """The trial to start now: one that was left, else a new one; None when there is none."""
        with self._lock:
            if self._limit():
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
            trial = self._new(sample)
            self.trials.append(trial)
            self._running.add(trial.number)
            self._write(trial)
            return trial

    def _new(self, sample: Sample) -> Trial:
        number = len(self.trials)
        config = self.plan.trial(sample, self.folder)
        flops, size = self.plan.flops(config), self.plan.parameters(config)
        return Trial(number, sample, flops, size, config.epochs)

    def report(self, number: int, row: dict[str, Any]) -> bool:
        """Take an epoch's row; returns whether the trial goes on.

        A row that is known is an epoch that was repeated after a kill: nothing is decided anew.
        """
        with self._lock:
            trial = self.trials[number]
            if trial.fate:
                return False
            if row["epoch"] <= len(trial.rows):
                return not self._limit()
            trial.rows.append(row)
            goes_on = self._decide(trial)
            if not goes_on and not trial.fate:
                trial.fate = "stopped"
            self._write(trial)
            whole = len(trial.rows) == trial.epochs  # then only its end is still to come
            return goes_on and (whole or not self._limit())

    def _decide(self, trial: Trial) -> bool:
        config, curve = self.config, self.curve(trial)
        spent = curve[-1][0]
        if config.budget == "seconds" and spent >= self.plan.most:
            trial.fate = "finished"
            return False
        match config.scheduler:
            case "asha":
                return all(self._arrive(trial, rung, curve) for rung in range(len(self.rungs)))
            case "median" if spent >= config.first_rung * self.plan.most:
                others = [self.curve(other) for other in self.trials if other is not trial]
                if below_median(curve, others):
                    trial.reason = f"below the median at {spent / self.plan.most:.0%} of a trial"
                    return False
        return True

    def _arrive(self, trial: Trial, rung: int, curve: Curve) -> bool:
        """Whether the trial is not stopped at this rung: it has no value there, passed it before,
        or passes it now."""
        value = value_at(curve, self.rungs[rung])
        if value is None or any(arrival["rung"] == rung for arrival in trial.arrivals):
            return True
        all_arrivals = [arrival for other in self.trials for arrival in other.arrivals]
        earlier = [_known(arrival) for arrival in all_arrivals if arrival["rung"] == rung]
        passed = passes(earlier, value, self.config.reduction)
        self._note(trial, rung, value, passed)
        if not passed:
            place = 1 + sum(other >= value for other in earlier)
            trial.reason = f"{place} of {len(earlier) + 1} that got as far"
        return passed

    def _note(self, trial: Trial, rung: int, value: float, passed: bool) -> None:
        order = sum(len(other.arrivals) for other in self.trials)
        known = value if math.isfinite(value) else None
        trial.arrivals.append({"rung": rung, "order": order, "value": known, "passed": passed})

    def end(self, number: int, fate: str, reason: str = "", facts: Any = None) -> None:
        """Write down how a trial ended; the first word on it stands."""
        with self._lock:
            trial = self.trials[number]
            if not trial.fate:
                trial.fate, trial.reason, trial.facts = fate, reason, facts or {}
                if fate == "diverged":
                    self._fall(trial)
                self._write(trial)
                self._doubt(trial)
            self._running.discard(number)

    def _doubt(self, trial: Trial) -> None:
        """End the sweep when trials fail alike before their first epoch, one after the other: a
        node or the data is at fault, not they. The next start takes them up."""
        begun = trial.fate != "failed" or bool(trial.rows)
        if begun or (self._alike and self._alike[0].reason != trial.reason):
            self._alike = []
        if begun or "out of memory" in trial.reason:
            return
        self._alike.append(trial)
        if len(self._alike) == FAILED_ALIKE:
            self.refuse_more(f"{FAILED_ALIKE} trials failed alike: {trial.reason}")
            for one in self._alike:
                one.fate, one.reason, one.facts = "", "", {}
                self._write(one)

    def _fall(self, trial: Trial) -> None:
        """A diverged trial loses the next rung, so that it counts among those that got there."""
        if trial.reached + 1 < len(self.rungs):
            self._note(trial, trial.reached + 1, -math.inf, passed=False)

    def leave(self, number: int) -> None:
        """A trial stopped running without an end: another start goes on with it."""
        with self._lock:
            self._running.discard(number)

    def refuse_more(self, why: str) -> None:
        """Begin no trial any more, and let none go on."""
        with self._lock:
            self.over = self.over or why

    @property
    def running(self) -> set[int]:
        """The trials under way."""
        with self._lock:
            return set(self._running)

    @property
    def left(self) -> list[Trial]:
        """Trials that were begun, and neither came to an end nor are under way."""
        with self._lock:
            return [t for t in self.trials if not t.fate and t.number not in self._running]

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to run: a limit is reached, or all trials have their fate."""
        with self._lock:
            if self._limit():
                return True
            past = [self._past(trial) for trial in self.trials]
            more = len(past) < self.config.trials and self.suggest(past) is not None
            return not more and not self.left

    def forget_checkpoints(self, again: bool = False) -> None:
        """Delete the checkpoints of trials that are over: nothing goes on from them.

        What cannot be deleted now, as a late writer is at it, is tried again at the next call; with
        `again` so is what such a one has written since.
        """
        for trial in self.snapshot():
            if trial.fate and (again or trial.number not in self._forgotten):
                with suppress(OSError):
                    (self.place(trial) / "checkpoints").delete()
                    self._forgotten.add(trial.number)

    # What the limits and the searcher look at.

    def _limit(self) -> bool:
        """Whether a limit of the sweep is reached."""
        config = self.config
        hours = self.wall_seconds / 3600
        gpu_hours = sum(trial.train_seconds for trial in self.trials) / 3600
        gpu_hours *= self.gpus
        for name, most, now in (
            ("--max-hours", config.max_hours, hours),
            ("--max-flops", config.max_flops, self.flops_spent),
            ("--max-gpu-hours", config.max_gpu_hours, gpu_hours),
        ):
            if most is not None and now >= most and not self.over:
                self.over, self.at_limit = f"{name} {most:g} is reached", True
        return bool(self.over)

    @property
    def flops_spent(self) -> float:
        """On training, of all trials."""
        return sum(trial.flops_spent for trial in self.trials)

    def curve(self, trial: Trial) -> list[tuple[float, float]]:
        """How good a trial was by what it had spent, in units of the budget; larger is better."""
        measure, sign = self.config.measure, self.config.sign
        return [
            (self.plan.spent(row, trial.flops), _finite(sign * row[measure])) for row in trial.rows
        ]

    def value(self, trial: Trial) -> float | None:
        """How good a trial was at the end of its whole training; larger is better.

        Not its best epoch: of more epochs the best is higher by chance. None if it did not finish.
        """
        return self.curve(trial)[-1][1] if trial.fate == "finished" and trial.rows else None

    def _past(self, trial: Trial) -> Past:
        values = {arrival["rung"]: _known(arrival) for arrival in trial.arrivals}
        if trial.fate == "stopped" and not values and trial.rows:
            values = {0: self.curve(trial)[-1][1]}
        final = self.value(trial)
        if trial.fate == "diverged":
            final = -math.inf
        over, failed = bool(trial.fate), trial.fate == "failed"
        return Past(trial.sample, values, final, over=over, failed=failed)

    def ranking(self) -> list[Trial]:
        """Trials by how good they are: finished ones first, then by how far and how well."""

        def key(trial: Trial) -> tuple[float, ...]:
            value = self.value(trial)
            if value is not None:
                return (1.0, value, 0.0)
            curve = self.curve(trial)
            if not curve or trial.fate in ("diverged", "failed"):
                return (-1.0, 0.0, 0.0)
            return (0.0, float(trial.reached), curve[-1][1])

        with self._lock:
            return sorted(self.trials, key=key, reverse=True)

    def snapshot(self) -> list[Trial]:
        """The trials now, for whoever shows them."""
        with self._lock:
            return list(self.trials)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _known(arrival: dict[str, Any]) -> float:
    """The value of an arrival at a rung."""
    return -math.inf if arrival["value"] is None else float(arrival["value"])
