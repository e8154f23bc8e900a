"""Search the shape and the settings of a Vision Transformer, and stop bad trials early.

    python -m jobs.tune --config digits_sweep.yaml --out runs/sweep

tries depths, heads and learning rates on scikit-learn's digits. Every setting of `jobs.train` may
vary: --space model.depth 2..8 optim.lr "1e-4..1e-2 log" model.num_heads "2, 4". Trials are compared
at equal training FLOPs, by the validation set alone. The same command on the same folder goes on
where it stopped, whatever stopped it; more --trials, or a higher limit, makes it go on too.

At the end --out has trials.csv, report.html and best.yaml:

    python -m jobs.train --config runs/sweep/best.yaml --out runs/best --workers 2
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import yaml

from jobs import cluster, runs, trials
from jobs.config import ConfigError, as_settings, parse
from jobs.launch import LaunchError, Resources
from jobs.link import Link
from jobs.progress import clock
from jobs.signals import Stop, background
from jobs.storage import Location, StorageError, check_writable
from jobs.sweep import Sweep, Trial
from jobs.sweep_progress import SweepProgress, sample_text
from jobs.sweep_report import report
from jobs.sweep_tables import COUNTED, summarize, write_trials
from jobs.trial import BUDGETS, Plan, TuneConfig
from jobs.vit_task import VitConfig, absolute, check_present, local_paths
from vit import data
from vit.decode import DataError
from vit.search import Dimension, SearchError, space
from vit.weights import WeightsError

SHOW_SECONDS = 0.3
"""Between two looks at what trials pushed."""


def tune(config: TuneConfig) -> int:
    """The stages of the job, in order."""
    # 1. What can be known before a trial starts.
    cluster.refuse_relative(config.out)
    config = absolute(config)
    out = Location.parse(config.out)
    plan, dimensions = check(config, out)
    searcher = plan.searcher(dimensions)
    check_writable(out)
    runs.describe(out, config)
    sweep = Sweep(plan, out, searcher.next)
    # 2. The trials, and the best of them once more.
    with Stop() as stop:
        if not sweep.is_over:
            on_cluster(sweep, stop)
        if stop.requested.is_set():
            print("stopped; the same command goes on")
            return stop.exit_code or 1
        again = retrain(sweep, stop)
        if stop.requested.is_set():
            return stop.exit_code or 1
    # 3. What they leave.
    return conclude(sweep, dimensions, again)


def check(config: TuneConfig, out: Location) -> tuple[Plan, tuple[Dimension, ...]]:
    """Find the faults that show without trials; fetches a data set that was not given."""
    dimensions = space(as_vit(config), config.space)
    runs.check_same(out, config, began="trials")
    check_present(config)
    summary = data.check(config.dataset, local_paths(config))
    plan = Plan.of(config, summary)
    unit = BUDGETS[config.budget]
    print(
        "space: " + "; ".join(f"{each.name} {each}" for each in dimensions) + "\n"
        f"a whole trial: {plan.most:.3g} {unit}; data: {summary.train:,} train, {summary.val:,} val"
    )
    if config.scheduler != "none" and not config.optim.ema_half_life:
        print("optim.ema_half_life is 0: early values of weights that are not averaged are noisy")
    return plan, dimensions


def as_vit(config: TuneConfig) -> VitConfig:
    """What of the settings may vary."""
    return VitConfig(**{item.name: getattr(config, item.name) for item in fields(VitConfig)})


def on_cluster(sweep: Sweep, stop: Stop, test: bool = False) -> None:
    """Run the trials of a sweep on a Ray that can hold one; returns when none is left."""
    config = sweep.config
    workers, cpus, gpus = sweep.plan.shares()
    with cluster.connect():
        cuda, gpus = cluster.choose_device(config.device, workers, cpus, gpus)
        cluster.require(workers, cpus, gpus, stop, wait=config.wait_for_nodes, trial=True)
        slots = config.concurrent or max(1, cluster.holds(cpus, gpus) // workers)
        print(f"trials at once: {slots}, {workers} x ({cpus:g} CPU, {gpus:g} GPU) each")
        link = Link.open()
        stop.then(lambda: sweep.refuse_more("stopped"))
        stop.then(link.stop)
        resources = Resources(workers, cpus, gpus, cuda)
        sweep.gpus = gpus * workers
        running = background(lambda: trials.run(sweep, resources, slots, link, test))
        with SweepProgress(sweep) as progress:
            while not running.done():
                progress.show(link.drain())
                sweep.forget_checkpoints()
                sweep.note_clock()
                time.sleep(SHOW_SECONDS)
        try:
            running.result()
        except StorageError as error:
            raise LaunchError(f"a trial could not be written down: {error}") from error
    sweep.forget_checkpoints(again=True)
    sweep.note_clock(now=True)


def retrain(sweep: Sweep, stop: Stop) -> Sweep | None:
    """Train the best again, with several seeds, to their end; the test set is read here."""
    config = sweep.config
    best = [trial for trial in sweep.ranking() if trial.fate == "finished"][: config.retrain_top]
    if not best or sweep.left:
        return None
    samples = [t.sample | {"seed": config.seed + 1 + k} for t in best for k in range(config.seeds)]
    limits: dict[str, Any] = {"max_hours": None, "max_flops": None, "max_gpu_hours": None}
    full = replace(config, scheduler="none", trials=len(samples), **limits)
    plan = replace(sweep.plan, config=full)
    print(f"training the best {len(best)} again, {config.seeds} seeds each")
    again = Sweep(plan, sweep.folder / "retrain", lambda past: samples[len(past)])
    if [trial.sample for trial in again.trials] != samples[: len(again.trials)]:
        again.forget()  # of a sweep that went on since: its best are others now
    if not again.is_over:
        on_cluster(again, stop, test=True)
    return again


def conclude(sweep: Sweep, dimensions: Sequence[Dimension], again: Sweep | None) -> int:
    """Write down what was tried and found, and say it; returns the exit code."""
    out = sweep.folder
    write_trials(sweep, out)
    summary = summarize(sweep, again)
    if summary["best"] is not None:
        best = sweep.trials[summary["best"]["trial"]]
        (out / "best.yaml").write_text(best_yaml(sweep, best))
    report(sweep, dimensions, again, out)
    (out / "summary.json").write_json(summary)
    print_result(sweep, summary)
    return 0 if summary["best"] is not None else 1


def best_yaml(sweep: Sweep, trial: Trial) -> str:
    """The settings of a trial's training, as `jobs.train --config` takes them."""
    settings = as_settings(sweep.settings(trial))
    own = (
        "out",
        "config",
        "workers",
        "device",
        "cpus_per_worker",
        "gpus_per_worker",
        "wait_for_nodes",
    )
    kept = {name: value for name, value in settings.items() if name not in own}
    head = (
        f"# Trial {trial.number} of {sweep.folder}\n"
        f"#\n#   python -m jobs.train --config best.yaml --out runs/best --workers 2\n"
    )
    return head + yaml.safe_dump(_without_none(kept), sort_keys=False, allow_unicode=True)


