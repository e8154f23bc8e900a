"""The results of a sweep: trials.csv, trials.parquet and summary.json."""

import io
import statistics
from typing import Any

import pandas as pd

from jobs.run.machine import versions
from jobs.storage.location import Location
from jobs.sweep.record import FATES, Trial
from jobs.sweep.rungs import value_at
from jobs.sweep.state import Sweep

FORMAT = 1
"""Version of summary.json."""
COUNTED = (*FATES, "left")
"""The fates that trials are counted by; left: it has not ended, and the next start resumes it."""


def trial_table(sweep: Sweep) -> pd.DataFrame:
    """Return one row for each trial: its fate, its sample, what it spent and its values.

    `value` is the metric at the end of a whole training, `last` after the last epoch, `rung_<r>` at
    rung r. `flops_whole` and `epochs_whole` are those of a training that is not stopped.
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
        "flops_whole": whole_flops(sweep, trial),
        "train_s": trial.train_seconds,
        **{
            f"rung_{rung}": None if at_rungs.get(rung) is None else sign * at_rungs[rung]
            for rung in range(len(sweep.rungs))
        },
    }


def whole_flops(sweep: Sweep, trial: Trial) -> float:
    """Return the training FLOPs of a trial that is not stopped."""
    samples = sweep.plan.samples_per_epoch(sweep.settings(trial))
    return float(trial.epochs * samples * trial.flops)


def flops_saved(sweep: Sweep) -> float:
    """Return the training FLOPs that early stopping saved."""
    stopped = [trial for trial in sweep.snapshot() if trial.fate == "stopped"]
    return sum(whole_flops(sweep, trial) - trial.flops_spent for trial in stopped)


def write_trials(sweep: Sweep, out: Location) -> None:
    """Publish trials.csv and trials.parquet."""
    table = trial_table(sweep)
    (out / "trials.csv").write_text(table.to_csv(index=False))
    content = io.BytesIO()
    table.to_parquet(content, index=False)
    (out / "trials.parquet").write_bytes(content.getvalue())


def summarize(sweep: Sweep, again: list[Trial] | None) -> dict[str, Any]:
    """Return the contents of summary.json; accuracies are fractions.

    Args:
        sweep: its trials.
        again: the trials that trained the best samples again; None if there are none.
    """
    trials, config = sweep.snapshot(), sweep.config
    fates = [trial.fate or "left" for trial in trials]
    best = next((t for t in sweep.ranking() if t.fate == "finished"), None)
    hardware = next((t.facts["hardware"] for t in trials if t.facts.get("hardware")), None)
    return {
        "format": FORMAT,
        "trials": len(trials),
        **{fate: fates.count(fate) for fate in COUNTED},
        "best": None if best is None else _best(sweep, best),
        "flops_spent": sweep.flops_spent,
        "flops_grid": sum(whole_flops(sweep, trial) for trial in trials),
        "flops_saved": flops_saved(sweep),
        "wall_s": sweep.clock.seconds,
        "limit": sweep.halted or None,
        "searcher": config.searcher,
        "scheduler": config.scheduler,
        "budget": config.budget,
        "max_budget": sweep.plan.trial_budget,
        "retrained": None if again is None else summarize_retrained(again, config.measure),
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


def summarize_retrained(again: list[Trial], measure: str) -> list[dict[str, Any]]:
    """Return the mean and deviation over seeds of each sample that was trained again.

    The mean is None if no seed finished, or there is no test set; a deviation is None for one seed.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in again:
        groups.setdefault(str(_without_seed(trial)), []).append(trial)
    return [_group(trials, measure) for trials in groups.values()]


def _without_seed(trial: Trial) -> dict[str, Any]:
    return {name: value for name, value in trial.sample.items() if name != "seed"}


def _group(trials: list[Trial], measure: str) -> dict[str, Any]:
    done = [trial for trial in trials if trial.fate == "finished"]
    summary: dict[str, Any] = {
        "params": _without_seed(trials[0]),
        "seeds": len(done),
        "lost": len(trials) - len(done),
    }
    val = [trial.rows[-1][measure] for trial in done]
    test = [trial.facts["test"]["test_accuracy"] for trial in done if trial.facts.get("test")]
    for name, values in (("val", val), ("test", test)):
        summary[f"{name}_mean"] = statistics.fmean(values) if values else None
        summary[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return summary


def common_budget(sweep: Sweep, share: float = 0.5) -> tuple[float, list[tuple[Trial, float]]]:
    """Compare trials at the largest budget that at least `share` of those with an epoch reached.

    Returns:
        The budget, in its unit, and the trials that reached it with their values there (larger is
        better); 0 and no trial if none has an epoch.
    """
    curves = [(trial, sweep.curve(trial)) for trial in sweep.snapshot() if trial.rows]
    if not curves:
        return 0.0, []
    reached = sorted((curve[-1][0] for _, curve in curves), reverse=True)
    budget = reached[max(0, min(len(reached), round(share * len(reached))) - 1)]
    values = [(trial, value_at(curve, budget)) for trial, curve in curves]
    return budget, [(trial, value) for trial, value in values if value is not None]
