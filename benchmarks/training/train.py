"""`jobs.train` beside a loop over timm's parts, in images/s of training steps; parts of a step.

    python -m benchmarks.training.train --config cifar10_cpu.yaml --repeats 5 --data PATH

The sides run in turn, so that a slow minute affects all of them:

- `job`: `jobs.train` on Ray, as a user starts it;
- `loop`: its epoch loop without Ray, under torchrun; the difference to `job` is Ray's share;
- `steps`: only its steps, in a plain PyTorch loop; the difference to `loop` is the loop's share;
- `timm`: `benchmarks.training.timm_train`, timm's data set, loader, model, optimizer and scheduler.

All train one epoch of `--steps` steps of the recipe's global batch, on the same processes and
threads, at the same precision, from one folder of image files that holds a draw of the recipe's
training images as they are stored. Other flags are passed to `jobs.train`, such as
`--precision float32` or `--model.stem patch`.

Only training steps count, not starting up, evaluation or saving. By then, ours has decoded the
images into its cache, once for all epochs and runs; timm's loader reads and decodes them in every
epoch. For timm, the best of 0, 1 and 2 loader processes per rank is used, then of attention with
and without torch's fused kernel, then of channels last or first, each tried in a short run before
the repeats. timm has no convolutional stem, so it gets ours (`--model.stem patch` compares without
it). If the recipe leaves the precision open, ours probes at each start, as it does for a user, and
timm gets what the first probe chose.
"""

import argparse
import importlib.metadata
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from benchmarks.training.plain_train import stepping
from jobs.classifier.task import TrainConfig, VitTask, load, local_paths
from jobs.cluster.workers import keep_memory
from jobs.run import machine
from jobs.run.config import as_yaml, parse
from jobs.training.ranks import Ranks
from vit.data.decode import DataError, Encoded
from vit.data.formats import find

SIDES = ("job", "loop", "steps", "timm")
PARTS = ("data", "augment", "forward", "backward", "optimizer")
TRIAL_STEPS = 40
"""Steps of the short runs that choose timm's settings."""
PROFILED_STEPS = 30
"""Steps that are profiled for the parts of a step."""
VAL_IMAGES = 5
"""Images of each class for the job's evaluation, which is not timed."""


@dataclass(frozen=True)
class Bench:
    """The settings that all runs share, and a folder for their files."""

    config: TrainConfig
    root: Path

    def run(self, side: str, number: int, timm: Sequence[str] = ()) -> float:
        """Run a side; returns its images/s."""
        return self._job(number) if side == "job" else self.ranks(side, timm)["images_per_s"]

    def _job(self, number: int) -> float:
        out = self.root / f"job-{number}"
        _call([sys.executable, "-m", "jobs.train", "--config", self._file(), "--out", str(out)])
        return float(json.loads((out / "summary.json").read_text())["images_per_s"])

    def ranks(self, side: str, flags: Sequence[str] = ()) -> dict[str, Any]:
        """Run a side without Ray; returns the JSON that it printed."""
        workers = self.config.workers
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
        module = "timm_train" if side == "timm" else "plain_train"
        which = [] if side == "timm" else ["--side", side]
        command = [sys.executable, *torchrun, "-m", f"benchmarks.training.{module}"]
        printed = _call([*command, "--config", self._file(), *which, *flags])
        return json.loads(printed.strip().splitlines()[-1])

    def _file(self) -> str:
        path = self.root / "config.yaml"
        path.write_text(as_yaml(self.config))
        return str(path)


