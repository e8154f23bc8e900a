"""A sweep in figures: trials.csv, trials.parquet and summary.json."""

import io
import statistics
from typing import Any

import pandas as pd

from jobs.run.folder import versions
from jobs.storage.location import Location
from jobs.sweep.record import FATES, Sweep, Trial
from jobs.sweep.rungs import value_at

FORMAT = 1
"""Version of summary.json."""
COUNTED = (*FATES, "left")
"""What may have become of a trial; left: by a limit or a signal, and may go on."""


def frame(sweep: Sweep) -> pd.DataFrame:
    """One row a trial: its fate, its sample, what it spent, how good it was and when.

    `value` is the metric at the end of a whole training, `last` after its last epoch, `rung_<r>` at
    rung r. `flops_whole` and `epochs_whole` are of a training that is not stopped.
    """
    return pd.DataFrame([_row(sweep, trial) for trial in sweep.snapshot()])


def _row(sweep: Sweep, trial: Trial) -> dict[str, Any]:
    sign, value = sweep.config.sign, sweep.value(trial)
    at_rungs = {arrival["rung"]: arrival["value"] for arrival in trial.arrivals}
    return {
        "trial": trial.number,
        "fate": trial.fate or "left",
        "rung": trial.stopped_at,
        "reason": trial.reason,
        **trial.sample,
        "parameters": trial.parameters,
        "metric": sweep.config.measure,
        "value": None if value is None else sign * value,
        "last": trial.rows[-1][sweep.config.measure] if trial.rows else None,
        "epochs": len(trial.rows),
        "epochs_whole": trial.epochs,
        "samples_seen": trial.samples_seen,
        "flops": trial.flops_spent,
        "flops_whole": whole(sweep, trial),
        "train_s": trial.train_seconds,
        **{
            f"rung_{rung}": None if at_rungs.get(rung) is None else sign * at_rungs[rung]
            for rung in range(len(sweep.rungs))
        },
    }


def whole(sweep: Sweep, trial: Trial) -> float:
    """Training FLOPs of a trial that is not stopped."""
    samples = sweep.plan.epoch_samples(sweep.settings(trial))
    return float(trial.epochs * samples * trial.flops)


def saved(sweep: Sweep) -> float:
    """Training FLOPs that the trials which were stopped early would still have taken."""
    stopped = [trial for trial in sweep.snapshot() if trial.fate == "stopped"]
    return sum(whole(sweep, trial) - trial.flops_spent for trial in stopped)


def write_trials(sweep: Sweep, out: Location) -> None:
    """Publish trials.csv and trials.parquet."""
    table = frame(sweep)
    (out / "trials.csv").write_text(table.to_csv(index=False))
    content = io.BytesIO()
    table.to_parquet(content, index=False)
    (out / "trials.parquet").write_bytes(content.getvalue())


def summarize(sweep: Sweep, again: list[Trial] | None) -> dict[str, Any]:
    """What summary.json holds; accuracies are fractions. `again`: trainings of the best."""
    trials, config = sweep.snapshot(), sweep.config
    fates = [trial.fate or "left" for trial in trials]
    best = next((t for t in sweep.ranking() if t.fate == "finished"), None)
    hardware = next((t.facts["hardware"] for t in trials if "hardware" in t.facts), None)
    return {
        "format": FORMAT,
        "trials": len(trials),
        **{fate: fates.count(fate) for fate in COUNTED},
        "best": None if best is None else _best(sweep, best),
        "flops_spent": sweep.flops_spent,
        "flops_grid": sum(whole(sweep, trial) for trial in trials),
        "flops_saved": saved(sweep),
        "wall_s": sweep.wall_seconds,
        "limit": sweep.over or None,
        "searcher": config.searcher,
        "scheduler": config.scheduler,
        "budget": config.budget,
        "max_budget": sweep.plan.most,
        "retrained": None if again is None else retrained(again, config.measure),
        "versions": versions(),
        "hardware": hardware,
    }


def _best(sweep: Sweep, best: Trial) -> dict[str, Any]:
    measure, last = sweep.config.measure, best.rows[-1]
    accuracy = last["ema_accuracy"] if "ema_accuracy" in last else last["val_accuracy"]
    return {
        "trial": best.number,
        "params": best.sample,
        "metric": measure,
        "value": last[measure],
        "val_accuracy": accuracy,
        "parameters": best.parameters,
    }


def retrained(again: list[Trial], measure: str) -> list[dict[str, Any]]:
    """Mean and deviation over seeds of each sample that was trained again, by name of the metric.

    Those of the test set are None where there is none, deviations where there is one seed.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in again:
        groups.setdefault(str(_without_seed(trial)), []).append(trial)
    return [_group(trials, measure) for trials in groups.values()]


def _without_seed(trial: Trial) -> dict[str, Any]:
    return {name: value for name, value in trial.sample.items() if name != "seed"}


def _group(trials: list[Trial], measure: str) -> dict[str, Any]:
    done = [trial for trial in trials if trial.fate == "finished"]
    found: dict[str, Any] = {
        "params": _without_seed(trials[0]),
        "seeds": len(done),
        "lost": len(trials) - len(done),
    }
    val = [trial.rows[-1][measure] for trial in done]
    test = [trial.facts["test"]["test_accuracy"] for trial in done if trial.facts.get("test")]
    for name, values in (("val", val), ("test", test)):
        found[f"{name}_mean"] = statistics.fmean(values) if values else None
        found[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return found


def common_budget(sweep: Sweep, share: float = 0.5) -> tuple[float, list[tuple[Trial, float]]]:
    """The largest budget that at least `share` of the trials with a curve got to; them, there.

    Returns:
        The budget, and (trial, value there; larger is better); 0 and nothing without a curve.
    """
    curves = [(trial, sweep.curve(trial)) for trial in sweep.snapshot() if trial.rows]
    if not curves:
        return 0.0, []
    reached = sorted((curve[-1][0] for _, curve in curves), reverse=True)
    budget = reached[max(0, min(len(reached), round(share * len(reached))) - 1)]
    values = [(trial, value_at(curve, budget)) for trial, curve in curves]
    return budget, [(trial, value) for trial, value in values if value is not None]
