"""Replay schedulers and searchers on recorded curves: what they find for how much compute.

    python -m benchmarks.sweeps.tune --seeds 200 --json benchmarks/results/sweeps/tune.json

The curves come from `benchmarks.sweeps.tune_record`: every sample of a grid, trained to the end
with three seeds, for equal FLOPs. A replay is the sweep of `jobs.sweep.state`, as it runs in the
job, but its trials read their epochs from the table; time is measured in FLOPs, on two slots. For
comparison, Ray Tune's ASHA runs with its defaults, which are rungs in epochs.

The result of a sweep is the mean over seeds of its best sample. What it misses is the difference to
the best mean of the grid. Compute is a share of the cost of training the whole grid once.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ray.tune.schedulers.async_hyperband import _Bracket

from benchmarks.sweeps.tune_record import RECIPE, TRAIN, VAL
from jobs.run.config import parse
from jobs.run.machine import hardware, versions
from jobs.storage.location import Location
from jobs.sweep.config import TuneConfig
from jobs.sweep.plan import SweepPlan
from jobs.sweep.record import Trial
from jobs.sweep.state import Sweep
from vit import search
from vit.data.sets import Summary

CURVES = Path(__file__).parents[1] / "results" / "sweeps" / "tune_curves.parquet"
SLOTS = 2
MAY_MISS = 0.5
"""Points of accuracy that a good sweep may miss."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "ASHA, random": ("--scheduler", "asha", "--searcher", "random"),
    "ASHA, TPE": ("--scheduler", "asha", "--searcher", "tpe"),
    "ASHA, grid": ("--scheduler", "asha", "--searcher", "grid"),
    "median, random": ("--scheduler", "median", "--searcher", "random"),
    "median, TPE": ("--scheduler", "median", "--searcher", "tpe"),
    "no stopping, random, a third": (
        *("--scheduler", "none", "--searcher", "random", "--trials", "9"),
    ),
    "no stopping, TPE, a third": ("--scheduler", "none", "--searcher", "tpe", "--trials", "9"),
    "no stopping, all": ("--scheduler", "none", "--searcher", "grid"),
}
RAY_ASHA = "Ray's ASHA on epochs, random"


@dataclass(frozen=True)
class RecordedCurves:
    """The recorded curves."""

    rows: dict[tuple[Any, ...], list[list[dict[str, Any]]]]
    """For each sample, the epochs of every seed."""

    @classmethod
    def read(cls, path: Path) -> "RecordedCurves":
        """Read the table that benchmarks.sweeps.tune_record wrote."""
        table = pd.read_parquet(path)
        names = [name for name in table.columns if "." in name]
        rows: dict[tuple[Any, ...], list[list[dict[str, Any]]]] = {}
        for key, curve in table.groupby([*names, "seed"], sort=True):
            epochs: Any = curve.sort_values("epoch").to_dict("records")
            rows.setdefault(tuple(key[:-1]), []).append(epochs)
        return cls(rows)

    def finals(self) -> dict[tuple[Any, ...], list[float]]:
        """Return the accuracies of each sample at the end, one for each seed."""
        return {key: [c[-1]["ema_accuracy"] for c in curves] for key, curves in self.rows.items()}

    def means(self) -> dict[tuple[Any, ...], float]:
        """Return the mean accuracy of each sample over its seeds."""
        return {key: statistics.fmean(values) for key, values in self.finals().items()}

    def noise(self) -> dict[str, float]:
        """Return deviations and errors over seeds, and the best and the worst mean, in points."""
        finals = self.finals()
        variance = statistics.fmean(statistics.variance(v) for v in finals.values())
        means = sorted(self.means().values(), reverse=True)
        count = min(map(len, finals.values()))
        return {
            "std_over_seeds": 100 * variance**0.5,
            "error_of_a_mean": 100 * (variance / count) ** 0.5,
            "error_of_a_validation_set": 100 * (means[0] * (1 - means[0]) / VAL) ** 0.5,
            "best": 100 * means[0],
            "second": 100 * means[1],
            "worst": 100 * means[-1],
            "within_half_a_point": sum(means[0] - mean <= MAY_MISS / 100 for mean in means),
        }


class Replay(Sweep):
    """A sweep that writes no record."""

    def _write(self, trial: Trial) -> None:
        pass


