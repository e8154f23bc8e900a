"""A data set of four times `dataset.cache_gb` beside the same one decoded: images/s and memory.

    python -m benchmarks.training.stream --images 200000 --workers 2 --repeats 5

Makes JPEG images of 32x32 in Parquet shards, smooth random colours from a fixed seed, and trains
`cifar10_cpu.yaml`'s model on them with the task's own steps (no Ray, no evaluation, no saving):
`resident` with the pixels decoded once into the cache, `streamed` with a cache of a quarter of
their size, so that every image is decoded when it is needed. Both run in turn, each time in fresh
processes, at the numerics that the first run chooses. Memory is the sum of the unique set sizes
(USS, without shared pages) of all processes of the training and of decoding. Other flags are passed
to `jobs.train`, such as `--precision float32`.
"""

import argparse
import io
import json
import math
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from jobs.classifier.task import TrainConfig, VitTask, load
from jobs.cluster.workers import keep_memory
from jobs.run.config import parse
from jobs.run.machine import hardware, versions
from jobs.training.ranks import Ranks

SIDE, CLASSES, SHARD = 32, 10, 10_000
WARMUP = 5
SAMPLES = 20
"""How often memory is measured in a run."""


def make(folder: Path, images: int) -> None:
    """Write `images` JPEGs into shards, the same ones every time, unless they exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, images, SHARD)):
        path = folder / f"train-{number:03}.parquet"
        if path.exists():
            continue
        count = min(SHARD, images - first)
        drawn = np.random.default_rng(number).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
        table = pa.table({"image": [jpeg(x) for x in drawn], "label": np.arange(count) % CLASSES})
        pq.write_table(table, path.with_suffix(".part"), row_group_size=1000)
        path.with_suffix(".part").rename(path)


def jpeg(small: np.ndarray) -> bytes:
    """Return a smooth SIDE x SIDE picture of (6, 6, 3) colours as JPEG (quality 75, 4:2:0)."""
    file = io.BytesIO()
    picture = Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    picture.save(file, "jpeg", quality=75)
    return file.getvalue()


def train(rank: int, config: TrainConfig, port: int, given: dict[str, Any], out: Path) -> None:
    """Train for some steps on one rank; rank 0 writes its figures to `out`.

    Args:
        rank: this rank, of config.workers.
        config: the settings of the training.
        port: local port on which ranks meet.
        given: "steps", and the "numerics" of an earlier run or None.
        out: the JSON file.
    """
    keep_memory()
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=config.workers)
    ranks = Ranks(rank, config.workers)
    task = VitTask(config, load(config), torch.device("cpu"), ranks)
    bare = task.build()
    optimizer, average = task.optimizer(bare), task.average(bare)
    facts = ranks.agree(task.decide(bare, math.ceil(config.batch_size / config.workers)))
    task.apply(bare, facts | ({"numerics": given["numerics"]} if given["numerics"] else {}))
    model = DistributedDataParallel(bare, gradient_as_bucket_view=True)
    memory, start, every = [], 0.0, max(1, given["steps"] // SAMPLES)
    for step in range(WARMUP + given["steps"]):
        if step == WARMUP:
            start = time.perf_counter()
        task.gradients(model, *divmod(step, task.steps_per_epoch), step)
        task.update(model, optimizer, average, step)
        if rank == 0 and step % every == 0:
            memory.append(own_memory(os.getppid()))
    seconds = time.perf_counter() - start
    if rank == 0:
        rate = given["steps"] * config.batch_size / seconds
        found = {"images_per_s": rate, "memory_mb": memory, "numerics": facts["numerics"]}
        out.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def own_memory(pid: int) -> float:
    """Return the unique memory, in MiB, of all processes below `pid`."""
    sizes = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            sizes.append(process.memory_full_info().uss)
        except psutil.Error:  # the process has just ended
            continue
    return sum(sizes) / 2**20


def run(config: TrainConfig, given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train in fresh processes; returns images/s, memory over time and the numerics."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = folder / "figures.json"
    mp.spawn(train, args=(config, port, given, out), nprocs=config.workers)
    return json.loads(out.read_text())


def settings(options: argparse.Namespace, flags: Sequence[str], shards: Path) -> TrainConfig:
    """Return the recipe's settings for the shards, with a cache for a quarter of their pixels."""
    room = options.images * 3 * SIDE * SIDE / 2**30 / 4
    needed = math.ceil((options.steps + WARMUP) * 128 / options.images) + 1
    own = ["--config", "cifar10_cpu.yaml", "--out", "unused", "--data", str(shards)]
    own += ["--dataset.name", "parquet", f"--dataset.cache-gb={room}", f"--epochs={needed + 1}"]
    own += [f"--model.image-size={SIDE}", "--dataset.val-fraction=0.01"]
    return parse(TrainConfig, [*own, f"--workers={options.workers}", *flags], "stream", "")


