"""When a trial is stopped: successive halving, the median rule. Plain functions of curves.

A curve is how good a trial was by what it had spent, in the sweep's unit of budget; better is
larger. Trials are compared at the same budget: between two epochs a curve is read off the line that
joins them, so that nobody wins a rung because its epochs cost more. One whose first epoch costs
more than a rung is not judged there, but at the next.
"""

import bisect
import math
import statistics
from collections.abc import Sequence

Curve = Sequence[tuple[float, float]]
"""(spent, value), ascending in spent; value is -inf where the trial diverged."""

FEWEST_PEERS = 3
"""The median rule stops nobody before so many others got as far."""


def value_at(curve: Curve, budget: float) -> float | None:
    """The value of a curve at `budget`, or None where it has none: beyond its last point, and
    before its first, for a dear epoch must not be read at a cheaper one's rung."""
    if not curve or not curve[0][0] <= budget <= curve[-1][0]:
        return None
    after = bisect.bisect_left(curve, budget, key=lambda point: point[0])
    if curve[after][0] == budget:
        return curve[after][1]
    (x0, y0), (x1, y1) = curve[after - 1], curve[after]
    if not math.isfinite(y0 + y1):
        return y1
    return y0 + (y1 - y0) * (budget - x0) / (x1 - x0)


def milestones(most: float, first: float, reduction: int) -> list[float]:
    """Budgets of the rungs: `first` of `most`, then `reduction` times as much, below `most`."""
    found, share = [], first
    while share < 1 - 1e-9:
        found.append(share * most)
        share *= reduction
    return found


def passes(earlier: Sequence[float], value: float, reduction: int) -> bool:
    """Whether an arrival at a rung goes on: asynchronous successive halving, its stopping variant.

    It does when it is among the best 1/reduction, rounded up, of those that arrived so far and
    itself (Li et al. 2020, arXiv 1810.05934, as Ray Tune and Vizier stop instead of pausing). So
    the first always does. A diverged one never.
    """
    if value == -math.inf:
        return False
    better = sum(other >= value for other in earlier)
    return better < math.ceil((len(earlier) + 1) / reduction)


def below_median(curve: Curve, others: Sequence[Curve]) -> bool:
    """Whether the best of a curve is below the median of what the others were at the same budget.

    The rule of Optuna's MedianPruner. Vizier's (Golovin et al. 2017), which Ray Tune has, takes the
    others' averages up to there instead: of curves that rise, it stops hardly any.
    """
    there = [value_at(other, curve[-1][0]) for other in others]
    known = [value for value in there if value is not None]
    if len(known) < FEWEST_PEERS:
        return False
    return max(value for _, value in curve) < statistics.median(known)
