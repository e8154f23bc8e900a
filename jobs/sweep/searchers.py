"""The search of a sweep: its next sample, as a function of the seed and of the trials so far.

Nothing here has a state of its own: a sweep that was killed gets the same samples again.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from vit import rng
from vit.search import Dimension, Interval, Sample, SearchError, grid, size

Kind = Literal["tpe", "random", "grid"]

MOST_LISTED = 5_000
"""A space of at most so many samples is listed, and no sample of it is tried twice."""
MOST_DRAWS = 1_000
"""Number of random draws in search of an accepted sample."""
WARM_UP = 10
"""Number of random trials before TPE models anything: Optuna's default."""


@dataclass(frozen=True)
class PastTrial:
    """The sample of an earlier trial, and its values."""

    sample: Sample
    values: dict[int, float] = field(default_factory=dict)
    """Value at each rung; larger is better."""
    final: float | None = None
    """Value at the end of its whole training; None if it did not get there."""
    over: bool = False
    """Whether it has ended, early or not."""
    failed: bool = False
    """Whether it failed, so that it says nothing about its sample."""


@dataclass
class Searcher:
    """Draws accepted samples from a search space."""

    kind: Kind
    dimensions: Sequence[Dimension]
    reject: Callable[[Sample], str | None]
    """Returns why a sample cannot be tried; None if it is accepted."""
    seed: int

    def __post_init__(self) -> None:
        """List the space if it is small. Raises SearchError when no sample is accepted."""
        count = size(self.dimensions)
        if self.kind == "grid":
            next(grid(self.dimensions))  # raises SearchError if a setting has no list of values
            if count is not None and count > MOST_LISTED:
                raise SearchError(
                    f"space: the grid has {count:,} samples, at most {MOST_LISTED:,} are possible:"
                    " narrow a range, or use --searcher random"
                )
        self.listed: list[Sample] | None = None
        self.last_rejection: str | None = None
        if count is not None and count <= MOST_LISTED:
            accepted = [sample for sample in grid(self.dimensions) if self._is_accepted(sample)]
            order = rng.permutation(len(accepted), self.seed, "grid").tolist()
            self.listed = [accepted[i] for i in order]
            found = bool(accepted)
        else:
            found = next(self._draws(0), None) is not None
        if not found:
            raise SearchError(
                f"space: no sample can be trained; the last one: {self.last_rejection}"
            )

    def next(self, past: Sequence[PastTrial]) -> Sample | None:
        """Return the sample of the next trial after `past`, or None when all were tried."""
        if self.kind == "tpe" and len(past) >= WARM_UP:
            fresh: Iterator[Sample] = itertools.chain(self._modelled(past), self._draws(len(past)))
        else:
            fresh = self._draws(len(past))
        tried = [trial.sample for trial in past]
        return next((s for s in fresh if self.listed is None or s not in tried), None)

    def _is_accepted(self, sample: Sample) -> bool:
        why = self.reject(sample)
        if why is not None:
            self.last_rejection = ", ".join(f"{k} {v}" for k, v in sample.items()) + f": {why}"
        return why is None

    def _draws(self, number: int) -> Iterator[Sample]:
        """Yield random accepted samples; of a listed space all of them, in a fixed order."""
        if self.listed is not None:
            yield from self.listed
            return
        for attempt in range(MOST_DRAWS):
            shares = np.random.default_rng(rng.fold(self.seed, "sample", number, attempt))
            sample = {d.name: d.at(float(shares.random())) for d in self.dimensions}
            if self._is_accepted(sample):
                yield sample

    def _modelled(self, past: Sequence[PastTrial]) -> Iterator[Sample]:
        """Yield accepted samples that TPE suggests (Bergstra et al. 2011, Watanabe 2023)."""
        distributions = _distributions(self.dimensions)
        study = study_of(past, self.dimensions)
        for attempt in range(20):
            seed = rng.fold(self.seed, "tpe", len(past), attempt) % 2**32
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna calls multivariate TPE experimental
                study.sampler = optuna.samplers.TPESampler(
                    seed=seed, multivariate=True, constant_liar=True, n_startup_trials=WARM_UP
                )
                suggestion = study.ask(distributions)
            study.tell(suggestion, state=TrialState.FAIL)  # it must not change the next attempt
            sample = {d.name: _decode(d, suggestion.params[d.name]) for d in self.dimensions}
            if self._is_accepted(sample):
                yield sample


def _distributions(dimensions: Sequence[Dimension]) -> dict[str, BaseDistribution]:
    return {dimension.name: _distribution(dimension) for dimension in dimensions}


def _distribution(dimension: Dimension) -> BaseDistribution:
    """Convert a dimension for Optuna: numbers of a list become positions, with their order."""
    if isinstance(dimension, Interval):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    if dimension.ordered and len(dimension.values) > 1:
        return IntDistribution(0, len(dimension.values) - 1)
    return CategoricalDistribution(list(range(len(dimension.values))))


def _encode(dimension: Dimension, value: Any) -> Any:
    return value if isinstance(dimension, Interval) else dimension.values.index(value)


def _decode(dimension: Dimension, value: Any) -> Any:
    return float(value) if isinstance(dimension, Interval) else dimension.values[value]


def _optuna_trial(
    trial: PastTrial,
    dimensions: Sequence[Dimension],
    distributions: dict[str, BaseDistribution],
    past: Sequence[PastTrial],
) -> optuna.trial.FrozenTrial:
    """Convert a trial for Optuna, where stopped trials are pruned and rank below finished ones."""
    all_values = [v for t in past for v in (*t.values.values(), t.final) if v is not None]
    worst = min(filter(math.isfinite, all_values), default=0.0)  # Optuna accepts no infinity
    values = {rung: v if math.isfinite(v) else worst for rung, v in trial.values.items()}
    if trial.failed:
        state = TrialState.FAIL
    elif trial.final is not None:
        state = TrialState.COMPLETE
    else:
        state = TrialState.PRUNED if trial.over else TrialState.RUNNING
    final = None if trial.final is None else max(trial.final, worst)
    return optuna.trial.create_trial(
        state=state,
        value=final if state == TrialState.COMPLETE else None,
        params={d.name: _encode(d, trial.sample[d.name]) for d in dimensions},
        distributions=distributions,
        intermediate_values=values,
    )


def study_of(past: Sequence[PastTrial], dimensions: Sequence[Dimension]) -> optuna.Study:
    """Convert trials to an Optuna study."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = _distributions(dimensions)
    study = optuna.create_study(direction="maximize")
    study.add_trials([_optuna_trial(trial, dimensions, distributions, past) for trial in past])
    return study