def _call(command: Sequence[str]) -> str:
    """Run a command; returns its stdout, raises with its stderr."""
    threads = {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{ran.stdout}\n{ran.stderr}")
    return ran.stdout


def prepare(flags: Sequence[str], steps: int, root: Path) -> TrainConfig:
    """Write the folder of images; returns the settings for every side to train on it."""
    config = parse(TrainConfig, [*flags, "--out", str(root / "unused")], "jobs.train", "")
    folder = root / "images"
    write_images(config, folder, steps * config.batch_size)
    return replace(
        config,
        config=None,
        data=(str(folder),),
        dataset=replace(config.dataset, name="imagefolder"),
        epochs=1,
        optim=replace(config.optim, warmup_epochs=0.5),
    )


def write_images(config: TrainConfig, folder: Path, count: int) -> None:
    """Draw `count` training images of the recipe's data set and a few for validation, as files."""
    reader = find(config.dataset, local_paths(config))
    survey = reader.survey()
    classes = survey.classes
    labels = np.concatenate([values for _, values in survey.parts["train"]])
    order = np.random.default_rng(0).permutation(len(labels))
    by_class = (order[labels[order] == label] for label in range(len(classes)))
    val = np.concatenate([rows[:VAL_IMAGES] for rows in by_class])  # no class may be empty
    train = order[~np.isin(order, val)][:count]
    if len(train) < count:
        most = len(train) // config.batch_size
        raise SystemExit(f"--steps: the training set has images for {most} steps at most")
    where = dict.fromkeys(train.tolist(), "train") | dict.fromkeys(val.tolist(), "val")
    for part in ("train", "val"):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
    for row, (_, image) in enumerate(reader.images("train")):
        if row in where and not isinstance(image, DataError):
            write_image(folder / where[row] / classes[labels[row]] / f"{row:07}", image)


def write_image(path: Path, image: Encoded) -> None:
    """Write an image as it is stored, with its format's suffix; arrays of pixels as PNG."""
    if isinstance(image, np.ndarray):
        Image.fromarray(image).save(path.with_suffix(".png"))
        return
    content = image if isinstance(image, bytes) else image.read_bytes()
    kind = str(Image.open(io.BytesIO(content)).format).lower()
    path.with_suffix(f".{kind}").write_bytes(content)


def best_of_timm(bench: Bench, precision: str) -> tuple[list[str], dict[str, float]]:
    """Return timm's fastest flags, chosen one after another, and the images/s of all flags tried.

    Each is a short run, enough to see differences above the noise.
    """
    tried: dict[str, float] = {}

    def rate(flags: list[str]) -> float:
        name = " ".join(flags)
        tried[name] = bench.ranks("timm", [*flags, "--steps", str(TRIAL_STEPS)])["images_per_s"]
        return tried[name]

    given = ["--precision", precision, "--loader-workers"]
    best = max(([*given, str(count)] for count in (0, 1, 2)), key=rate)
    for extra in ("--no-fused-attention", "--channels-last"):
        if rate([*best, extra]) > tried[" ".join(best)]:
            best = [*best, extra]
    return best, tried


def compare(bench: Bench, sides: Sequence[str], repeats: int, precision: str) -> dict[str, Any]:
    """Run all sides in turn; returns timm's flags and the images/s of each run."""
    timm, tried = best_of_timm(bench, precision) if "timm" in sides else ([], {})
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(repeats):
        for side in sides if number % 2 == 0 else sides[::-1]:
            rates[side].append(bench.run(side, number, timm if side == "timm" else ()))
            print(f"{number + 1}/{repeats} {side}: {rates[side][-1]:,.0f}", file=sys.stderr)
    return {"timm": timm, "timm_tried": tried, "images_per_s": rates}


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Return the median, minimum and maximum as text."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def table(rates: dict[str, list[float]]) -> str:
    """Return images/s of every side, and the first side's ratio to it run by run, in Markdown."""
    first, *_ = rates
    rows = [f"| side | images/s | {first} over it | n |", "| --- | --- | --- | --- |"]
    for side, values in rates.items():
        ratios = [a / b for a, b in zip(rates[first], values, strict=True)]
        rows.append(f"| {side} | {spread(values)} | {spread(ratios, 3)} | {len(values)} |")
    return "\n".join(rows)


def breakdown(rank: int, config: TrainConfig, port: int, results: Any) -> None:
    """Profile the job's own steps on this rank, without Ray."""
    keep_memory()
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=config.workers)
    task = VitTask(config, load(config), torch.device("cpu"), Ranks.here())
    step = stepping(task)
    count = min(PROFILED_STEPS, task.steps_per_epoch // 3)
    for number in range(count):
        step(number)
    start = time.perf_counter()
    for number in range(count, 2 * count):
        step(number)
    spent = {"step": (time.perf_counter() - start) / count * 1000}
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        for number in range(2 * count, 3 * count):
            step(number)
    if rank == 0:
        results.put(spent | parts_of(trace, count))
    dist.barrier()
    dist.destroy_process_group()


def parts_of(trace: profile, steps: int) -> dict[str, float]:
    """Return milliseconds per step of the parts that the task names, and of the all-reduce."""
    spent: dict[str, float] = defaultdict(float)
    for event in trace.events():
        name = "all-reduce" if event.name.startswith("gloo:all_reduce") else event.name
        if name in PARTS:
            spent[name] += event.time_range.elapsed_us() / steps / 1000
    return spent


def parts_of_a_step(config: TrainConfig) -> dict[str, float]:
    """Return milliseconds per step of its parts on rank 0, all ranks running."""
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    mp.spawn(breakdown, args=(config, 29511, results), nprocs=config.workers)
    return results.get()


def main(argv: Sequence[str] | None = None) -> int:
    """Run all sides in turn and print tables in Markdown."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--config", default="cifar10_cpu.yaml", help="a recipe")
    parser.add_argument("--workers", type=int, default=2, help="processes of every side")
    parser.add_argument(
        "--steps", type=int, default=100, help=f"steps of every run; at least {TRIAL_STEPS}"
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of every side")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--json", type=Path, help="file for the result")
    options, flags = parser.parse_known_args(argv)
    if options.steps < TRIAL_STEPS:
        parser.error(f"--steps is {options.steps}; at least {TRIAL_STEPS} are needed")
    shared = ["--config", options.config, "--workers", str(options.workers)]
    flags = [flag for flag in flags if flag != "--"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        os.environ["PATCHRAY_CACHE"] = str(root / "cache")
        config = prepare([*shared, *flags], options.steps, root)
        load(config)  # the cache is filled once, before any clock runs
        bench = Bench(config, root)
        numerics = bench.ranks("steps", ["--steps", str(TRIAL_STEPS)])["numerics"]
        result = compare(bench, options.sides, options.repeats, numerics["precision"])
        result |= {"numerics": numerics, "milliseconds": parts_of_a_step(config)}
    result |= {"command": [options.config, *flags], "workers": options.workers}
    result |= {"hardware": machine.hardware(), "versions": versions()}
    print(table(result["images_per_s"]))
    print(f"\nours: {json.dumps(numerics)}; timm: {' '.join(result['timm'])}")
    print("\n| part | ms a step |\n| --- | --- |")
    for name, value in result["milliseconds"].items():
        print(f"| {name} | {value:.2f} |")
    print(f"\n{json.dumps(result['hardware'])}\n{json.dumps(result['versions'])}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def versions() -> dict[str, str]:
    """Return versions of the packages that the figures depend on."""
    return machine.versions() | {"timm": importlib.metadata.version("timm")}


if __name__ == "__main__":
    sys.exit(main())