def _without_none(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that say nothing."""
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if value is not None and value != []
    }


def print_result(sweep: Sweep, summary: dict[str, Any]) -> None:
    """Say what came out, and where it lies."""
    out, best = sweep.folder, summary["best"]
    counts = ", ".join(f"{summary[fate]} {fate}" for fate in COUNTED if summary[fate])
    saved = 1 - summary["flops_spent"] / summary["flops_grid"] if summary["flops_grid"] else 0.0
    print(f"done: {summary['trials']} trials ({counts}), {clock(summary['wall_s'])}", end="")
    print(f"; stopping early saved {saved:.0%} of the compute" if summary["stopped"] else "")
    for trial in sweep.snapshot():
        if trial.fate in ("failed", "diverged"):
            print(f"  trial {trial.number} {trial.fate}: {trial.reason}")
    if sweep.over:
        print(f"  {sweep.over}; the same command with more goes on")
    if best is None:
        sys.stderr.write("jobs.tune: no trial came to its end: there is no best\n")
    else:
        sample = sample_text(best["params"])
        print(f"  best     trial {best['trial']}, {best['metric']} {best['value']:.4f}: {sample}")
        print(f"  train it python -m jobs.train --config {out / 'best.yaml'} --out runs/best")
    for line in summary["retrained"] or ():
        print(f"  again    {sample_text(line['params'])}: {_mean(line)}")
    print(f"  report   {out / 'report.html'}")


def _mean(line: dict[str, Any]) -> str:
    """The accuracy of a sample that was trained again, over its seeds."""
    name = "val" if line["test_mean"] is None else "test"
    if line[f"{name}_mean"] is None:
        return "none of its seeds came to an end"
    spread = "" if line[f"{name}_std"] is None else f" (s {line[f'{name}_std']:.2%})"
    lost = f", {line['lost']} lost" if line["lost"] else ""
    return f"{name} accuracy {line[f'{name}_mean']:.2%}{spread}, {line['seeds']} seeds{lost}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse(TuneConfig, sys.argv[1:] if argv is None else argv, "jobs.tune", __doc__)
    faults = (ConfigError, SearchError, DataError, WeightsError, StorageError)
    try:
        return tune(config)
    except (*faults, cluster.ClusterError) as error:
        sys.stderr.write(f"jobs.tune: {error}\n")
        return 2
    except LaunchError as error:
        sys.stderr.write(f"jobs.tune: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
