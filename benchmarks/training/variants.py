"""Variants of a recipe, each trained for the same CPU time of one core, compared.

    python -m benchmarks.training.variants --minutes 10 --at-once 2 --data PATH
    python -m benchmarks.training.variants --job finetune --data sam_train/ \\
        --config masking/weights/recipes/mini.yaml --variants benchmarks/training/starts.yaml

Every variant is the job with additional flags. Its epochs, at least one, follow from its pace,
measured as CPU time of some steps, so that other work on the machine does not reduce its budget.
Figures are of the validation set at the best epoch, one seed each.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from jobs.classifier.task import TrainConfig, VitTask, load
from jobs.cluster.workers import keep_memory
from jobs.run.config import parse
from jobs.run.machine import hardware, versions
from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.data import load as load_pairs
from jobs.segmenter.task import SegmentTask
from jobs.training.ranks import Ranks

STEPS = 12
"""Steps that are timed, after a third as many for warm-up."""


@dataclass(frozen=True)
class Job:
    """A training job whose recipes are varied."""

    config: type
    task: Callable[[Any], Any]
    """Makes the task of a single worker from a config."""
    warmup: str
    """The flag that sets the epochs of warm-up."""
    figures: tuple[str, ...]
    """Names of the figures in its summary.json."""


HERE = (torch.device("cpu"), Ranks(0, 1))
JOBS = {
    "train": Job(
        TrainConfig,
        lambda config: VitTask(config, load(config), *HERE),
        "--optim.warmup-epochs",
        ("val_accuracy", "numerics"),
    ),
    "finetune": Job(
        FinetuneConfig,
        lambda config: SegmentTask(config, load_pairs(config), *HERE),
        "--warmup-epochs",
        ("miou_1", "miou_3", "miou_5", "precision"),
    ),
}


def pace(job: Job, flags: Sequence[str]) -> tuple[float, int]:
    """Return images per second of CPU time, and images per epoch; runs in a process of its own."""
    keep_memory()
    torch.set_num_threads(1)
    config = parse(job.config, [*flags, "--out", "unused"], "pace", "")
    task = job.task(config)
    model = task.build()
    optimizer, average = task.optimizer(model), task.average(model)
    task.apply(model, task.decide(model, config.batch_size))
    start = 0.0
    for step in range(STEPS + STEPS // 3):
        if step == STEPS // 3:
            start = time.process_time()
        task.gradients(model, 0, step, step)
        task.update(model, optimizer, average, step)
    spent = time.process_time() - start
    return STEPS * config.batch_size / spent, task.steps_per_epoch * config.batch_size


def train(which: str, name: str, flags: list[str], minutes: float, out: Path) -> dict[str, Any]:
    """Measure the pace of a variant, then train it for `minutes`; returns its row of figures."""
    job = JOBS[which]
    pace = [sys.executable, "-m", "benchmarks.training.variants", "--job", which, "--pace"]
    command = [*pace, "--", *flags]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rate, images = json.loads(output.splitlines()[-1])
    epochs = max(1, round(minutes * 60 * rate / images))
    folder = out / name.replace(" ", "_")
    more = [f"--epochs={epochs}", f"{job.warmup}={epochs * 0.1:.2f}", "--out", str(folder)]
    command = [sys.executable, "-m", f"jobs.{which}", *flags, *more]
    with (out / f"{name}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)
    summary = json.loads((folder / "summary.json").read_text())
    row = {"variant": name, "flags": flags, "images_per_cpu_s": rate, "epochs": epochs}
    row |= {key: summary[key] for key in (*job.figures, "samples_seen", "train_s")}
    print(f"{name}: {json.dumps(row)}", flush=True)
    return row


def main(argv: Sequence[str] | None = None) -> int:
    """Train all variants and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", choices=JOBS, default="train", help="the job (train)")
    parser.add_argument("--config", default="cifar10_cpu.yaml", help="the recipe")
    parser.add_argument("--variants", type=Path, help="YAML file: flags by name of variant")
    parser.add_argument("--minutes", type=float, default=10, help="minutes of one core per variant")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/variants"))
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--pace", action="store_true", help=argparse.SUPPRESS)
    options, more = parser.parse_known_args(argv)
    if options.pace:
        print(json.dumps(pace(JOBS[options.job], [flag for flag in more if flag != "--"])))
        return 0
    source = options.variants or Path(__file__).with_name("variants.yaml")
    variants: dict[str, str] = yaml.safe_load(source.read_text())
    options.out.mkdir(parents=True, exist_ok=True)

    def run(item: tuple[str, str]) -> dict[str, Any]:
        name, flags = item
        base = ["--config", options.config, *more]
        given = [*base, *(flags or "").split()]
        return train(options.job, name, given, options.minutes, options.out)

    with ThreadPoolExecutor(options.at_once) as pool:
        rows = list(pool.map(run, variants.items()))
    columns = ("variant", *JOBS[options.job].figures, "epochs", "images_per_cpu_s", "train_s")
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        cells = [f"{v:.4g}" if isinstance(v := row[c], float) else str(v) for c in columns]
        print(f"| {' | '.join(cells)} |")
    facts = {"hardware": hardware(), "versions": versions()}
    print(f"\n{json.dumps(facts['hardware'])}\n{json.dumps(facts['versions'])}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, **facts}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
