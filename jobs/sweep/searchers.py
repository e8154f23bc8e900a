"""What a sweep tries next, as a function of the seed and of the trials so far.

Nothing here has a state of its own: a sweep that was killed asks with the same trials and gets the
same answer.
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
"""A space of no more samples is listed, and none of them tried twice."""
MOST_DRAWS = 1_000
"""In search of a sample that is valid and new."""
WARM_UP = 10
"""Trials at random before TPE models anything: Optuna's own default."""


@dataclass(frozen=True)
class Past:
    """What is known of a trial."""

    sample: Sample
    values: dict[int, float] = field(default_factory=dict)
    """By rung: larger is better."""
    final: float | None = None
    """At the end of its whole training; None if it is under way, or was stopped."""
    over: bool = False
    failed: bool = False
    """Nothing can be learnt from it."""


@dataclass
class Searcher:
    """Draws valid samples from a space."""

    kind: Kind
    dimensions: Sequence[Dimension]
    valid: Callable[[Sample], str | None]
    """Why a sample cannot be; None if it can."""
    seed: int

    def __post_init__(self) -> None:
        """List the space if it is small. Raises SearchError when no sample of it is valid."""
        count = size(self.dimensions)
        if self.kind == "grid":
            next(grid(self.dimensions))  # says which setting has no values
            if count is not None and count > MOST_LISTED:
                raise SearchError(
                    f"space: the grid has {count:,} samples; up to {MOST_LISTED:,} can be walked:"
                    " narrow a range, or --searcher random"
                )
        self.listed: list[Sample] | None = None
        self.refusal: str | None = None
        if count is not None and count <= MOST_LISTED:
            accepted = [sample for sample in grid(self.dimensions) if self._is_valid(sample)]
            order = rng.permutation(len(accepted), self.seed, "grid").tolist()
            self.listed = [accepted[i] for i in order]
            some = bool(accepted)
        else:
            some = next(self._draws(0), None) is not None
        if not some:
            raise SearchError(f"space: no sample is accepted; the last one: {self.refusal}")

    def next(self, past: Sequence[Past]) -> Sample | None:
        """The sample of the trial after `past`, or None when all were tried."""
        if self.kind == "tpe" and len(past) >= WARM_UP:
            fresh: Iterator[Sample] = itertools.chain(self._modelled(past), self._draws(len(past)))
        else:
            fresh = self._draws(len(past))
        tried = [trial.sample for trial in past]
        return next((s for s in fresh if self.listed is None or s not in tried), None)

    def _is_valid(self, sample: Sample) -> bool:
        why = self.valid(sample)
        if why is not None:
            self.refusal = ", ".join(f"{k} {v}" for k, v in sample.items()) + f": {why}"
        return why is None

    def _draws(self, number: int) -> Iterator[Sample]:
        """Valid samples at random; of a listed space all of them, in one order."""
        if self.listed is not None:
            yield from self.listed
            return
        for attempt in range(MOST_DRAWS):
            shares = np.random.default_rng(rng.fold(self.seed, "sample", number, attempt))
            sample = {d.name: d.at(float(shares.random())) for d in self.dimensions}
            if self._is_valid(sample):
                yield sample

    def _modelled(self, past: Sequence[Past]) -> Iterator[Sample]:
        """Valid samples that TPE thinks well of (Bergstra et al. 2011, Watanabe 2023)."""
        distributions = _distributions(self.dimensions)
        study = study_of(past, self.dimensions)
        for attempt in range(20):
            seed = rng.fold(self.seed, "tpe", len(past), attempt) % 2**32
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # multivariate TPE is called experimental
                study.sampler = optuna.samplers.TPESampler(
                    seed=seed, multivariate=True, constant_liar=True, n_startup_trials=WARM_UP
                )
                asked = study.ask(distributions)
            study.tell(asked, state=TrialState.FAIL)  # the next attempt knows nothing of it
            sample = {d.name: _decode(d, asked.params[d.name]) for d in self.dimensions}
            if self._is_valid(sample):
                yield sample


def _distributions(dimensions: Sequence[Dimension]) -> dict[str, BaseDistribution]:
    return {dimension.name: _distribution(dimension) for dimension in dimensions}


def _distribution(dimension: Dimension) -> BaseDistribution:
    """Numbers of a list by their place in it, so that neighbours count as alike."""
    if isinstance(dimension, Interval):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    if dimension.ordered and len(dimension.values) > 1:
        return IntDistribution(0, len(dimension.values) - 1)
    return CategoricalDistribution(list(range(len(dimension.values))))


def _encode(dimension: Dimension, value: Any) -> Any:
    return value if isinstance(dimension, Interval) else dimension.values.index(value)


def _decode(dimension: Dimension, value: Any) -> Any:
    return float(value) if isinstance(dimension, Interval) else dimension.values[value]


def _as_optuna(
    trial: Past,
    dimensions: Sequence[Dimension],
    distributions: dict[str, BaseDistribution],
    past: Sequence[Past],
) -> optuna.trial.FrozenTrial:
    """A trial in Optuna's words: stopped ones are pruned, and ranked below by how far they got."""
    every = [v for t in past for v in (*t.values.values(), t.final) if v is not None]
    worst = min(filter(math.isfinite, every), default=0.0)  # Optuna knows no infinity
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


def study_of(past: Sequence[Past], dimensions: Sequence[Dimension]) -> optuna.Study:
    """Trials in Optuna's words, as a study of them."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = _distributions(dimensions)
    study = optuna.create_study(direction="maximize")
    study.add_trials([_as_optuna(trial, dimensions, distributions, past) for trial in past])
    return study
