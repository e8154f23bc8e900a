"""Images decoded ahead of a training: `vit.data.pool` beside torch's DataLoader.

    python -m benchmarks.training.loader --repeats 7

Makes JPEGs of two sizes (smooth random colours from a fixed seed, packed as `vit.data.cache` packs
them) and decodes the same batches in the same order three ways: with `vit.data.pool.Pool`, and with
`torch.utils.data.DataLoader` whose workers are forked or spawned. All three call the same `decode`
in the same number of processes, keep the same number of batches ahead and give a batch as a
tensor of its own. A way runs in a fresh process each time; ways take turns, each repeat begins with
another one.

Rates count from the first batch to the last, with nothing else to do for the process that takes
them. The start is the time until the first batch, imports of the training process left out.
Memory is the proportional set size (PSS) of the process and its workers, halfway.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jobs.run.machine import hardware, versions
from vit.data.decode import Pack
from vit.data.pool import AHEAD, Pool


class Size(NamedTuple):
    """Images of one size, and how many of them are decoded."""

    width: int
    height: int
    decoded: int
    """Side in pixels to which images are decoded."""
    batch: int
    batches: int


SIZES = {
    "small": Size(width=40, height=32, decoded=32, batch=128, batches=240),
    "large": Size(width=500, height=375, decoded=224, batch=32, batches=64),
}
WAYS = ("pool", "loader_fork", "loader_spawn")
IMAGES = 512
"""Different images of a size; batches draw them again and again."""


def make(folder: Path, size: Size) -> None:
    """Write IMAGES JPEGs (quality 75, 4:2:0) as a pack."""
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0).integers(0, 256, (IMAGES, 9, 12, 3), dtype=np.uint8)
    lengths = []
    with (folder / "images").open("wb") as file:
        for colours in drawn:
            content = io.BytesIO()
            picture = Image.fromarray(colours)
            picture = picture.resize((size.width, size.height), Image.Resampling.BICUBIC)
            picture.save(content, "jpeg", quality=75)
            lengths.append(file.write(content.getvalue()))
    lengths = np.array(lengths, np.int64)
    np.save(folder / "index.npy", np.stack([np.cumsum(lengths) - lengths, lengths], axis=1))


class Decoded(Dataset[Tensor]):
    """The images of a pack as DataLoader's workers want them."""

    def __init__(self, folder: Path, size: int) -> None:
        """Remember the arguments of a `Pack`, which each worker opens for itself."""
        self.arguments = folder, size
        self.pack: Pack | None = None

    def __getitem__(self, row: int) -> Tensor:
        """Decode one image: (3, S, S) uint8."""
        self.pack = self.pack or Pack(*self.arguments)
        return torch.from_numpy(self.pack.decode(row))


def from_pool(folder: Path, size: Size, batches: list[np.ndarray], processes: int) -> Iterator:
    """Yield (b, 3, S, S) uint8 tensors that our own processes decode."""
    pool = Pool(Pack(folder, size.decoded), size.batch, processes)
    rest = iter(batches)
    for _ in batches:
        while not pool.full and (rows := next(rest, None)) is not None:
            pool.submit(rows)
        yield torch.from_numpy(pool.receive()[0]).clone()


def from_loader(
    folder: Path, size: Size, batches: list[np.ndarray], processes: int, context: str
) -> Iterator:
    """Yield the same tensors through torch's DataLoader."""
    return iter(
        DataLoader(
            Decoded(folder, size.decoded),
            batch_sampler=[rows.tolist() for rows in batches],
            num_workers=processes,
            prefetch_factor=max(1, round(AHEAD / processes)),
            multiprocessing_context=context,
        )
    )


