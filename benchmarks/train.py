"""`jobs.train` beside a plain PyTorch loop: images/s of both in one run, and where a step goes.

    python -m benchmarks.train --workers 2 --repeats 5

Both sides train the same ViT on the digits at 32x32 with the same augmentation, batch and
precision, in turn; the plain one is `benchmarks.plain_train`, under torchrun for more than one
worker. Rates are over training steps: starting up and evaluation are left out on both sides.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile

from jobs import runs
from jobs.ranks import Ranks
from jobs.vit_task import TrainConfig, VitTask, load
from vit.config import AugmentConfig, ModelConfig, OptimConfig

SHAPE = ModelConfig(image_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3, mlp_ratio=2.0)
AUGMENT = AugmentConfig(crop_padding=4, hflip=0.5, policy="autoaugment-cifar10")
BATCH, EPOCHS = 64, 8
PARTS = ("data", "augment", "forward", "backward", "optimizer")


def settings(out: str, workers: int) -> TrainConfig:
    """The job's settings."""
    return TrainConfig(
        out=out,
        workers=workers,
        epochs=EPOCHS,
        batch_size=BATCH,
        precision="float32",
        model=SHAPE,
        augment=AUGMENT,
        optim=OptimConfig(warmup_epochs=1),
    )


def job(root: Path, workers: int, number: int) -> dict[str, Any]:
    """Run `jobs.train`; returns its summary."""
    out = root / f"job-{workers}-{number}"
    flags = [f"--{group}.{name}={value}" for group, config in
             (("model", SHAPE), ("augment", AUGMENT)) for name, value in asdict(config).items()
             if not isinstance(value, bool) and value is not None]  # fmt: skip
    command = [sys.executable, "-m", "jobs.train", "--out", str(out), "--workers", str(workers)]
    common = [f"--epochs={EPOCHS}", f"--batch-size={BATCH}", "--precision=float32"]
    subprocess.run(
        [*command, *common, "--optim.warmup-epochs=1", *flags], check=True, capture_output=True
    )
    return json.loads((out / "summary.json").read_text())


def plain(cache: Path, workers: int) -> float:
    """Run the plain loop; returns its images/s."""
    launcher = [sys.executable, "-m"]
    if workers > 1:
        launcher += [
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(workers),
            "-m",
        ]
    flags = ["--epochs", str(EPOCHS), "--batch-size", str(BATCH), "--cache", str(cache)]
    shape = ["--model", json.dumps(asdict(SHAPE)), "--augment", json.dumps(asdict(AUGMENT))]
    ran = subprocess.run(
        [*launcher, "benchmarks.plain_train", *flags, *shape],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return float(json.loads(ran.stdout.strip().splitlines()[-1])["images_per_s"])


def breakdown(rank: int, workers: int, port: int, results: Any) -> None:
    """Profile one epoch of the job's own steps on this rank, without Ray."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    config = settings("unused", workers)
    task = VitTask(config, load(config), torch.device("cpu"), Ranks(rank, workers))
    bare = task.build()
    optimizer = task.optimizer(bare)
    model = torch.nn.parallel.DistributedDataParallel(bare, gradient_as_bucket_view=True)

    def epoch(number: int) -> float:
        start = time.perf_counter()
        for index in range(task.steps_per_epoch):
            step = number * task.steps_per_epoch + index
            task.gradients(model, number, index, step)
            task.update(model, optimizer, step)
        return (time.perf_counter() - start) / task.steps_per_epoch

    epoch(0)
    whole = epoch(1)
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        epoch(2)
    if rank == 0:
        spent: dict[str, float] = defaultdict(float)
        for event in trace.events():
            if event.name in PARTS:
                spent[event.name] += event.time_range.elapsed_us() / task.steps_per_epoch / 1000
            elif event.name.startswith("gloo:all_reduce"):
                spent["all-reduce"] += event.time_range.elapsed_us() / task.steps_per_epoch / 1000
        start = time.perf_counter()
        for _ in range(5):
            task.evaluate(bare, "val")
        results.put(
            {"step": whole * 1000, "evaluation": (time.perf_counter() - start) * 200, **spent}
        )
    dist.barrier()
    dist.destroy_process_group()


def steps_of(workers: int) -> dict[str, float]:
    """Milliseconds of the parts of a step on rank 0."""
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    mp.spawn(breakdown, args=(workers, 29511, results), nprocs=workers)
    return results.get()


def epoch_rest(root: Path, workers: int, number: int, evaluation: float) -> float:
    """Median milliseconds of an epoch outside of steps and evaluation: saving and reporting."""
    import pandas as pd

    table = pd.read_csv(root / f"job-{workers}-{number}/metrics.csv")
    train = table["samples_seen"] / table["images_per_s"]  # the rate is over the run so far
    rest = (table["seconds"].diff() - train.diff()).dropna() * 1000
    return max(0.0, float(rest.median()) - evaluation)


def spread(values: Sequence[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run both sides in turn and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args(argv)
    result: dict[str, Any] = {"hardware": runs.hardware(), "versions": runs.versions()}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["PATCHRAY_CACHE"] = str(root / "cache")
        load(settings("unused", 1))
        print("| workers | jobs.train, images/s | plain loop, images/s | ratio | n |")
        print("| --- | --- | --- | --- | --- |")
        for workers in options.workers:
            ours, theirs = [], []
            for number in range(options.repeats):
                summary = job(root, workers, number)
                ours.append(summary["images_per_s"])
                theirs.append(plain(root / "cache", workers))
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            result[f"workers_{workers}"] = {
                "job": ours, "plain": theirs, "ratio": ratios, "rss_mb": summary["peak_rss_mb"],
            }  # fmt: skip
            ratio = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            print(f"| {workers} | {spread(ours)} | {spread(theirs)} | {ratio} | {len(ours)} |")
        most = max(options.workers)
        if most > 1:
            parts = steps_of(most)
            parts["save and report, an epoch"] = epoch_rest(root, most, 0, parts["evaluation"])
            result["milliseconds"] = parts
            print(f"\n| part, {most} workers | ms |\n| --- | --- |")
            for name, value in parts.items():
                print(f"| {name} | {value:.2f} |")
    print(f"\n{json.dumps(result['hardware'])}\n{json.dumps(result['versions'])}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
