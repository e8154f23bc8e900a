"""Settings of `jobs.tune`."""

from dataclasses import dataclass, field
from typing import Literal

from jobs.classifier.task import VitConfig
from jobs.run.config import MAY_CHANGE, ConfigError, OutConfig
from jobs.sweep.searchers import Kind
from vit.config import OptimConfig

VARIED = ("model.", "augment.", "optim.")
"""Groups of settings that may vary; with others, trials would not be comparable, or all equal."""


BUDGETS = {"flops": "FLOP", "samples": "samples", "epochs": "epochs", "seconds": "s of training"}
"""The units that a budget may be counted in, and their names in messages."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig(VitConfig, OutConfig):
    """Settings of `jobs.tune`: those of a training, which of them vary, and for how long.

    Trials are compared before their end, so early values must mean something: the learning rate is
    constant after the warm-up until it falls in the last part of a trial, and the averaged weights
    are validated.
    """

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(schedule="wsd", ema_half_life=2000)
    )
    space: dict[str, str] = field(default_factory=dict)
    """Settings that vary, each with its values: `model.depth 2..8 optim.lr "1e-4..1e-2 log"`, a
    list such as `2, 4, 8`, or `1e-3..1e-1 log in 5`. Default: depth, heads and learning rate
    vary."""
    searcher: Kind = "tpe"
    """How the next sample is chosen. tpe: by Optuna's TPE; random: at random; grid: from a list of
    all samples, each of which is tried once."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """Which trials are stopped early. asha: all but the best at each rung; median: those below the
    median; none: no trial."""
    trials: int = field(default=27, metadata=MAY_CHANGE)
    """Number of trials in the sweep."""
    metric: str | None = None
    """Metric on the validation set by which trials are compared: ema_accuracy, ema_loss,
    val_accuracy or val_loss. Default: ema_accuracy if weights are averaged, else val_accuracy."""
    budget: Literal["flops", "samples", "epochs", "seconds"] = "flops"
    """Unit of a trial's budget; trials are compared at equal amounts of it."""
    max_budget: float | None = None
    """Budget of a whole trial, in the unit of `budget`; a trial has as many whole epochs as fit.
    Default: the cost of `epochs` epochs before any setting varies. For seconds there is no default,
    and a trial ends after `epochs` epochs even if seconds are left."""
    first_rung: float = 1 / 9
    """Share of a whole trial's budget after which a trial may first be stopped; it must lie after
    the warm-up."""
    reduction: int = 3
    """With scheduler asha: one in this many trials continues at a rung, and each rung has this many
    times the budget of the one before."""
    concurrent: int | None = field(default=None, metadata=MAY_CHANGE)
    """Number of trials that run at once. Default: as many as the cluster can hold."""
    workers_per_trial: int = field(default=1, metadata=MAY_CHANGE)
    """Number of processes that share the training of a trial."""
    cpus_per_trial: float | None = field(default=None, metadata=MAY_CHANGE)
    """Number of CPUs for a trial, which all of its processes share. Default: one for each
    process."""
    gpus_per_trial: float | None = field(default=None, metadata=MAY_CHANGE)
    """Number of GPUs for a trial, which all of its processes share; with a fraction, trials share a
    GPU. Default: one for each process on cuda, 0 on cpu."""
    max_hours: float | None = field(default=None, metadata=MAY_CHANGE)
    """Largest wall time of the sweep in hours, over all of its starts. At the limit running trials
    stop, and the same command with a higher limit resumes them. Default: no limit."""
    max_flops: float | None = field(default=None, metadata=MAY_CHANGE)
    """Largest number of training FLOPs of all trials together. The limit works as that of
    `max_hours`. Default: no limit."""
    max_gpu_hours: float | None = field(default=None, metadata=MAY_CHANGE)
    """Largest number of GPU-hours of training of all trials together. The limit works as that of
    `max_hours`. Default: no limit."""
    retrain_top: int = field(default=0, metadata=MAY_CHANGE)
    """Number of the best samples that are trained again at the end and measured on the test set; 0:
    none."""
    seeds: int = field(default=3, metadata=MAY_CHANGE)
    """Number of seeds with which each of the `retrain_top` samples is trained again."""

    def __post_init__(self) -> None:
        """Check the settings against each other. Raises ConfigError."""
        OutConfig.__post_init__(self)
        VitConfig.__post_init__(self)
        counts = {"trials": 1, "workers_per_trial": 1, "seeds": 1, "retrain_top": 0, "reduction": 2}
        for name, least in counts.items():
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"{_flag(name)} is {value}; expected at least {least}")
        limits = ("max_budget", "concurrent", "max_hours", "max_flops", "max_gpu_hours")
        for name in (*limits, "cpus_per_trial"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{_flag(name)} is {value}; expected a number above 0")
        if not 0 < self.first_rung <= 1:
            raise ConfigError(
                f"--first-rung is {self.first_rung}; expected a share above 0, up to 1"
            )
        self._check_metric()
        self._check_schedule()

    def _check_metric(self) -> None:
        names = ["val_accuracy", "val_loss"]
        if self.optim.ema_half_life:
            names = ["ema_accuracy", "ema_loss", *names]
        if self.metric not in (None, *names):
            raise ConfigError(
                f"--metric {self.metric} is not reported by trials; use one of {', '.join(names)}"
            )

    def _check_schedule(self) -> None:
        warmup, schedule = self.optim.warmup_epochs / self.epochs, self.optim.schedule
        if self.scheduler != "none" and schedule == "cosine":
            raise ConfigError(
                f"--scheduler {self.scheduler} compares unfinished trials, whose values mean little"
                " with --optim.schedule cosine; use wsd or constant, or --scheduler none"
            )
        if self.scheduler != "none" and self.first_rung <= warmup:
            raise ConfigError(
                f"--first-rung {self.first_rung:.3g} lies in the warm-up, {warmup:.3g} of a"
                f" trial (--optim.warmup-epochs {self.optim.warmup_epochs:g} of --epochs"
                f" {self.epochs}); use a larger share, or a shorter warm-up"
            )
        if self.budget == "seconds":
            if self.max_budget is None:
                raise ConfigError("--budget seconds needs --max-budget, the seconds of a trial")
            if schedule != "constant":
                raise ConfigError(
                    f"--budget seconds needs --optim.schedule constant, not {schedule}: the number"
                    " of steps of a trial is not known"
                )

    @property
    def measure(self) -> str:
        """The metric that trials are compared by."""
        return self.metric or ("ema_accuracy" if self.optim.ema_half_life else "val_accuracy")

    @property
    def sign(self) -> int:
        """1 if a larger value of the metric is better, else -1."""
        return -1 if self.measure.endswith("loss") else 1


def _flag(name: str) -> str:
    return f"--{name}".replace("_", "-")
