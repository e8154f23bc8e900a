"""Train every sample of a grid to the end, and record the curves for benchmarks.sweeps.tune.

    python -m benchmarks.sweeps.tune_record --data cifar10/ --seeds 3 --out runs/tune

The data are CIFAR-10 in Parquet: 4,000 images of the first training shard for training, 2,000 of
the last one for validation. The same command resumes; the table is written when all are over.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import torch

from benchmarks.training.plain_train import Silent
from jobs.cluster.workers import keep_memory
from jobs.run.config import parse
from jobs.run.machine import hardware, versions
from jobs.storage.location import Location
from jobs.sweep.config import TuneConfig
from jobs.sweep.plan import SweepPlan
from jobs.sweep.processes import train_trial
from jobs.training.checkpoints import Checkpoints
from vit import search
from vit.data import sets

TRAIN, VAL = 4000, 2000
RECIPE = Path(__file__).parent / "tune.yaml"


def subset(source: Path, folder: Path) -> Path:
    """Write the part of CIFAR-10 that trials use, and return its folder."""
    if not folder.exists():
        shards = sorted(source.glob("train*.parquet"))
        temporary = folder.with_suffix(".new")
        temporary.mkdir(parents=True, exist_ok=True)
        for name, shard, count in (("train", shards[0], TRAIN), ("val", shards[-1], VAL)):
            table = pq.read_table(shard, columns=["image", "label"])
            pq.write_table(table.slice(0, count), temporary / f"{name}.parquet")
        temporary.rename(folder)
    return folder


def plan_of(folder: Path, out: Path, flags: Sequence[str] = ()) -> SweepPlan:
    """Return the plan of tune.yaml on the subset in `folder`."""
    given = ["--config", str(RECIPE), "--data", str(folder), "--out", str(out), *flags]
    config = parse(TuneConfig, given, "benchmarks.sweeps.tune", "")
    return SweepPlan.of(config, sets.check(config.dataset, [folder]))


def train(job: tuple[SweepPlan, search.Sample, int, Path]) -> None:
    """Train one trial to the end, in a process of its own, and record its curve."""
    plan, sample, seed, folder = job
    if (folder / "curve.json").exists():
        return
    keep_memory()
    torch.set_num_threads(1)
    config = replace(plan.settings(sample, Location.parse(str(folder))), seed=seed)
    result = train_trial(config, torch.device("cpu"), Silent(), test=False)
    assert result.ended in ("epochs", "non-finite"), result.error
    temporary = folder / "curve.new"
    temporary.write_text(json.dumps({"history": result.state.history, "ended": result.ended}))
    temporary.rename(folder / "curve.json")
    Checkpoints(Location.parse(str(folder / "checkpoints")), "").folder.delete()


def main(argv: Sequence[str] | None = None) -> int:
    """Record the curves that are missing, then write the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/tune"))
    parser.add_argument("--at-once", type=int, default=os.cpu_count())
    parser.add_argument(
        "--table", type=Path, default=Path("benchmarks/results/sweeps/tune_curves.parquet")
    )
    options = parser.parse_args(argv)
    plan = plan_of(subset(options.data, options.out / "data"), options.out)
    grid = list(search.grid(search.space(plan.config, plan.config.space)))
    work = [
        (plan, sample, seed, options.out / f"seed-{seed}" / f"{number:03}")
        for seed in range(options.seeds)
        for number, sample in enumerate(grid)
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.at_once, spawn, max_tasks_per_child=1) as pool:
        for done, _ in enumerate(pool.map(train, work), 1):
            print(f"{done} of {len(work)}", flush=True)
    frames = []
    for _, sample, seed, folder in work:
        rows = pd.DataFrame(json.loads((folder / "curve.json").read_text())["history"])
        rows = rows[
            ["epoch", "samples_seen", "val_accuracy", "val_loss", "ema_accuracy", "ema_loss"]
        ]
        frames.append(rows.assign(seed=seed, **sample))
    table = pd.concat(frames, ignore_index=True)
    table.attrs = {"hardware": hardware(), "versions": versions()}
    table.to_parquet(options.table, compression="zstd")
    print(f"{len(work)} curves, {len(table):,} rows: {options.table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
