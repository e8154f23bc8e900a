"""The plan of a sweep: what its trials cost on given data, and the settings of each trial."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from jobs.classifier.task import TrainConfig, VitConfig
from jobs.run.config import ConfigError
from jobs.storage.location import Location
from jobs.sweep.config import BUDGETS, VARIED, TuneConfig
from jobs.sweep.searchers import Searcher
from jobs.training.steps import steps_per_epoch
from vit.config import ModelConfig
from vit.cost import parameters, training_flops
from vit.data.sets import Summary
from vit.model import outline
from vit.search import Dimension, Sample, SearchError, assign
from vit.weights import Weights, WeightsError, fit


@dataclass(frozen=True)
class SweepPlan:
    """The budget of the trials of a sweep on given data, and their settings."""

    config: TuneConfig
    summary: Summary
    trial_budget: float
    """What a whole trial spends, in units of the budget."""
    weights: Weights | None = None
    """The weights that every trial starts from; None: random ones."""

    @classmethod
    def of(
        cls, config: TuneConfig, summary: Summary, weights: Weights | None = None
    ) -> "SweepPlan":
        """Return the plan of a sweep, with the default budget if the settings name none."""
        plan = cls(config, summary, 0.0, weights)
        budget = config.max_budget or config.epochs * plan._epoch_cost(config)
        return replace(plan, trial_budget=budget)

    def samples_per_epoch(self, config: VitConfig) -> int:
        """Return the number of samples in an epoch: whole batches of the training set."""
        return steps_per_epoch(self.summary.train, config.batch_size) * config.batch_size

    def flops_per_sample(self, config: VitConfig) -> int:
        """Return the training FLOPs per sample."""
        return training_flops(config.model, len(self.summary.classes))

    def parameters(self, config: VitConfig) -> int:
        """Return the number of parameters of the model."""
        return parameters(config.model, len(self.summary.classes))

    def settings(self, sample: Sample, folder: Location) -> TrainConfig:
        """Return the settings of a trial's training.

        It has as many epochs as the budget allows, and its warm-up is the same share of them as in
        the settings of the sweep.

        Args:
            sample: the values of the varied settings.
            folder: of the trial.

        Raises:
            ValueError: the settings do not fit together, or the budget is less than an epoch.
        """
        config = self.config
        shared = {item.name: getattr(config, item.name) for item in fields(VitConfig)}
        workers, cpus, gpus = self.trial_resources()
        varied = assign(
            TrainConfig(
                out=str(folder),
                seed=config.seed,
                device=config.device,
                wait_for_nodes=config.wait_for_nodes,
                workers=workers,
                cpus_per_worker=cpus,
                gpus_per_worker=gpus,
                **shared,
            ),
            sample,
        )
        if config.budget == "seconds":
            return varied
        epochs = self._epochs(varied)
        warmup = varied.optim.warmup_epochs * epochs / config.epochs
        optim = replace(varied.optim, warmup_epochs=warmup)
        return replace(varied, epochs=epochs, optim=optim)

    def _comparable_settings(self, sample: Sample, out: Location) -> TrainConfig:
        """Return the settings of a trial; ValueError also if it cannot be compared with others."""
        optim = {name: value for name, value in sample.items() if name.startswith("optim.")}
        assign(replace(self.config, metric=self.config.measure), optim)
        return self.settings(sample, out)

    def _weights_mismatch(self, model: ModelConfig) -> str | None:
        """Return why the weights do not fit a model; None if they do."""
        if self.weights is None:
            return None
        classes = self.summary.classes
        try:
            fit(self.weights, outline(model, len(classes)), classes)
        except WeightsError as error:
            return str(error)
        return None

    def trial_resources(self) -> tuple[int, float, float | None]:
        """Return the number of processes of a trial, and the CPUs and GPUs of each."""
        workers = self.config.workers_per_trial
        cpus, gpus = self.config.cpus_per_trial, self.config.gpus_per_trial
        return (
            workers,
            1.0 if cpus is None else cpus / workers,
            None if gpus is None else gpus / workers,
        )

    def _epoch_cost(self, config: VitConfig) -> float:
        """Return what an epoch costs in units of the budget, which are not seconds."""
        samples = self.samples_per_epoch(config)
        flops = samples * self.flops_per_sample(config)
        return {"flops": float(flops), "samples": float(samples), "epochs": 1.0}[self.config.budget]

    def _epochs(self, config: TrainConfig) -> int:
        """Return the number of whole epochs that the budget allows, which is at least one."""
        cost = self._epoch_cost(config)
        epochs = int(self.trial_budget / cost * (1 + 1e-9))
        if epochs < 1:
            unit = BUDGETS[self.config.budget]
            raise ConfigError(
                f"one epoch takes {cost:.3g} {unit}, but a whole trial has {self.trial_budget:.3g}:"
                " raise --max-budget"
            )
        return epochs

    def searcher(self, dimensions: Sequence[Dimension]) -> Searcher:
        """Return the searcher over `dimensions`; raises SearchError if it accepts no sample."""
        names = sorted(each.name for each in dimensions)
        if unfit := [n for n in names if not n.startswith(VARIED) and n != "batch_size"]:
            raise SearchError(
                f"space: {', '.join(unfit)} cannot vary in a sweep; vary batch_size, or settings"
                f" of {', '.join(VARIED)}"
            )
        out = Location.parse(self.config.out)

        mismatch = cache(self._weights_mismatch)  # thousands of samples share a few shapes

        def reject(sample: Sample) -> str | None:
            try:
                return mismatch(self._comparable_settings(sample, out).model)
            except ValueError as error:
                return str(error)

        return Searcher(self.config.searcher, dimensions, reject, self.config.seed)

    def spent(self, row: dict[str, Any], flops: int) -> float:
        """Return what a trial had spent at the end of an epoch, in units of the budget.

        Args:
            row: metrics of the epoch.
            flops: training FLOPs per sample of the trial.
        """
        match self.config.budget:
            case "flops":
                return float(row["samples_seen"] * flops)
            case "samples":
                return float(row["samples_seen"])
            case "epochs":
                return float(row["epoch"])
            case _:
                return float(row["samples_seen"] / row["images_per_s"])
