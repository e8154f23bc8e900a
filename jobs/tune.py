"""Search the shape and the settings of a Vision Transformer, and stop bad trials early.

    python -m jobs.tune --config digits_sweep.yaml --out runs/sweep

tries depths, heads and learning rates on scikit-learn's digits. batch_size and every setting of
model, augment and optim that is one number or word may vary: --space model.depth 2..8
optim.lr "1e-4..1e-2 log" model.num_heads "2, 4". Trials are compared on the validation set, at
equal training FLOPs. The same command on the same folder resumes, whatever ended it; with more
--trials, or a higher limit, it continues a sweep that is over.

At the end --out contains trials.csv, report.html and best.yaml:

    python -m jobs.train --config runs/sweep/best.yaml --out runs/best --workers 2
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import yaml

from jobs.classifier.task import VitConfig, local_paths
from jobs.cluster import connect
from jobs.cluster.link import Link
from jobs.cluster.workers import SHARING, LaunchError, LostNodes, Resources
from jobs.run.config import ConfigError, as_settings
from jobs.run.folder import check_same, describe
from jobs.run.main import run_job, working
from jobs.run.progress import clock
from jobs.run.signals import Stop, background
from jobs.run.submitted import absolute, check_present, refuse_relative
from jobs.storage.lease import exclusive
from jobs.storage.location import Location, StorageError, check_writable
from jobs.sweep.config import BUDGETS, TuneConfig
from jobs.sweep.plan import SweepPlan
from jobs.sweep.progress import SweepProgress, sample_text
from jobs.sweep.record import Trial
from jobs.sweep.report import report
from jobs.sweep.searchers import PastTrial
from jobs.sweep.state import Sweep
from jobs.sweep.tables import COUNTED, summarize, write_trials
from jobs.sweep.tuner import run_trials
from jobs.weights.classifier import load_weights
from vit.data import sets
from vit.data.decode import DataError
from vit.data.reader import some
from vit.search import Dimension, Sample, SearchError, size, space
from vit.weights import WeightsError

SHOW_SECONDS = 0.3
"""Time between two updates of the progress."""
OF_THE_SWEEP = (
    *("out", "config", "device", "workers", "cpus_per_worker", "gpus_per_worker"),
    "wait_for_nodes",
)
"""Settings of a trial that best.yaml leaves out: where the sweep ran, not what it found."""


def tune(config: TuneConfig) -> int:
    """Run the stages of the job, in order; returns the exit code."""
    # 1. Checks before any trial starts.
    refuse_relative(config.out)
    config = absolute(config, "out", "data", "init_weights")
    out = Location.parse(config.out)
    plan, dimensions = check(config, out)
    searcher = plan.searcher(dimensions)
    if searcher.listed is not None and (whole := size(dimensions)) != len(searcher.listed):
        print(
            f"{len(searcher.listed)} of {whole} samples can be trained; one that cannot:"
            f" {searcher.last_rejection}"
        )
    with exclusive(out, "jobs.tune"):
        check_writable(out)
        describe(out, config)
        check_data(plan, out)
        return run_sweep(Sweep(plan, out, searcher.next), dimensions)


def run_sweep(sweep: Sweep, dimensions: Sequence[Dimension]) -> int:
    """Run the trials of a sweep and write its results; returns the exit code."""
    # 2. The trials, then the best ones again.
    with Stop() as stop:
        if not sweep.is_over:
            run_on_cluster(sweep, stop)
        if stop.requested.is_set():
            print("stopped; the same command resumes")
            return stop.exit_code or 1
        with working():
            again = retrain(sweep, stop)
        if stop.requested.is_set():
            return stop.exit_code or 1
    # 3. The results.
    try:
        return conclude(sweep, dimensions, again)
    except StorageError as error:
        raise LaunchError(
            f"{error}; the trials are over, and the same command writes the results"
        ) from error


def check(config: TuneConfig, out: Location) -> tuple[SweepPlan, tuple[Dimension, ...]]:
    """Check the settings and the data, and return the plan and the settings that vary.

    A data set that was not given is fetched.
    """
    dimensions = space(training_settings(config), config.space)
    check_same(out, config, began="trials")
    check_present("--data", config.data)
    summary = sets.check(config.dataset, local_paths(config))
    plan = SweepPlan.of(
        config, summary, load_weights(config.init_weights) if config.init_weights else None
    )
    unit = BUDGETS[config.budget]
    print(
        "space: " + "; ".join(f"{each.name} {each}" for each in dimensions) + "\n"
        f"a whole trial: {plan.trial_budget:.3g} {unit};"
        f" data: {summary.train:,} train, {summary.val:,} val;"
        f" {len(summary.classes)} classes ({', '.join(some(summary.classes, 10))})"
    )
    for note in summary.notes:
        print(note)
    if config.scheduler != "none" and not config.optim.ema_half_life:
        print("optim.ema_half_life is 0: without averaged weights, early values are noisy")
    return plan, dimensions


def check_data(plan: SweepPlan, out: Location) -> None:
    """Check that the data are those of the first start, so that trials can be compared.

    Raises:
        ConfigError: they differ.
    """
    summary, place = plan.summary, out / "data.json"
    now = {name: getattr(summary, name) for name in ("train", "val", "test")}
    now["classes"] = list(summary.classes)
    if not place.exists():
        place.write_json(now)
        return
    try:
        then = dict(json.loads(place.read_bytes()))
        differing = [name for name in now if then[name] != now[name]]
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{place} is damaged: expected {', '.join(now)} of the data; restore it, or start in"
            " another --out"
        ) from error
    if differing:
        raise ConfigError(
            f"the data changed since {out} was started: {', '.join(differing)} (then"
            f" {then['train']:,} train and {then['val']:,} val images); restore the earlier data,"
            " or start in another --out"
        )


def training_settings(config: TuneConfig) -> VitConfig:
    """Return the settings of a training, which may vary."""
    return VitConfig(**{item.name: getattr(config, item.name) for item in fields(VitConfig)})


def run_on_cluster(sweep: Sweep, stop: Stop, test: bool = False) -> None:
    """Run the trials of a sweep on Ray until none is left.

    Args:
        sweep: its trials.
        stop: ends them.
        test: whether to measure on the test set at the end of each trial.

    Raises:
        ClusterError: not even one trial fits.
        LaunchError: Ray gave up, nodes were lost, or storage failed.
    """
    config = sweep.config
    workers, cpus, gpus = sweep.plan.trial_resources()
    with connect.connect():
        cuda, gpus = connect.choose_device(
            config.device, workers, cpus, gpus, sharing=SHARING, trial=True
        )
        connect.require(workers, cpus, gpus, stop, wait=config.wait_for_nodes, trial=True)
        fitting = config.concurrent or max(1, connect.max_processes(cpus, gpus) // workers)
        at_once = min(fitting, config.trials)
        print(f"trials at once: {at_once}, {workers} x ({cpus:g} CPU, {gpus:g} GPU) each")
        link = Link.open()
        stop.then(lambda: sweep.halt("stopped"))
        stop.then(link.stop)
        resources = Resources(workers, cpus, gpus, cuda)
        sweep.trial_gpus = gpus * workers
        running = background(lambda: run_trials(sweep, resources, at_once, link, test))
        lost = LostNodes(resources, config.wait_for_nodes, trial=True)
        with SweepProgress(sweep) as progress:
            while not running.done():
                progress.show(link.drain())
                if not stop.requested.is_set():
                    lost.check(progress.say)
                sweep.delete_checkpoints()
                sweep.clock.save()
                time.sleep(SHOW_SECONDS)
        try:
            running.result()
        except StorageError as error:
            raise LaunchError(f"a trial could not be recorded: {error}") from error
    sweep.delete_checkpoints(again=True)
    sweep.clock.save(now=True)


def retrain(sweep: Sweep, stop: Stop) -> list[Trial] | None:
    """Train the best samples again, with several seeds, to the end, and measure on the test set.

    Trials that earlier starts trained again are used, also if other samples are the best by now.

    Returns:
        The trials of the best samples; None if there is none, or the sweep is not over.
    """
    config = sweep.config
    best = [trial for trial in sweep.ranking() if trial.fate == "finished"][: config.retrain_top]
    if not best:
        return None
    if sweep.unfinished:
        print("the best are not trained again yet: some trials have not ended")
        return None
    samples = [
        retraining_sample(sweep, t, config.seed + 1 + k) for t in best for k in range(config.seeds)
    ]

    def retraining(trials: int) -> Sweep:
        limits: dict[str, Any] = {"max_hours": None, "max_flops": None, "max_gpu_hours": None}
        full = replace(config, scheduler="none", trials=trials, **limits)
        budget = math.inf if config.budget == "seconds" else sweep.plan.trial_budget
        plan = replace(sweep.plan, config=full, trial_budget=budget)
        return Sweep(plan, sweep.folder / "retrain", lambda past: _next_sample(samples, past))

    others = [trial for trial in retraining(1).trials if trial.sample not in samples]
    again = retraining(len(samples) + len(others))
    print(f"training the best again: {len(best)} samples, {config.seeds} seeds each")
    if not again.is_over:
        run_on_cluster(again, stop, test=True)
    return [trial for trial in again.snapshot() if trial.sample in samples]


def retraining_sample(sweep: Sweep, trial: Trial, seed: int) -> Sample:
    """Return the sample of a trial that is trained again with another seed."""
    epochs = (
        {"epochs": epochs_of_finished(sweep, trial)} if sweep.config.budget == "seconds" else {}
    )
    return trial.sample | epochs | {"seed": seed}


def epochs_of_finished(sweep: Sweep, trial: Trial) -> int:
    """Return the epochs of a finished trial; if seconds ended it, those that it completed."""
    if sweep.config.budget != "seconds":
        return trial.epochs
    return max(len(trial.rows), int(sweep.settings(trial).optim.warmup_epochs) + 1)


def _next_sample(samples: Sequence[Sample], past: Sequence[PastTrial]) -> Sample | None:
    """Return the first of the samples that no trial has."""
    tried = [trial.sample for trial in past]
    return next((sample for sample in samples if sample not in tried), None)


def conclude(sweep: Sweep, dimensions: Sequence[Dimension], again: list[Trial] | None) -> int:
    """Write and print the results; returns the exit code."""
    out = sweep.folder
    write_trials(sweep, out)
    summary = summarize(sweep, again)
    if summary["best"] is not None:
        best = sweep.trials[summary["best"]["trial"]]
        (out / "best.yaml").write_text(best_yaml(sweep, best))
    report(sweep, dimensions, again, out)
    (out / "summary.json").write_json(summary)
    print_result(sweep, summary)
    complete = summary["best"] is not None and (not sweep.halted or sweep.at_limit)
    return 0 if complete else 1


def best_yaml(sweep: Sweep, trial: Trial) -> str:
    """Return the settings of a trial's training as YAML for `jobs.train --config`."""
    settings = as_settings(replace(sweep.settings(trial), epochs=epochs_of_finished(sweep, trial)))
    kept = {name: value for name, value in settings.items() if name not in OF_THE_SWEEP}
    head = (
        f"# Trial {trial.number} of {sweep.folder}\n"
        f"#\n#   python -m jobs.train --config best.yaml --out runs/best --workers 2\n"
    )
    return head + yaml.safe_dump(_without_none(kept), sort_keys=False, allow_unicode=True)