def measure(way: str, folder: Path, size: Size, processes: int) -> dict[str, Any]:
    """Decode all batches one way; returns figures and a sum over the pixels.

    `load` is the number of runnable processes on the machine: others slow all ways down.
    """
    torch.set_num_threads(1)
    draws = np.random.default_rng(1)
    batches = [draws.integers(0, IMAGES, size.batch) for _ in range(size.batches)]
    began = time.perf_counter()
    if way == "pool":
        decoded = from_pool(folder, size, batches, processes)
    else:
        decoded = from_loader(folder, size, batches, processes, way.removeprefix("loader_"))
    total, memory = int(next(decoded).sum()), 0.0
    first = time.perf_counter()
    paused = 0.0
    for number, images in enumerate(decoded, 1):
        total += int(images[:, :, 0, 0].sum())
        if number == size.batches // 2:
            paused = time.perf_counter()
            memory = tree_memory()
            paused = time.perf_counter() - paused
    seconds = time.perf_counter() - first - paused
    rate = (size.batches - 1) * size.batch / seconds
    return {
        "images_per_s": rate,
        "start_s": first - began,
        "memory_mb": memory,
        "load": os.getloadavg()[0],
        "sum": total,
    }


def tree_memory() -> float:
    """MiB of this process and all processes below it, shared pages counted once."""
    me = psutil.Process()
    processes = [me, *me.children(recursive=True)]
    return sum(process.memory_full_info().pss for process in processes) / 2**20


def compare(folder: Path, repeats: int, processes: int) -> dict[str, Any]:
    """Measure every way at every size in turn; returns lists of figures by size and way."""
    found: dict[str, Any] = {name: {way: [] for way in WAYS} for name in SIZES}
    for number in range(repeats):
        turn = number % len(WAYS)
        for name in SIZES:
            for way in WAYS[turn:] + WAYS[:turn]:
                command = [sys.executable, "-m", __spec__.name, "--processes", str(processes)]
                command += ["--one", way, name, str(folder / name)]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                found[name][way].append(json.loads(output))
                print(f"{name} {way}: {found[name][way][-1]['images_per_s']:,.0f} images/s")
        sums = {one["sum"] for name in SIZES for way in WAYS for one in found[name][way]}
        assert len(sums) == len(SIZES), "the ways decode different pixels"
    return found


def summarize(found: dict[str, Any]) -> dict[str, Any]:
    """Median, least and most of each figure, and of the pool's rate over each other way's."""
    summary: dict[str, Any] = {}
    for name, ways in found.items():
        figures = {
            way: {key: spread([one[key] for one in runs]) for key in runs[0] if key != "sum"}
            for way, runs in ways.items()
        }
        rates = {way: [one["images_per_s"] for one in runs] for way, runs in ways.items()}
        ratios = {
            f"pool_over_{way}": spread(
                [a / b for a, b in zip(rates["pool"], rates[way], strict=True)]
            )
            for way in WAYS[1:]
        }
        summary[name] = figures | ratios
    return summary


def spread(values: Sequence[float]) -> list[float]:
    """Median, least and most."""
    return [round(f(values), 3) for f in (statistics.median, min, max)]


def report(summary: dict[str, Any]) -> None:
    """Print a table in Markdown."""
    print("\n| images | way | images/s | pool / way | start, s | memory, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, ways in summary.items():
        for way in WAYS:
            ratio = ways.get(f"pool_over_{way}", [1.0, 1.0, 1.0])
            cells = [(ways[way]["images_per_s"], ",.0f"), (ratio, ".2f")]
            cells += [(ways[way]["start_s"], ".2f"), (ways[way]["memory_mb"], ",.0f")]
            text = [f"{m:{form}} ({low:{form}} to {high:{form}})" for (m, low, high), form in cells]
            print(f"| {name} | {way} | {' | '.join(text)} |")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the images, decode them in every way, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "SIZE", "FOLDER"), help="measure once")
    options = parser.parse_args(argv)
    if options.one:
        way, name, folder = options.one
        print(json.dumps(measure(way, Path(folder), SIZES[name], options.processes)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        for name, size in SIZES.items():
            make(Path(temporary) / name, size)
        found = compare(Path(temporary), options.repeats, options.processes)
    summary = summarize(found)
    report(summary)
    result = {"processes": options.processes, "repeats": options.repeats, "ahead": AHEAD}
    result |= {"sizes": {name: size._asdict() for name, size in SIZES.items()}}
    result |= {"median_least_most": summary, "runs": found}
    result |= {"hardware": hardware(), "versions": versions()}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
