"""The progress of a sweep: a table on a terminal, a line from time to time in a log."""

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from jobs.run.progress import LOG_SECONDS, clock
from jobs.sweep.record import Trial
from jobs.sweep.state import Sweep
from vit.search import Sample

ROWS = 20
"""Number of trials in the table: the running ones, then the best of the others."""


def count(number: float) -> str:
    """Return a number of parameters or FLOPs in three digits: 2.71 M."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"


def sample_text(sample: Sample) -> str:
    """Return the values of a sample, without the groups of their settings."""
    words = []
    for name, value in sample.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        words.append(f"{name.rpartition('.')[2]} {text}")
    return "  ".join(words)


class SweepProgress:
    """Shows the trials of a sweep, and prints a line when one ends."""

    def __init__(self, sweep: Sweep) -> None:
        """Show the trials of `sweep`, as a table if stdout is a terminal."""
        self._sweep = sweep
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._positions: dict[int, dict[str, Any]] = {}
        self._announced = {trial.number for trial in sweep.snapshot() if trial.fate}
        self._next_line = 0.0

    def __enter__(self) -> "SweepProgress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._announce_ends()
        if self._console.is_terminal:
            self._live.stop()

    def show(self, messages: Iterable[dict[str, Any]]) -> None:
        """Show the positions that trials pushed, and announce the trials that ended."""
        for message in messages:
            self._positions[message["trial"]] = message
        self._announce_ends()
        if self._console.is_terminal:
            self._live.update(self._table(), refresh=True)
        elif time.monotonic() >= self._next_line:
            self._console.print(self._line(), markup=False)
            self._next_line = time.monotonic() + LOG_SECONDS

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self._console.print(line, markup=False)

    def _announce_ends(self) -> None:
        for trial in self._sweep.snapshot():
            if trial.fate and trial.number not in self._announced:
                self._announced.add(trial.number)
                rung = trial.stopped_at
                fate = f"stopped at rung {rung}" if rung is not None else trial.fate
                why = f" ({trial.reason})" if trial.reason else ""
                self._console.print(
                    f"trial {trial.number:>3}  {sample_text(trial.sample)}  {fate}{why},"
                    f" epoch {len(trial.rows)} of {trial.epochs}{self._last_value(trial)}",
                    markup=False,
                )

    def _last_value(self, trial: Trial) -> str:
        if not trial.rows:
            return ""
        measure = self._sweep.config.measure
        return f", {measure} {trial.rows[-1][measure]:.4f}"

    def _line(self) -> str:
        trials, wanted = self._sweep.snapshot(), self._sweep.config.trials
        over = sum(bool(trial.fate) for trial in trials)
        best = self._sweep.ranking()[:1]
        text = f"{over} of {wanted} trials over, {len(self._sweep.running)} running"
        if best and best[0].rows:
            text += f"; best: trial {best[0].number}{self._last_value(best[0])}"
        return f"{text}; {clock(self._sweep.clock.seconds)}"

    def _table(self) -> Table:
        running = self._sweep.running
        shown = [trial for trial in self._sweep.snapshot() if trial.number in running]
        shown += [trial for trial in self._sweep.ranking() if trial.number not in running]
        table = Table(title=self._line(), title_justify="left", box=None)
        measure = self._sweep.config.measure
        for name in ("trial", "", "parameters", "epoch", measure, "left", "fate"):
            table.add_column(name, justify="left" if name in ("", "fate") else "right")
        for trial in shown[:ROWS]:
            rung = trial.stopped_at
            value = self._last_value(trial).rpartition(" ")[2]
            fate = trial.fate if rung is None else f"rung {rung}"
            epoch = f"{len(trial.rows)}/{trial.epochs}"
            cells = sample_text(trial.sample), count(trial.parameters), epoch, value
            table.add_row(str(trial.number), *cells, self._time_left(trial), fate)
        return table

    def _time_left(self, trial: Trial) -> str:
        """Return the time to the end of the whole training, by its images per second."""
        position = self._positions.get(trial.number)
        if trial.fate or position is None or trial.number not in self._sweep.running:
            return ""
        done = max(position["epoch"] + position["index"] / position["steps"], len(trial.rows))
        samples = self._sweep.plan.samples_per_epoch(self._sweep.settings(trial))
        return clock((trial.epochs - done) * samples / position["images_per_s"])
