"""Search the shape and the settings of a Vision Transformer, and stop bad trials early.

    python -m jobs.tune --config digits_sweep.yaml --out runs/sweep

tries depths, heads and learning rates on scikit-learn's digits. batch_size and every setting of
model, augment and optim that is one number or word may vary: --space model.depth 2..8
optim.lr "1e-4..1e-2 log" model.num_heads "2, 4". Trials are compared
at equal training FLOPs, by the validation set alone. The same command on the same folder goes on
where it stopped, whatever stopped it; more --trials, or a higher limit, makes it go on too.

At the end --out has trials.csv, report.html and best.yaml:

    python -m jobs.train --config runs/sweep/best.yaml --out runs/best --workers 2
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import yaml

from jobs.classifier.task import VitConfig, absolute, check_present, local_paths
from jobs.cluster import connect
from jobs.cluster.link import Link
from jobs.cluster.workers import LaunchError, LostNodes, Resources
from jobs.run.config import ConfigError, as_settings, parse
from jobs.run.folder import check_same, describe
from jobs.run.progress import clock
from jobs.run.signals import Stop, background
from jobs.run.submitted import refuse_relative
from jobs.storage.location import Location, StorageError, check_writable
from jobs.sweep.config import BUDGETS, TuneConfig
from jobs.sweep.plan import Plan
from jobs.sweep.progress import SweepProgress, sample_text
from jobs.sweep.record import Sweep, Trial
from jobs.sweep.report import report
from jobs.sweep.searchers import Past
from jobs.sweep.tables import COUNTED, summarize, write_trials
from jobs.sweep.tuner import run_trials
from jobs.weights.classifier import load_weights
from vit.data import sets
from vit.data.decode import DataError
from vit.search import Dimension, Sample, SearchError, size, space
from vit.weights import WeightsError

SHOW_SECONDS = 0.3
"""Between two looks at what trials pushed."""


def tune(config: TuneConfig) -> int:
    """The stages of the job, in order."""
    # 1. What can be known before a trial starts.
    refuse_relative(config.out)
    config = absolute(config)
    out = Location.parse(config.out)
    plan, dimensions = check(config, out)
    searcher = plan.searcher(dimensions)
    if searcher.listed is not None and (whole := size(dimensions)) != len(searcher.listed):
        print(f"{len(searcher.listed)} of {whole} samples can be; one cannot: {searcher.refusal}")
    check_writable(out)
    describe(out, config)
    check_data(plan, out)
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
    try:
        return conclude(sweep, dimensions, again)
    except StorageError as error:
        raise LaunchError(
            f"{error}; the trials are over, and the same command writes it"
        ) from error


def check(config: TuneConfig, out: Location) -> tuple[Plan, tuple[Dimension, ...]]:
    """Find the faults that show without trials; fetches a data set that was not given."""
    dimensions = space(as_vit(config), config.space)
    check_same(out, config, began="trials")
    check_present(config)
    summary = sets.check(config.dataset, local_paths(config))
    plan = Plan.of(
        config, summary, load_weights(config.init_weights) if config.init_weights else None
    )
    unit = BUDGETS[config.budget]
    print(
        "space: " + "; ".join(f"{each.name} {each}" for each in dimensions) + "\n"
        f"a whole trial: {plan.most:.3g} {unit}; data: {summary.train:,} train, {summary.val:,} val"
    )
    if config.scheduler != "none" and not config.optim.ema_half_life:
        print("optim.ema_half_life is 0: early values of weights that are not averaged are noisy")
    return plan, dimensions


def check_data(plan: Plan, out: Location) -> None:
    """Check that the data are those of the first start: trials on others cannot be compared."""
    summary, place = plan.summary, out / "data.json"
    now = {
        "train": summary.train,
        "val": summary.val,
        "test": summary.test,
        "classes": list(summary.classes),
    }
    if not place.exists():
        place.write_json(now)
        return
    then = place.read_json()
    if differing := [name for name in now if then[name] != now[name]]:
        raise ConfigError(
            f"the data are not those that {out} began with: {', '.join(differing)}"
            f" ({then['train']:,} images train and {then['val']:,} val then); bring them back, or"
            " begin anew in another --out"
        )


def as_vit(config: TuneConfig) -> VitConfig:
    """What of the settings may vary."""
    return VitConfig(**{item.name: getattr(config, item.name) for item in fields(VitConfig)})


def on_cluster(sweep: Sweep, stop: Stop, test: bool = False) -> None:
    """Run the trials of a sweep on a Ray that can hold one; returns when none is left."""
    config = sweep.config
    workers, cpus, gpus = sweep.plan.shares()
    with connect.connect():
        cuda, gpus = connect.choose_device(config.device, workers, cpus, gpus)
        connect.require(workers, cpus, gpus, stop, wait=config.wait_for_nodes, trial=True)
        fitting = config.concurrent or max(1, connect.max_processes(cpus, gpus) // workers)
        slots = min(fitting, config.trials)
        print(f"trials at once: {slots}, {workers} x ({cpus:g} CPU, {gpus:g} GPU) each")
        link = Link.open()
        stop.then(lambda: sweep.refuse_more("stopped"))
        stop.then(link.stop)
        resources = Resources(workers, cpus, gpus, cuda)
        sweep.gpus = gpus * workers
        running = background(lambda: run_trials(sweep, resources, slots, link, test))
        lost = LostNodes(resources, config.wait_for_nodes, trial=True)
        with SweepProgress(sweep) as progress:
            while not running.done():
                progress.show(link.drain())
                if not stop.requested.is_set():
                    lost.check(progress.say)
                sweep.forget_checkpoints()
                sweep.note_clock()
                time.sleep(SHOW_SECONDS)
        try:
            running.result()
        except StorageError as error:
            raise LaunchError(f"a trial could not be written down: {error}") from error
    sweep.forget_checkpoints(again=True)
    sweep.note_clock(now=True)


def retrain(sweep: Sweep, stop: Stop) -> list[Trial] | None:
    """Train the best again, with several seeds, to their end; the test set is read here.

    What earlier starts trained again counts, though the best may have been others then.
    """
    config = sweep.config
    best = [trial for trial in sweep.ranking() if trial.fate == "finished"][: config.retrain_top]
    if not best:
        return None
    if sweep.left:
        print("the best are not trained again yet: some trials are left")
        return None
    samples = [again_of(sweep, t, config.seed + 1 + k) for t in best for k in range(config.seeds)]

    def take_up(trials: int) -> Sweep:
        limits: dict[str, Any] = {"max_hours": None, "max_flops": None, "max_gpu_hours": None}
        full = replace(config, scheduler="none", trials=trials, **limits)
        most = math.inf if config.budget == "seconds" else sweep.plan.most  # epochs end it
        plan = replace(sweep.plan, config=full, most=most)
        return Sweep(plan, sweep.folder / "retrain", lambda past: _missing(samples, past))

    others = [trial for trial in take_up(1).trials if trial.sample not in samples]
    again = take_up(len(samples) + len(others))
    print(f"training the best {len(best)} again, {config.seeds} seeds each")
    if not again.is_over:
        on_cluster(again, stop, test=True)
    return [trial for trial in again.snapshot() if trial.sample in samples]


def again_of(sweep: Sweep, trial: Trial, seed: int) -> Sample:
    """The sample of a trial that is trained again with another seed."""
    epochs = {"epochs": whole_epochs(sweep, trial)} if sweep.config.budget == "seconds" else {}
    return trial.sample | epochs | {"seed": seed}


def whole_epochs(sweep: Sweep, trial: Trial) -> int:
    """Epochs of a trial that came to its end: where seconds ended it, as many as it had."""
    if sweep.config.budget != "seconds":
        return trial.epochs
    return max(len(trial.rows), int(sweep.settings(trial).optim.warmup_epochs) + 1)


def _missing(samples: Sequence[Sample], past: Sequence[Past]) -> Sample | None:
    """The first of the samples that was not begun."""
    begun = [trial.sample for trial in past]
    return next((sample for sample in samples if sample not in begun), None)


def conclude(sweep: Sweep, dimensions: Sequence[Dimension], again: list[Trial] | None) -> int:
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
    whole = summary["best"] is not None and (not sweep.over or sweep.at_limit)
    return 0 if whole else 1


def best_yaml(sweep: Sweep, trial: Trial) -> str:
    """The settings of a trial's training, as `jobs.train --config` takes them."""
    settings = as_settings(replace(sweep.settings(trial), epochs=whole_epochs(sweep, trial)))
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
    whole = summary["flops_spent"] + summary["flops_saved"]
    saved = summary["flops_saved"] / whole if whole else 0.0
    print(f"done: {summary['trials']} trials ({counts}), {clock(summary['wall_s'])}", end="")
    print(f"; stopping early saved {saved:.0%} of the compute" if summary["stopped"] else "")
    for trial in sweep.snapshot():
        if trial.fate in ("failed", "diverged"):
            print(f"  trial {trial.number} {trial.fate}: {trial.reason}")
    if sweep.over:
        more = " with more" if sweep.at_limit else ""
        print(f"  {sweep.over}; the same command{more} goes on")
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
    except (*faults, connect.ClusterError) as error:
        sys.stderr.write(f"jobs.tune: {error}\n")
        return 2
    except LaunchError as error:
        sys.stderr.write(f"jobs.tune: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
