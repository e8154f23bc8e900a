"""The state of a training that a checkpoint keeps, and the result that a training returns."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass
class State:
    """The part of a checkpoint that is not tensors; its fields are the keys of `state.json`."""

    epoch: int = 0
    """Epochs that are done."""
    index: int = 0
    """Batches of this epoch that are done."""
    step: int = 0
    """Optimizer steps that were taken."""
    sums: list[float] = field(default_factory=list)
    """Sums over all ranks of the batches of this epoch that are done."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows of metrics, one per epoch."""
    best: list[float] = field(default_factory=list)
    """The task's score of the best epoch so far."""
    best_epoch: int = 0
    """Number of the best epoch, from 1; 0: there is none."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What `Task.decide` returned at the first start."""
    train_seconds: float = 0.0
    """Seconds spent in training steps, over all starts."""
    wall_seconds: float = 0.0
    """Seconds that the loop ran, over all starts."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a training ended and what it measured; every rank returns one, rank 0's is reported."""

    ended: Literal["epochs", "patience", "stopped", "non-finite", "failed"]
    """Why: the last epoch is done, --patience is over, a person or a signal stopped it, the loss
    was not finite, or it could not start or resume."""
    error: str | None = None
    """A message for people about `non-finite` and `failed`."""
    save_error: str | None = None
    """Why the last save failed; None if it succeeded."""
    test: dict[str, float] = field(default_factory=dict)
    """Metrics of the test set at the best epoch's weights; empty without a test set."""
    state: State = field(default_factory=State)
    """Where the training ended, with its history and its best epoch."""
    resumed: int = 0
    """How often the run resumed from a checkpoint."""
    peak_rss_mb: float = 0.0
    """Peak resident memory of the largest rank, in MiB."""
    nodes: int = 1
    """Nodes that the ranks ran on."""
    hardware: dict[str, Any] = field(default_factory=dict)
    """What `jobs.run.machine.hardware` says of rank 0's node."""

    @property
    def best_row(self) -> dict[str, Any]:
        """The best epoch's row of metrics."""
        return self.state.history[self.state.best_epoch - 1]

    def as_facts(self) -> dict[str, Any]:
        """Return the fields of the result and of its state, but the history, in one dict."""
        facts = asdict(self)
        facts |= facts.pop("state")
        del facts["history"]
        return facts
