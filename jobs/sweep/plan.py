"""The plan of a sweep: what its trials cost on given data, and the settings that each comes to."""

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
class Plan:
    """What trials cost, on given data."""

    config: TuneConfig
    summary: Summary
    most: float
    """What a whole trial spends, in units of the budget."""
    weights: Weights | None = None
    """What every trial starts from."""

    @classmethod
    def of(cls, config: TuneConfig, summary: Summary, weights: Weights | None = None) -> "Plan":
        """Settle the budget. Raises ConfigError if a setting of training is not a sweep's."""
        plan = cls(config, summary, 0.0, weights)
        most = config.max_budget
        if most is None:
            cost = {
                "flops": float(plan.epoch_samples(config) * plan.flops(config)),
                "samples": float(plan.epoch_samples(config)),
                "epochs": 1.0,
            }
            most = config.epochs * cost[config.budget]
        return replace(plan, most=most)

    def epoch_samples(self, config: VitConfig) -> int:
        """Samples of an epoch: whole batches of the training set."""
        return steps_per_epoch(self.summary.train, config.batch_size) * config.batch_size

    def flops(self, config: VitConfig) -> int:
        """Training FLOPs of a sample."""
        return training_flops(config.model, len(self.summary.classes))

    def parameters(self, config: VitConfig) -> int:
        """Parameters of the model."""
        return parameters(config.model, len(self.summary.classes))

    def trial(self, sample: Sample, folder: Location) -> TrainConfig:
        """The settings of a trial's training; raises ValueError where they cannot be.

        Its epochs are as many as the budget pays for, and its warm-up the same share of them.
        """
        config = self.config
        shared = {item.name: getattr(config, item.name) for item in fields(VitConfig)}
        workers, cpus, gpus = self.shares()
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

    def _comparable(self, sample: Sample, out: Location) -> TrainConfig:
        """A trial's settings; ValueError where it cannot be, or not be compared with others."""
        optim = {name: value for name, value in sample.items() if name.startswith("optim.")}
        assign(replace(self.config, metric=self.config.measure), optim)
        return self.trial(sample, out)

    def _misfit(self, model: ModelConfig) -> str | None:
        """Why the weights do not fit a model; None if they do."""
        if self.weights is None:
            return None
        classes = self.summary.classes
        try:
            fit(self.weights, outline(model, len(classes)), classes)
        except WeightsError as error:
            return str(error)
        return None

    def shares(self) -> tuple[int, float, float | None]:
        """Processes of a trial, and the CPUs and GPUs of each."""
        workers = self.config.workers_per_trial
        cpus, gpus = self.config.cpus_per_trial, self.config.gpus_per_trial
        return (
            workers,
            1.0 if cpus is None else cpus / workers,
            None if gpus is None else gpus / workers,
        )

    def _epochs(self, config: TrainConfig) -> int:
        cost = {
            "flops": self.epoch_samples(config) * self.flops(config),
            "samples": self.epoch_samples(config),
            "epochs": 1,
        }[self.config.budget]
        epochs = int(self.most / cost * (1 + 1e-9))
        if epochs < 1:
            unit = BUDGETS[self.config.budget]
            raise ConfigError(
                f"one epoch takes {cost:.3g} {unit}; a whole trial has {self.most:.3g}"
            )
        return epochs

    def searcher(self, dimensions: Sequence[Dimension]) -> Searcher:
        """What draws the sweep's samples. Raises SearchError when none of them is accepted."""
        names = sorted(each.name for each in dimensions)
        if unfit := [n for n in names if not n.startswith(VARIED) and n != "batch_size"]:
            raise SearchError(
                f"space: {', '.join(unfit)} cannot vary in a sweep; batch_size and what begins"
                f" with {', '.join(VARIED)} can"
            )
        out = Location.parse(self.config.out)

        misfit = cache(self._misfit)  # thousands of samples have a few shapes between them

        def refusal(sample: Sample) -> str | None:
            try:
                return misfit(self._comparable(sample, out).model)
            except ValueError as error:
                return str(error)

        return Searcher(self.config.searcher, dimensions, refusal, self.config.seed)

    def spent(self, row: dict[str, Any], flops: int) -> float:
        """What a trial had spent at the end of an epoch, in units of the budget."""
        match self.config.budget:
            case "flops":
                return float(row["samples_seen"] * flops)
            case "samples":
                return float(row["samples_seen"])
            case "epochs":
                return float(row["epoch"])
            case _:
                return float(row["samples_seen"] / row["images_per_s"])