class RayReplay(Replay):
    """A sweep that is stopped by Ray Tune's ASHA, with rungs at 1, 3, 9, ... epochs."""

    def prepare(self) -> None:
        """Create Ray's bracket of rungs."""
        longest = 10_000
        self.bracket = _Bracket(min_t=1, max_t=longest, reduction_factor=3, s=0)

    def _continues(self, trial: Trial) -> bool:
        @dataclass(frozen=True)
        class Named:
            trial_id: int

        value = trial.rows[-1]["ema_accuracy"]
        action = self.bracket.on_result(Named(trial.number), len(trial.rows), value)
        return bool(action == "CONTINUE")


def replay(sweep: Sweep, recorded: RecordedCurves, seed: int) -> None:
    """Run a sweep on recorded curves: the slot that has spent the fewest FLOPs is next."""
    choose, names = np.random.default_rng(seed), None
    clocks, running = [0.0] * SLOTS, [None] * SLOTS  # type: list[float], list[Any]
    while True:
        for slot in range(SLOTS):
            if running[slot] is None and (trial := sweep.next_trial()) is not None:
                names = names or sorted(trial.sample)
                curves = recorded.rows[tuple(trial.sample[name] for name in names)]
                running[slot] = (trial, curves[choose.integers(len(curves))])
        busy = [slot for slot in range(SLOTS) if running[slot] is not None]
        if not busy:
            return
        slot = min(busy, key=lambda each: clocks[each])
        trial, curve = running[slot]
        row = curve[len(trial.rows)] | {"images_per_s": 1.0}  # not recorded, and not limited
        before = trial.flops_spent
        continues = sweep.report(trial.number, row)
        clocks[slot] += trial.flops_spent - before
        if not continues:
            sweep.release(trial.number)
            running[slot] = None
        elif len(trial.rows) == len(curve):
            sweep.end(trial.number, "finished")
            running[slot] = None


def summary() -> Summary:
    """Return the summary of the recorded data."""
    return Summary(tuple(map(str, range(10))), train=TRAIN, val=VAL, test=None)


def run(name: str, flags: Sequence[str], recorded: RecordedCurves, seeds: int) -> dict[str, Any]:
    """Replay one variant with every seed."""
    given = ["--config", str(RECIPE), "--out", "unused", *flags]
    config = parse(TuneConfig, given, "benchmarks.sweeps.tune", "")
    plan = SweepPlan.of(config, summary())
    dimensions = search.space(config, config.space)
    names, means = sorted(each.name for each in dimensions), recorded.means()
    best, whole = max(means.values()), plan.trial_budget * len(means)
    missed, spent = [], []
    for seed in range(seeds):
        seeded = replace(plan, config=replace(config, seed=seed))
        kind = RayReplay if name == RAY_ASHA else Replay
        sweep = kind(seeded, Location.parse("unused"), seeded.searcher(dimensions).next)
        if isinstance(sweep, RayReplay):
            sweep.prepare()
        replay(sweep, recorded, seed)
        chosen = sweep.ranking()[0].sample
        missed.append(100 * (best - means[tuple(chosen[n] for n in names)]))
        spent.append(sweep.flops_spent / whole)
    low, high = np.percentile(missed, [25, 75])
    return {
        "variant": name,
        "missed_median": statistics.median(missed),
        "missed_quartiles": [float(low), float(high)],
        "missed_mean": statistics.fmean(missed),
        "compute_median": statistics.median(spent),
        "within": statistics.fmean(value <= MAY_MISS for value in missed),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Replay every variant and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", type=Path, default=CURVES)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args(argv)
    recorded = RecordedCurves.read(options.curves)
    noise = recorded.noise()
    print(
        f"{len(recorded.rows)} samples, {json.dumps({k: round(v, 2) for k, v in noise.items()})}\n"
    )
    print("| sweep | missed, points: median (quartiles) | compute, median | within half a point |")
    print("| --- | --- | --- | --- |")
    results = []
    variants = VARIANTS | {RAY_ASHA: VARIANTS["ASHA, random"]}
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        replays = partial(run, recorded=recorded, seeds=options.seeds)
        for found in pool.map(replays, variants, variants.values()):
            results.append(found)
            low, high = found["missed_quartiles"]
            print(
                f"| {found['variant']} | {found['missed_median']:.2f} ({low:.2f} to {high:.2f}) |"
                f" {found['compute_median']:.0%} | {found['within']:.0%} |",
                flush=True,
            )
    if options.json:
        about = {"seeds": options.seeds, "noise": noise, "variants": results}
        options.json.write_text(
            json.dumps(about | {"versions": versions(), "hardware": hardware()}, indent=2)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
