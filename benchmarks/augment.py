"""Time of augmentation a sample, on one core, beside torchvision's transforms.

    python -m benchmarks.augment --batch 128 --size 32 --json augment.json

One minute. Every repeat measures each path once on the same images in turn, so that a noisy machine
is noisy for all of them; times are of the process (not of the wall), one thread.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import PIL
import torch
import torchvision
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from vit.augment import augment, normalize
from vit.config import AugmentConfig

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PATHS = ("patchray, a batch", "torchvision, PIL", "torchvision, tensors")


@dataclass(frozen=True)
class Row:
    """One path through one stage, in microseconds of one core a sample."""

    stage: str
    path: str
    median: float
    min: float
    max: float
    n: int
    """Repeats."""
    ratio: float
    """Median over that of the batched path of this stage."""


def stages(images: Tensor) -> dict[str, tuple[Callable[[int], object], ...]]:
    """By stage, the PATHS as functions of the number of the repeat."""
    size = tuple(images.shape[-2:])
    crop = [v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip()]
    auto = [*crop, v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)]
    floats = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    samples = torch.arange(len(images))
    policy = AugmentConfig(policy="autoaugment-cifar10")

    def ours(config: AugmentConfig) -> Callable[[int], Tensor]:
        return lambda repeat: augment(images, config, 0, repeat, samples)

    return {
        "crop, flip": (ours(AugmentConfig()), *one_by_one(images, crop)),
        "crop, flip, AutoAugment": (ours(policy), *one_by_one(images, auto)),
        "normalise": (lambda _: normalize(images, MEAN, STD), *one_by_one(images, floats)),
        "all": (
            lambda repeat: normalize(ours(policy)(repeat), MEAN, STD),
            *one_by_one(images, [*auto, *floats]),
        ),
    }


def one_by_one(
    images: Tensor, transforms: list[torch.nn.Module]
) -> tuple[Callable[[int], object], Callable[[int], object]]:
    """The transforms on each sample by itself: as PIL images, as uint8 tensors."""
    chain = v2.Compose(transforms)
    pictures = [TF.to_pil_image(image) for image in images]
    tensors = list(images)
    return lambda _: [chain(p) for p in pictures], lambda _: [chain(t) for t in tensors]


def measure(batch: int, size: int, repeats: int) -> list[Row]:
    """Time all paths; sets torch to one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    todo = stages(images)
    seconds: dict[tuple[str, str], list[float]] = {}
    for repeat in range(repeats):
        for stage, functions in todo.items():
            for path, function in zip(PATHS, functions, strict=True):
                start = time.process_time()
                function(repeat)
                seconds.setdefault((stage, path), []).append(time.process_time() - start)
    times = {key: [s / batch * 1e6 for s in values] for key, values in seconds.items()}
    base = {stage: statistics.median(times[stage, PATHS[0]]) for stage in todo}
    return [
        Row(
            stage=stage,
            path=path,
            median=statistics.median(values),
            min=min(values),
            max=max(values),
            n=repeats,
            ratio=statistics.median(values) / base[stage],
        )
        for (stage, path), values in times.items()
    ]


def environment() -> dict[str, str]:
    """Hardware and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": str(os.cpu_count()),
        "threads": "1",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["|stage|path|µs a sample: median (min to max)|ratio|", "|---|---|---|---|"]
    lines += [
        f"|{r.stage}|{r.path}|{r.median:.1f} ({r.min:.1f} to {r.max:.1f})|{r.ratio:.1f}|"
        for r in rows
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=128, help="samples a batch (128)")
    parser.add_argument("--size", type=int, default=32, help="side of the images, pixels (32)")
    parser.add_argument("--repeats", type=int, default=40, help="how often each is timed (40)")
    parser.add_argument("--json", type=Path, help="write rows, settings and environment here")
    args = parser.parse_args(argv)
    rows, where = measure(args.batch, args.size, args.repeats), environment()
    print(table(rows))
    print(f"\nbatch {args.batch}, {args.size}x{args.size}, n = {args.repeats}; ", end="")
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    if args.json:
        settings = {"batch": args.batch, "size": args.size}
        result = {"rows": [vars(row) for row in rows], **settings, "environment": where}
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
