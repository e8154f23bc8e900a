"""The record of a sweep in its run folder: one file for each trial, and the wall time.

`trials/<number>/trial.json` is written before anything follows from it. A later start resumes from
these files and nothing else: the rungs and the searcher are functions of them.
"""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.run.config import ConfigError
from jobs.storage.location import Location, StorageError
from vit.search import Sample

FORMAT = 1
"""Version of trial.json."""

CLOCK_SECONDS = 15.0
"""Time between two saves of the wall time, which a kill may lose."""

_REMEDY = "the record of a trial; restore the file, or start again in another --out"

FATES = ("finished", "stopped", "diverged", "failed")
"""How a trial may end; a trial that is not over, because of a limit or a signal, has none."""


@dataclass
class Trial:
    """One sample of the search space, and the course of its training."""

    number: int
    """Position among the trials of the sweep, from 0."""
    sample: Sample
    """The values of the varied settings, by their full names."""
    flops: int
    """Training FLOPs per sample of data."""
    parameters: int
    """Number of parameters of the model."""
    epochs: int
    """Number of epochs of the whole training."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Metrics of each epoch so far, as `jobs.training.loop` reports them."""
    arrivals: list[dict[str, Any]] = field(default_factory=list)
    """Decisions at rungs: `rung`, `order` among all arrivals of the sweep, `value` (larger is
    better; None if the trial diverged) and `passed`."""
    fate: str = ""
    """One of FATES; empty if the trial is not over."""
    reason: str = ""
    """Why it was stopped or failed."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Result of its training, without the rows."""

    @property
    def folder_name(self) -> str:
        """Name of the trial's folder."""
        return f"{self.number:04}"

    @property
    def samples_seen(self) -> int:
        """Number of training images so far, repeats counted."""
        return int(self.rows[-1]["samples_seen"]) if self.rows else 0

    @property
    def flops_spent(self) -> float:
        """Training FLOPs so far."""
        return float(self.samples_seen * self.flops)

    @property
    def train_seconds(self) -> float:
        """Seconds of training steps so far; validation and saving are not counted."""
        return self.samples_seen / self.rows[-1]["images_per_s"] if self.rows else 0.0

    @property
    def last_rung(self) -> int:
        """The last rung at which it was judged, from 0; -1 if at none."""
        return max((arrival["rung"] for arrival in self.arrivals), default=-1)

    @property
    def stopped_at(self) -> int | None:
        """The rung at which it was stopped, from 0; None if at none."""
        missed = [arrival["rung"] for arrival in self.arrivals if not arrival["passed"]]
        return missed[0] if missed else None


def trial_folder(folder: Location, trial: Trial) -> Location:
    """Return the folder of a trial in the run folder of its sweep."""
    return folder / "trials" / trial.folder_name


def write_trial(folder: Location, trial: Trial, reopen: bool = False) -> None:
    """Write the trial.json of a trial in the run folder of its sweep.

    Args:
        folder: the run folder.
        trial: what to write.
        reopen: whether the trial may be over on record; other records of trials that are over never
            change.

    Raises:
        StorageError: the record cannot be written, or says that the trial is over.
    """
    path = trial_folder(folder, trial) / "trial.json"
    if not reopen and (fate := _fate(path)):
        raise StorageError(
            f"{path} is not written: trial {trial.number} is over there ({fate}), but not in this"
            " sweep; end what else writes to this folder, and start the sweep again"
        )
    path.write_json({"format": FORMAT, **asdict(trial)})


def _fate(path: Location) -> str:
    """Return the fate of the trial on record; empty if there is none, or the file is damaged."""
    try:
        return read_trial(path).fate if path.exists() else ""
    except ConfigError:
        return ""


def read_trial(path: Location) -> Trial:
    """Read a trial.json.

    Raises:
        ConfigError: it was written in another format, or is damaged.
    """
    try:
        about = dict(json.loads(path.read_bytes()))
        version = about.pop("format")
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} is damaged: expected {_REMEDY}") from error
    if version != FORMAT:
        raise ConfigError(
            f"{path} has format {version}; expected {FORMAT}: resume with the version of Patchray"
            " that wrote it"
        )
    try:
        return Trial(**about)
    except TypeError as error:
        raise ConfigError(f"{path} is damaged: expected {_REMEDY}") from error


def read_trials(folder: Location) -> list[Trial]:
    """Read all trials in the run folder of a sweep, in the order of their numbers.

    Raises:
        ConfigError: a trial was written in another format or is damaged, or one is missing.
    """
    found = []
    for entry in (folder / "trials").list():
        path = folder / "trials" / entry.name / "trial.json"
        if path.exists():
            found.append(read_trial(path))
    found.sort(key=lambda trial: trial.number)
    missing = set(range(len(found))) - {trial.number for trial in found}
    if missing:
        raise ConfigError(
            f"{folder / 'trials'} lacks trial {min(missing)}; what is tried and stopped depends on"
            " all trials: restore its folder, or start again in another --out"
        )
    return found


class WallClock:
    """Counts the time that a sweep has run, in all of its starts together; kept in clock.json."""

    def __init__(self, folder: Location) -> None:
        """Continue to count from what `folder`, the run folder, has on record."""
        self._path = folder / "clock.json"
        self._before = self._read() if self._path.exists() else 0.0
        self._saved = self._before
        self._started = time.monotonic()

    def _read(self) -> float:
        """Return the wall time on record; from a damaged file 0, as only a limit depends on it."""
        try:
            return float(json.loads(self._path.read_bytes())["wall_s"])
        except (TypeError, ValueError, LookupError):
            print(f"{self._path} is damaged: the wall time of earlier starts is not counted")
            return 0.0

    @property
    def seconds(self) -> float:
        """Wall time so far; time between two starts is not counted."""
        return self._before + time.monotonic() - self._started

    def save(self, now: bool = False) -> None:
        """Save the wall time if the last save is old enough, or `now` is set.

        A save that fails costs some seconds of the record, not the trials; the next one may work.
        """
        if now or self.seconds - self._saved > CLOCK_SECONDS:
            self._saved = self.seconds
            with suppress(StorageError):
                self._path.write_json({"wall_s": self._saved})