def compare(config: TrainConfig, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run both paths in turn; returns their images/s, ratios and the memory of the streamed one."""
    streamed = config
    resident = replace(config, dataset=replace(config.dataset, cache_gb=1e6))
    started = time.perf_counter()
    for path in (resident, streamed):
        load(path)
        print(f"made ready in {time.perf_counter() - started:.0f} s", flush=True)
        started = time.perf_counter()
    given: dict[str, Any] = {"steps": WARMUP, "numerics": None}
    given = {"steps": options.steps, "numerics": run(resident, given, folder)["numerics"]}
    rates: dict[str, list[float]] = {"resident": [], "streamed": []}
    memory: list[list[float]] = []
    for number in range(options.repeats):
        pair = [("resident", resident), ("streamed", streamed)]
        for name, path in pair if number % 2 == 0 else pair[::-1]:
            found = run(path, given, folder)
            rates[name].append(found["images_per_s"])
            if name == "streamed":
                memory.append(found["memory_mb"])
            print(f"{name}: {found['images_per_s']:,.0f} images/s", flush=True)
    ratios = [b / a for a, b in zip(rates["resident"], rates["streamed"], strict=True)]
    return {**rates, "ratio": ratios, "memory_mb": memory, "numerics": given["numerics"]}


def report(found: dict[str, Any], images: int, cache_gb: float) -> None:
    """Print two tables in Markdown."""
    print("\n| images | dataset.cache_gb | resident, images/s | streamed, images/s | ratio | n |")
    print("| --- | --- | --- | --- | --- | --- |")
    cells = [spread(found[name], ",.0f") for name in ("resident", "streamed")]
    ratio = spread(found["ratio"], ".3f")
    print(
        f"| {images:,} | {cache_gb:.3f} | {' | '.join(cells)} | {ratio} | {len(found['ratio'])} |"
    )
    print("\n| memory of the streamed training, MiB | start | middle | end |")
    print("| --- | --- | --- | --- |")
    for number, memory in enumerate(found["memory_mb"], 1):
        later = memory[1:] or memory  # the first steps still allocate what every step needs
        start, middle, end = later[0], later[len(later) // 2], later[-1]
        print(f"| run {number} | {start:,.0f} | {middle:,.0f} | {end:,.0f} |")


def spread(values: Sequence[float], form: str) -> str:
    """Return the median, minimum and maximum as text."""
    middle, low, high = (format(f(values), form) for f in (statistics.median, min, max))
    return f"{middle} ({low} to {high})"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the images, train on them both ways, print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=300, help="steps that are timed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep images and caches in this folder")
    parser.add_argument("--json", type=Path, help="file for the result")
    options, flags = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        os.environ["PATCHRAY_CACHE"] = str(folder / "cache")
        make(folder / "shards", options.images)
        config = settings(options, flags, folder / "shards")
        found = compare(config, options, folder)
    result = {"images": options.images, "steps": options.steps, "workers": options.workers}
    result |= {"cache_gb": config.dataset.cache_gb, **found}
    result |= {"hardware": hardware(), "versions": versions()}
    report(found, options.images, config.dataset.cache_gb)
    print(f"\n{json.dumps(result['hardware'])}\n{json.dumps(result['versions'])}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