def _without_none(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without those that are None or empty lists."""
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if value is not None and value != []
    }


def print_result(sweep: Sweep, summary: dict[str, Any]) -> None:
    """Print the results, and where their files are."""
    out, best = sweep.folder, summary["best"]
    counts = ", ".join(f"{summary[fate]} {fate}" for fate in COUNTED if summary[fate])
    whole = summary["flops_spent"] + summary["flops_saved"]
    saved = summary["flops_saved"] / whole if whole else 0.0
    print(f"done: {summary['trials']} trials ({counts}), {clock(summary['wall_s'])}", end="")
    print(f"; stopping early saved {saved:.0%} of the compute" if summary["stopped"] else "")
    for trial in sweep.snapshot():
        if trial.fate in ("failed", "diverged"):
            print(f"  trial {trial.number} {trial.fate}: {trial.reason}")
    if sweep.halted:
        more = " with a higher limit" if sweep.at_limit else ""
        print(f"  {sweep.halted}; the same command{more} resumes")
    if best is None:
        sys.stderr.write("jobs.tune: no trial finished, so there is no best one\n")
    else:
        sample = sample_text(best["params"])
        print(f"  best     trial {best['trial']}, {best['metric']} {best['value']:.4f}: {sample}")
        print(f"  train it python -m jobs.train --config {out / 'best.yaml'} --out runs/best")
    for line in summary["retrained"] or ():
        print(f"  repeated {sample_text(line['params'])}: {_accuracy_text(line)}")
    print(f"  report   {out / 'report.html'}")


def _accuracy_text(line: dict[str, Any]) -> str:
    """Return the accuracy of a sample that was trained again, over its seeds."""
    name = "val" if line["test_mean"] is None else "test"
    if line[f"{name}_mean"] is None:
        return "no seed finished"
    spread = (
        "" if line[f"{name}_std"] is None else f" (standard deviation {line[f'{name}_std']:.2%})"
    )
    lost = f", {line['lost']} lost" if line["lost"] else ""
    return f"{name} accuracy {line[f'{name}_mean']:.2%}{spread}, {line['seeds']} seeds{lost}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    bad_input = (SearchError, DataError, WeightsError)
    return run_job(tune, TuneConfig, argv, "jobs.tune", __doc__, bad_input)


if __name__ == "__main__":
    sys.exit(main())
