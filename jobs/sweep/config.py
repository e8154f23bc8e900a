"""Settings of `jobs.tune`."""

from dataclasses import dataclass, field
from typing import Literal

from jobs.classifier.task import VitConfig
from jobs.run.config import MAY_CHANGE, ConfigError, OutConfig
from jobs.sweep.searchers import Kind
from vit.config import OptimConfig

VARIED = ("model.", "augment.", "optim.")
"""Groups of settings that may vary; of others trials would not be comparable, or alike."""


BUDGETS = {"flops": "FLOP", "samples": "samples", "epochs": "epochs", "seconds": "s of training"}
"""What a budget may be counted in, and its unit for people."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig(VitConfig, OutConfig):
    """Settings of `jobs.tune`: those of a training, which of them vary, and how long it may take.

    Early values must mean something: after the warm-up the learning rate stays, until it falls in
    the last part of a trial, and the averaged weights are what counts.
    """

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(schedule="wsd", ema_half_life=2000)
    )
    space: dict[str, str] = field(default_factory=dict)
    """What varies, by name of the setting: `model.depth 2..8 optim.lr "1e-4..1e-2 log"`, or
    `2, 4, 8`, or `1e-3..1e-1 log in 5`. None given: depth, heads and learning rate."""
    searcher: Kind = "tpe"
    """What is tried next: what Optuna's TPE thinks best, at random, or all of a grid."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """What is stopped early: all but the best of those that got as far (ASHA); what is below the
    median; or nothing."""
    trials: int = field(default=27, metadata=MAY_CHANGE)
    """How many are tried."""
    metric: str | None = None
    """What trials are compared by, of the validation set: ema_accuracy, ema_loss, val_accuracy or
    val_loss. Default: the accuracy of the averaged weights if there are any."""
    budget: Literal["flops", "samples", "epochs", "seconds"] = "flops"
    """What a trial spends, and at equal amounts of what they are compared."""
    max_budget: float | None = None
    """What a whole trial spends, in whole epochs. Default: what the unvaried settings do in
    `epochs` epochs. Of seconds there is no default, and a trial ends after `epochs` epochs even if
    some are left."""
    first_rung: float = 1 / 9
    """Share of a whole trial after which it may first be stopped; beyond the warm-up."""
    reduction: int = 3
    """ASHA: one of so many goes on, and the next rung is so many times further."""
    concurrent: int | None = field(default=None, metadata=MAY_CHANGE)
    """Trials at once; default: as many as the cluster holds."""
    workers_per_trial: int = field(default=1, metadata=MAY_CHANGE)
    """Processes that share the work of a trial."""
    cpus_per_trial: float | None = field(default=None, metadata=MAY_CHANGE)
    """CPUs of a trial, all of its processes together; default: one each."""
    gpus_per_trial: float | None = field(default=None, metadata=MAY_CHANGE)
    """GPUs of a trial, all of its processes together; fractions share one. Default: one for each
    process on cuda, 0 on cpu."""
    max_hours: float | None = field(default=None, metadata=MAY_CHANGE)
    """Wall time of the sweep, all of its starts together; then trials under way are left, and the
    same command with more goes on."""
    max_flops: float | None = field(default=None, metadata=MAY_CHANGE)
    """Training FLOPs of the sweep, likewise."""
    max_gpu_hours: float | None = field(default=None, metadata=MAY_CHANGE)
    """GPUs times hours of training of the sweep, likewise."""
    retrain_top: int = field(default=0, metadata=MAY_CHANGE)
    """So many of the best are trained again at the end, and tested."""
    seeds: int = field(default=3, metadata=MAY_CHANGE)
    """With how many seeds each."""

    def __post_init__(self) -> None:
        """Check what no single group shows."""
        OutConfig.__post_init__(self)
        VitConfig.__post_init__(self)
        for name in ("trials", "workers_per_trial", "seeds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{_flag(name)} is {getattr(self, name)}; at least 1 is needed")
        limits = ("max_budget", "concurrent", "max_hours", "max_flops", "max_gpu_hours")
        for name in (*limits, "cpus_per_trial"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{_flag(name)} is {value}; it must be above 0")
        if self.retrain_top < 0:
            raise ConfigError(f"--retrain-top is {self.retrain_top}; it must be at least 0")
        if self.reduction < 2:
            raise ConfigError(f"--reduction is {self.reduction}; at least 2 is needed")
        if not 0 < self.first_rung <= 1:
            raise ConfigError(f"--first-rung is {self.first_rung}; a share above 0, up to 1")
        self._check_metric()
        self._check_schedule()

    def _check_metric(self) -> None:
        names = ["val_accuracy", "val_loss"]
        if self.optim.ema_half_life:
            names = ["ema_accuracy", "ema_loss", *names]
        if self.metric not in (None, *names):
            raise ConfigError(
                f"--metric {self.metric} is reported by no trial; they report {', '.join(names)}"
            )

    def _check_schedule(self) -> None:
        warmup, schedule = self.optim.warmup_epochs / self.epochs, self.optim.schedule
        if self.scheduler != "none" and schedule == "cosine":
            raise ConfigError(
                f"--scheduler {self.scheduler} compares unfinished trials, which --optim.schedule"
                " cosine makes meaningless; use wsd or constant, or --scheduler none"
            )
        if self.scheduler != "none" and self.first_rung <= warmup:
            raise ConfigError(
                f"--first-rung {self.first_rung:.3g} lies in the warm-up, {warmup:.3g} of a trial"
                f" (--optim.warmup-epochs {self.optim.warmup_epochs:g} of --epochs {self.epochs})"
            )
        if self.budget == "seconds":
            if self.max_budget is None:
                raise ConfigError("--budget seconds needs --max-budget: how long a trial may take")
            if schedule != "constant":
                raise ConfigError(
                    f"--budget seconds needs --optim.schedule constant, not {schedule}: how many"
                    " steps a trial will come to is not known"
                )

    @property
    def measure(self) -> str:
        """The metric that trials are compared by."""
        return self.metric or ("ema_accuracy" if self.optim.ema_half_life else "val_accuracy")

    @property
    def sign(self) -> int:
        """1 where more of the metric is better, else -1."""
        return -1 if self.measure.endswith("loss") else 1


def _flag(name: str) -> str:
    return f"--{name}".replace("_", "-")
