"""What a training and the epoch loop know of each other: settings, task, hooks."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from jobs.run.config import MAY_CHANGE, ConfigError, JobConfig
from vit.data.decode import DataError


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how a training runs; these flags are the same for every training job."""

    epochs: int = 50
    """Number of passes over the training set; the schedule of the learning rate spans all of
    them."""
    batch_size: int = 128
    """Number of samples in the global batch, which is split over all workers."""
    patience: int = field(default=0, metadata=MAY_CHANGE)
    """Number of epochs without a better validation result after which the training stops; 0: it
    never stops early."""
    save_minutes: float = field(default=10, metadata=MAY_CHANGE)
    """Minutes between saves within an epoch; every epoch also ends with a save."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """float32, bfloat16 (autocast), or auto: bfloat16 on a GPU that supports it, and on a CPU what
    a short probe finds fastest. Because probes may choose differently, only runs with auto may
    differ in rounding from another run with the same seed."""
    max_restarts: int = field(default=10, metadata=MAY_CHANGE)
    """Number of times that lost workers are restarted before the job fails; -1: no limit."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for flag, value in (("epochs", self.epochs), ("batch-size", self.batch_size)):
            if value < 1:
                raise ConfigError(f"--{flag} is {value}; at least 1 is needed")
        if self.max_restarts < -1:
            raise ConfigError(f"--max-restarts is {self.max_restarts}; -1 means without limit")
        if min(self.patience, self.save_minutes) < 0:
            raise ConfigError(
                f"--patience is {self.patience} and --save-minutes {self.save_minutes};"
                " neither may be below 0"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(LoopConfig, JobConfig):
    """Settings of any training job."""

    def __post_init__(self) -> None:
        """Check the settings of the loop and of the job together."""
        JobConfig.__post_init__(self)
        LoopConfig.__post_init__(self)
        if self.workers > self.batch_size:
            raise ConfigError(
                f"--workers {self.workers} is more than --batch-size {self.batch_size}:"
                " some workers would have nothing to do"
            )


class Task(Protocol):
    """What differs between trainings; every rank holds one, and they differ only in their rank."""

    steps_per_epoch: int

    def build(self) -> nn.Module:
        """Return the model on this rank's device, with the same weights on every rank."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of the bare model."""

    def decide(self, model: nn.Module, batch: int) -> dict[str, Any]:
        """Choose what must stay the same for the whole run, such as precision, as JSON values.

        Args:
            model: the bare model.
            batch: samples of a rank's part of a batch.
        """

    def average(self, model: nn.Module) -> nn.Module | None:
        """Return a copy of the bare model for the average of its weights; None: none is wanted.

        It is saved, evaluated as `ema_...`, tested and exported in place of the model.
        """

    def apply(self, model: nn.Module, facts: dict[str, Any]) -> None:
        """Apply what rank 0 or an earlier start of the run decided (`decide`).

        Raises ValueError when this start cannot continue with it, such as with other data.
        """

    def describe(self) -> str:
        """Return lines for people about the data and what was decided."""

    def gradients(self, model: nn.Module, epoch: int, index: int, step: int) -> Tensor:
        """Put the gradient of this rank's part of batch `index` of `epoch` into `.grad`.

        Returns (k,) float64 sums over the part, among them a count of samples; no host sync.
        """

    def update(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: nn.Module | None,
        step: int,
    ) -> Tensor:
        """Take optimizer step `step` and move the average; returns (), the gradient's norm.

        No host sync.
        """

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> Tensor | None:
        """Return (k,) float64 sums over this rank's part of a split; None: no such split."""

    def metrics(self, sums: list[float], prefix: str) -> dict[str, float]:
        """Turn sums over all ranks into named metrics, such as `val_loss` and `val_accuracy`."""

    def score(self, row: dict[str, Any]) -> list[float]:
        """Return what early stopping and `best` maximise; scores are compared item by item."""

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step `step` for the epoch's row of metrics."""


class Hooks(Protocol):
    """What the loop calls to report to the process that started it."""

    def report(self, row: dict[str, Any]) -> None:
        """Take an epoch's row of metrics; called on every rank at the end of the epoch."""

    def progress(self, facts: dict[str, Any]) -> None:
        """Take the position in the run, or an epoch's row; called on rank 0, a few times a second.

        The position is {"epoch", "index", "steps", "images_per_s"}, a row {"row": metrics}.
        """

    def say(self, line: str) -> None:
        """Show a line to a person; called on rank 0."""

    def record(self, history: list[dict[str, Any]]) -> None:
        """Publish the rows of all epochs so far; called on rank 0, in the saver's thread."""

    def stop_requested(self) -> bool:
        """Return whether the training should stop; called on rank 0."""

    def preempted(self) -> bool:
        """Return whether a node is about to be removed; called on every rank at once."""


def check_same_data(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that the sizes of sets, and the classes, are those of the run's first start.

    Raises:
        DataError: they differ.
    """
    if before != now:
        raise DataError(
            f"the data changed since the run was started: {before} then, {now} now;"
            " restore the earlier data, or start in another --out"
        )


def validation_metric(row: dict[str, Any], metric: str) -> float:
    """Return a validation metric of an epoch: the averaged weights' if there are any."""
    return float(row[f"ema_{metric}" if f"ema_{metric}" in row else f"val_{metric}"])


def means(sums: list[float], names: tuple[str, ...], prefix: str) -> dict[str, float]:
    """Divide k sums by the count that follows them; returns k metrics, `<prefix>_<name>`."""
    *values, count = sums
    return {
        f"{prefix}_{name}": value / max(count, 1) for name, value in zip(names, values, strict=True)
    }
