"""Rules of early stopping, compared with the same rules computed in another way."""

import math
import random

import numpy as np

from jobs.sweep.rungs import below_median, passes, rung_budgets, value_at


def test_value_between_epochs():
    curve = [(10.0, 0.2), (20.0, 0.4), (40.0, 0.5)]
    assert value_at(curve, 40) == 0.5
    assert value_at(curve, 15) == 0.30000000000000004
    assert value_at(curve, 30) == 0.45
    assert value_at(curve, 10) == 0.2
    assert value_at(curve, 5) is None
    assert value_at(curve, 41) is None
    assert value_at([], 1) is None
    assert value_at([(10.0, 0.2), (20.0, -math.inf)], 15) == -math.inf
    budgets = np.linspace(10, 40, 31)
    ours = [value_at(curve, budget) for budget in budgets]
    assert np.allclose(ours, np.interp(budgets, *zip(*curve, strict=True)))


def test_cheap_epochs_are_no_advantage():
    """Two trials on the same line, one with epochs that cost five times as much, are equal."""
    line = lambda spent: 0.1 + spent / 100  # noqa: E731
    cheap = [(float(s), line(s)) for s in range(2, 61, 2)]
    expensive = [(float(s), line(s)) for s in range(10, 61, 10)]
    for rung in rung_budgets(60, 1 / 5, 2):
        assert math.isclose(value_at(cheap, rung), value_at(expensive, rung))
    assert value_at(expensive, 9.0) is None  # the expensive one is not ahead by its first epoch


def test_rung_budgets():
    assert np.allclose(rung_budgets(270, 1 / 27, 3), [10, 30, 90])
    assert np.allclose(rung_budgets(100, 0.1, 4), [10, 40])
    assert rung_budgets(100, 1.0, 3) == []


def test_passes_like_a_percentile():
    """Ray's ASHA continues trials that are not below the percentile 1 - 1/rf of earlier ones."""
    rng = random.Random(0)
    earlier: list[float] = []
    for count in range(60):
        value = rng.random()
        expected = sum(v >= value for v in earlier) + 1 <= math.ceil((count + 1) / 3)
        assert passes(earlier, value, 3) == expected
        if count >= 9:  # where rounding no longer matters much, Ray's rule agrees nearly always
            ray = value >= np.percentile(earlier, 100 * (1 - 1 / 3))
            rank = sum(v >= value for v in earlier) + 1
            assert ray == passes(earlier, value, 3) or abs(rank - (count + 1) / 3) <= 1.5
        earlier.append(value)
    assert passes([], 0.1, 3)
    assert not passes([0.1], 0.1, 3)
    assert not passes([], -math.inf, 3)
    assert not passes([-math.inf, -math.inf], -math.inf, 3)
    assert passes([-math.inf], 0.0, 3)


def test_median_rule():
    def flat(value):
        return [(float(s), value) for s in range(1, 11)]

    others = [flat(0.1), flat(0.5), flat(0.9)]
    assert below_median([(1.0, 0.4)], others)
    assert not below_median([(1.0, 0.6)], others)
    assert not below_median([(1.0, 0.6), (2.0, 0.1)], others)  # its best value counts
    assert not below_median([(1.0, 0.1)], [flat(0.9)] * 2)  # too few others
    assert not below_median([(11.0, 0.1)], [flat(0.9)] * 5)  # no other came so far
    assert below_median([(1.0, -math.inf)], others)
    rising = [[(float(s), s / 10 * end) for s in range(1, 11)] for end in (0.5, 0.6, 0.7)]
    assert below_median([(10.0, 0.55)], rising)
