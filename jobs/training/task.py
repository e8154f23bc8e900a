"""What a training is to the epoch loop: its settings, its task, and who listens."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from jobs.run.config import MAY_CHANGE, ConfigError, JobConfig


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how a training runs; these flags are the same for every training job."""

    epochs: int = 50
    """Passes over the training set; the learning rate's schedule spans them."""
    batch_size: int = 128
    """Samples of a global batch, split over however many workers there are."""
    patience: int = field(default=0, metadata=MAY_CHANGE)
    """Stop after this many epochs without a better validation result; 0: never."""
    save_minutes: float = field(default=10, metadata=MAY_CHANGE)
    """Save in mid-epoch when the last save is this old; every epoch ends with a save."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """float32, bfloat16 autocast, or what a probe finds fastest; only a probed run may differ in
    rounding from another one with the same seed."""
    max_restarts: int = field(default=10, metadata=MAY_CHANGE)
    """How often lost workers are started anew before the job gives up; -1: without end."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for flag, value in (("epochs", self.epochs), ("batch-size", self.batch_size)):
            if value < 1:
                raise ConfigError(f"--{flag} is {value}; at least 1 is needed")
        if self.max_restarts < -1:
            raise ConfigError(f"--max-restarts is {self.max_restarts}; -1 means without end")
        if min(self.patience, self.save_minutes) < 0:
            raise ConfigError(
                f"--patience is {self.patience} and --save-minutes {self.save_minutes};"
                " neither may be below 0"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(LoopConfig, JobConfig):
    """Settings of any training job."""

    def __post_init__(self) -> None:
        """Check what neither part shows alone."""
        JobConfig.__post_init__(self)
        LoopConfig.__post_init__(self)
        if self.workers > self.batch_size:
            raise ConfigError(
                f"--workers {self.workers} is more than --batch-size {self.batch_size}:"
                " some workers would have nothing to do"
            )


class Task(Protocol):
    """What differs from training to training. Every rank holds one; they differ in rank alone."""

    steps_per_epoch: int

    def build(self) -> nn.Module:
        """The model on this rank's device; the same weights on every rank."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the bare model."""

    def decide(self, model: nn.Module, batch: int) -> dict[str, Any]:
        """Choose, on rank 0 alone, what must then stay for the whole run, such as precision."""

    def average(self, model: nn.Module) -> nn.Module | None:
        """A copy of the bare model to hold the average of its weights, if one is wanted.

        It is saved, evaluated as `ema_...`, tested and exported in place of the model.
        """

    def settle(self, model: nn.Module, facts: dict[str, Any]) -> None:
        """Take over what rank 0, or an earlier start of the run, decided.

        Raises ValueError when this start cannot go on with it, such as other data.
        """

    def describe(self) -> str:
        """A line for people on what was settled."""

    def gradients(self, model: nn.Module, epoch: int, index: int, step: int) -> Tensor:
        """Leave in `.grad` the gradient of this rank's part of batch `index` of `epoch`.

        Returns (k,) float64 sums over the part, among them a count of samples; no host sync.
        """

    def update(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: nn.Module | None,
        step: int,
    ) -> Tensor:
        """Take optimizer step `step`, move the average; returns (), the gradient's norm.

        No host sync.
        """

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> Tensor | None:
        """(k,) float64 sums of this rank's part of a split; None if there is no such split."""

    def metrics(self, sums: list[float], prefix: str) -> dict[str, float]:
        """Sums over all ranks to named metrics, such as `val_loss` and `val_accuracy`."""

    def score(self, row: dict[str, Any]) -> list[float]:
        """What early stopping and `best` maximise of an epoch's row, compared item by item."""

    def learning_rate(self, step: int) -> float:
        """The learning rate of step `step`, for the record."""


class Hooks(Protocol):
    """How the loop speaks to whoever started it."""

    def report(self, row: dict[str, Any]) -> None:
        """Called on every rank at the end of an epoch, with its row of metrics."""

    def progress(self, facts: dict[str, Any]) -> None:
        """Called on rank 0 several times a second, at most."""

    def say(self, line: str) -> None:
        """Tell a person; called on rank 0."""

    def record(self, history: list[dict[str, Any]]) -> None:
        """Publish the rows of all epochs so far; called on rank 0, in the saver's thread."""

    def stop_requested(self) -> bool:
        """Asked on rank 0."""

    def preempted(self) -> bool:
        """Asked on every rank at once: is a node about to be taken away?"""
