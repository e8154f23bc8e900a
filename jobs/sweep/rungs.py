"""Rules of early stopping, as functions of learning curves: successive halving, the median rule.

A curve is the value of a trial over what it has spent, in the sweep's unit of budget; a larger
value is better. Trials are compared at the same budget: between two epochs the value is
interpolated, so that no trial is ahead because its epochs cost more. A trial whose first epoch
costs more than a rung is not judged there, but at the next one.
"""

import bisect
import math
import statistics
from collections.abc import Sequence

Curve = Sequence[tuple[float, float]]
"""(spent, value), ascending in spent; value is -inf where the trial diverged."""

FEWEST_PEERS = 3
"""Number of other trials that must have come as far before the median rule stops a trial."""


def value_at(curve: Curve, budget: float) -> float | None:
    """Return the interpolated value of a curve at `budget`; None outside of the curve.

    Before its first point it is not extrapolated: the value of a long epoch says nothing about a
    smaller budget.
    """
    if not curve or not curve[0][0] <= budget <= curve[-1][0]:
        return None
    after = bisect.bisect_left(curve, budget, key=lambda point: point[0])
    if curve[after][0] == budget:
        return curve[after][1]
    (x0, y0), (x1, y1) = curve[after - 1], curve[after]
    if not math.isfinite(y0 + y1):
        return y1
    return y0 + (y1 - y0) * (budget - x0) / (x1 - x0)


def rung_budgets(whole: float, first: float, reduction: int) -> list[float]:
    """Return the budgets of the rungs: `first` times `whole`, then `reduction` times as much each,
    as long as they are below `whole`."""
    found, share = [], first
    while share < 1 - 1e-9:
        found.append(share * whole)
        share *= reduction
    return found


def passes(earlier: Sequence[float], value: float, reduction: int) -> bool:
    """Return whether a trial continues beyond a rung: asynchronous successive halving.

    It continues if it is among the best 1/reduction, rounded up, of the trials that have arrived,
    itself included (Li et al. 2020, arXiv 1810.05934; the variant of Ray Tune and Vizier, which
    stops trials instead of pausing them). The first trial always continues, a diverged one never.
    """
    if value == -math.inf:
        return False
    better = sum(other >= value for other in earlier)
    return better < math.ceil((len(earlier) + 1) / reduction)


def below_median(curve: Curve, others: Sequence[Curve]) -> bool:
    """Return whether the best value of a curve is below the median of the others at its budget.

    This is the rule of Optuna's MedianPruner. That of Vizier (Golovin et al. 2017) and Ray Tune
    uses averages of the other curves up to there, and stops hardly any trial if curves rise.
    """
    values = [value_at(other, curve[-1][0]) for other in others]
    known = [value for value in values if value is not None]
    if len(known) < FEWEST_PEERS:
        return False
    return max(value for _, value in curve) < statistics.median(known)
