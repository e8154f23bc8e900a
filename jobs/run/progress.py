"""The progress of a training: a bar on a terminal, a line from time to time in a log."""

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LOG_SECONDS = 10.0
"""Least time between two lines of progress in a log."""


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"


def epoch_line(row: dict[str, Any]) -> str:
    """Return the metrics of an epoch as a line for the terminal."""
    names: tuple[str, ...] = ("train_loss", "val_loss", "val_accuracy", "ema_accuracy")
    if "val_miou_1" in row:
        prefix = "ema" if "ema_miou_1" in row else "val"
        names = ("train_loss", *(f"{prefix}_miou_{clicks}" for clicks in (1, 3, 5)))
    parts = [f"{name} {row[name]:.4f}" for name in names if name in row]
    return f"epoch {row['epoch']:>3}  {'  '.join(parts)}  {row['images_per_s']:,.0f} images/s"


class TrainingProgress:
    """Shows what rank 0 pushes: its place in the training, metrics of epochs, messages."""

    def __init__(self, epochs: int) -> None:
        """Prepare a bar over `epochs`, which is shown on a terminal only."""
        self._epochs = epochs
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._start: tuple[float, float] | None = None  # time, and epochs that were done then
        self._quiet_until = 0.0
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[rate]}  {task.fields[left]} left"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(
            "train", total=epochs, epoch=1, epochs=epochs, rate="", left="?"
        )

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, messages: Iterable[dict[str, Any]]) -> None:
        """Show messages in order: `{"say": line}`, `{"row": metrics}` or a place in an epoch."""
        for message in messages:
            if "say" in message:
                self.say(message["say"])
            elif "row" in message:
                self._show_epoch(message["row"])
            else:
                self._show_place(message)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        text = line.encode(errors="backslashreplace").decode()  # file names may be no UTF-8
        self._console.print(text, markup=False)

    def _show_epoch(self, row: dict[str, Any]) -> None:
        last = row["epoch"] == self._epochs
        if self._console.is_terminal or last or time.monotonic() >= self._quiet_until:
            left = self._left(row["epoch"])
            self.say(f"{epoch_line(row)}  {left} left")
            self._quiet_until = time.monotonic() + LOG_SECONDS

    def _show_place(self, place: dict[str, Any]) -> None:
        done = place["epoch"] + place["index"] / place["steps"]
        rate, left = f"{place['images_per_s']:,.0f} images/s", self._left(done)
        self._bar.update(self._task, completed=done, epoch=place["epoch"] + 1, rate=rate, left=left)
        if not self._console.is_terminal and time.monotonic() >= self._quiet_until:
            batch = f"batch {place['index']}/{place['steps']}"
            self.say(f"epoch {place['epoch'] + 1:>3}  {batch}  {rate}  {left} left")
            self._quiet_until = time.monotonic() + LOG_SECONDS

    def _left(self, done: float) -> str:
        """Return the time left at the pace since this start, evaluation included."""
        now = time.monotonic()
        if self._start is None:
            self._start = (now, done)
        began, before = self._start
        if done <= before:
            return "?"
        return clock((now - began) / (done - before) * (self._epochs - done))
