"""Sweeps without a cluster, whose trials take turns and have learning curves from a formula."""

import math

from jobs.run.config import parse
from jobs.storage.location import Location
from jobs.sweep.config import TuneConfig
from jobs.sweep.plan import SweepPlan
from jobs.sweep.state import Sweep
from vit.data.sets import Summary
from vit.search import space

SMALL = (
    *("--config", "digits_sweep.yaml", "--device", "cpu", "--epochs", "9"),
    *("--optim.warmup-epochs", "0.5", "--model.embed-dim", "48"),
)
"""Flags of a small `jobs.tune`."""
SUMMARY = Summary(("a", "b", "c"), train=640, val=100, test=None)
FLAGS = (
    *("--model.image-size", "16", "--model.embed-dim", "48", "--model.num-heads", "2"),
    *("--model.depth", "2", "--batch-size", "64", "--epochs", "27", "--optim.warmup-epochs", "1"),
    *("--space", "model.depth", "1..4", "model.num_heads", "1, 2, 3, 5", "optim.lr"),
    "1e-4..1e-1 log in 7",
)


def config_of(folder, *flags):
    return parse(TuneConfig, ["--out", str(folder), *FLAGS, *flags], "jobs.tune", "")


class Unwritten(Sweep):
    """A sweep that writes no record, for tests that do not need it: fsync takes milliseconds."""

    def _write(self, trial):
        pass


def sweep_of(folder, *flags, kind=Unwritten):
    """Return a sweep that resumes the record in `folder`."""
    config = config_of(folder, *flags)
    plan = SweepPlan.of(config, SUMMARY)
    searcher = plan.searcher(space(config, config.space))
    return kind(plan, Location.parse(str(folder)), searcher.next)


def row_of(sweep, trial, epoch):
    """Return the row of an epoch; lr 1e-2 and depth 3 have the best values."""
    seen = epoch * 640
    sample = trial.sample
    off = math.log10(sample.get("optim.lr", 1e-2)) + 2
    worth = 0.9 - 0.1 * abs(off) - 0.03 * abs(sample["model.depth"] - 3)
    value = worth * (1 - math.exp(-seen * trial.flops / (0.2 * sweep.plan.trial_budget)))
    return {
        "epoch": epoch,
        "samples_seen": seen,
        "images_per_s": 1e9 / trial.flops,
        "ema_accuracy": value,
        "val_accuracy": value - 0.01,
    }


def run(sweep, slots=2, reports=None):
    """Run trials in turns, up to `reports` epochs; return (number, epoch, continues) of each."""
    running, done, events = {}, set(), []
    while reports is None or len(events) < reports:
        while len(running) < slots and (trial := sweep.next_trial()) is not None:
            running[trial.number] = trial
        if not running:
            break
        number = min(running, key=lambda n: (running[n].samples_seen * running[n].flops, n))
        trial = running[number]
        epoch = len(trial.rows) + 1
        continues = sweep.report(number, row_of(sweep, trial, epoch))
        events.append((number, epoch, continues))
        if not continues:
            sweep.release(number)
        elif epoch == trial.epochs:
            sweep.end(number, "finished")
        if not continues or epoch == trial.epochs:
            del running[number]
            done.add(number)
    return events
