"""Time of every augmentation, in microseconds per sample, beside torchvision's transforms v2.

    python -m benchmarks.training.augment --json augment.json
    python -m benchmarks.training.augment --batch 16 --stored 256 --size 224 --repeats 5

Each takes a few minutes on one core. Ours augments a batch, with a choice for every sample;
torchvision is called sample by sample, on tensors and on PIL images, as data loaders do (mixup and
cutmix, which draw once per batch there, on the whole batch). Every repeat measures each path once
on the same images in turn, so that noise of the machine affects all of them. Times are CPU times of
one thread; with `--device cuda` ours runs there, torchvision stays on the CPU, and all times are
wall times with the device synchronised.

The last column is the share of a training step (forward, backward, AdamW; without augmentation) of
`cifar10_seed.yaml`'s model at batch 128 on the same device, measured in the same run, in float32 or
on a GPU in bfloat16.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from jobs.run.machine import hardware, versions
from vit.augment.augment import augment, center_crop, erase, mix, normalize
from vit.augment.operations import OPS, operate
from vit.config import AugmentConfig, ModelConfig
from vit.model import build
from vit.numerics import autocast

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PATHS = ("patchray", "torchvision, tensors", "torchvision, PIL")
TO_FLOATS = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
SEED_MODEL = ModelConfig(image_size=32, patch_size=4, embed_dim=384, depth=12, num_heads=6)
SEED_BATCH = 128
AMOUNTS = {
    **dict.fromkeys(("ShearX", "ShearY", "Brightness", "Color", "Contrast", "Sharpness"), 0.25),
    **dict.fromkeys(("TranslateX", "TranslateY"), 5.0),
    "Rotate": 15.0,
    "Posterize": 6.0,
    "Solarize": 128.0,
}

Run = Callable[[int], Any]
"""A path through a stage: a function of the repeat's number."""
Stages = dict[str, tuple[Run | None, ...]]
"""The runs of PATHS by stage; None where torchvision has no such path."""


@dataclass(frozen=True)
class Row:
    """The times of one path through one stage, in microseconds per sample."""

    stage: str
    path: str
    median: float
    min: float
    max: float
    n: int
    """Number of repeats."""
    ratio: float
    """Median divided by the median of ours in this stage."""
    step_share: float
    """Median divided by the time per sample of a training step of the seed's model."""


class Operation(v2.AutoAugment):
    """A transform that always applies one operation of torchvision's policies."""

    def __init__(self, op: str) -> None:
        """Take the operation's name."""
        super().__init__()
        self.op = op
        self.amount = AMOUNTS.get(op, 0.0) / (255 if op == "Solarize" else 1)

    def forward(self, image: Any) -> Any:
        """Apply the operation to a tensor or a PIL image."""
        return self._apply_image_or_video_transform(
            image, self.op, self.amount, interpolation=self.interpolation, fill=self._fill
        )


def one_by_one(images: Tensor, *transforms: nn.Module) -> tuple[Run, Run]:
    """Return runs of the transforms sample by sample: on uint8 tensors, on PIL images."""
    chain = v2.Compose(transforms)
    tensors, pictures = list(images), [TF.to_pil_image(image) for image in images]
    return lambda _: [chain(t) for t in tensors], lambda _: [chain(p) for p in pictures]


@dataclass(frozen=True)
class Recipe:
    """Settings of ours, and the same in torchvision."""

    config: AugmentConfig
    chain: list[nn.Module]
    """Transforms of torchvision that run sample by sample."""
    batch: nn.Module | None = None
    """Transform of torchvision that then runs once per batch."""
    floats: bool = False
    """Whether the result is normalised floats, or uint8 images."""

    def ours(self, images: Tensor, size: int, device: torch.device) -> Run:
        """Return the run of ours on a batch of stored images."""
        stored, samples, config = images.to(device), torch.arange(len(images)), self.config

        def run(repeat: int) -> Tensor:
            key = config, 0, repeat, samples
            seen = augment(stored, *key, size)
            if not self.floats:
                return seen
            inputs = normalize(seen, MEAN, STD)
            inputs = erase(inputs, *key) if config.erasing else inputs
            return mix(inputs, *key)[0] if config.mixes else inputs

        return run

    def theirs(self, images: Tensor) -> tuple[Run, Run]:
        """Return the runs of torchvision on tensors and on PIL images."""
        tensors, pictures = one_by_one(images, *self.chain)
        if self.batch is None:
            return tensors, pictures
        mixing, labels = self.batch, torch.zeros(len(images), dtype=torch.int64)
        return (
            lambda repeat: mixing(torch.stack(tensors(repeat)), labels),
            lambda repeat: mixing(torch.stack(pictures(repeat)), labels),
        )


def recipes(size: int) -> dict[str, Recipe]:
    """Return crops, the flip, automatic augmentation after them, and whole recipes."""
    crop, resized = v2.RandomCrop(size, padding=4), v2.RandomResizedCrop(size)
    flip, rand, auto = v2.RandomHorizontalFlip(), v2.RandAugment(), v2.AutoAugmentPolicy
    mixup, cutmix = v2.MixUp(num_classes=10), v2.CutMix(num_classes=10)
    policies: dict[Any, nn.Module] = {
        "autoaugment-cifar10": v2.AutoAugment(auto.CIFAR10),
        "autoaugment-imagenet": v2.AutoAugment(auto.IMAGENET),
        "randaugment": rand,
        "trivialaugment": v2.TrivialAugmentWide(),
    }
    seed = AugmentConfig(policy="autoaugment-cifar10")
    vit = replace(seed, erasing=0.25, mixup=0.8, cutmix=1.0)
    s16 = AugmentConfig(crop="resized", policy="randaugment", mixup=0.2)
    seeds = [crop, flip, policies[seed.policy], *TO_FLOATS]
    either = v2.RandomChoice([mixup, cutmix])
    return {
        "random crop": Recipe(AugmentConfig(hflip=0), [crop]),
        "random resized crop": Recipe(AugmentConfig(crop="resized", hflip=0), [resized]),
        "flip": Recipe(AugmentConfig(crop_padding=0), [v2.RandomCrop(size), flip]),
        "crop, flip": Recipe(AugmentConfig(), [crop, flip]),
        **{
            f"crop, flip, {name}": Recipe(AugmentConfig(policy=name), [crop, flip, policy])
            for name, policy in policies.items()
        },
        "all of cifar10_seed": Recipe(seed, seeds, floats=True),
        "all of cifar10_vit": Recipe(vit, [*seeds, v2.RandomErasing(0.25)], either, floats=True),
        "all of imagenet_vit_s16": Recipe(s16, [resized, flip, rand, *TO_FLOATS], mixup, True),
    }


def operations(images: Tensor, device: torch.device) -> Stages:
    """Return runs of every operation of the policies, applied to every sample."""
    seen = images.to(device)

    def ours(op: str) -> Run:
        ops = torch.full((len(images),), OPS.index(op))
        amounts = torch.full((len(images),), AMOUNTS.get(op, 0.0))
        return lambda _: operate(seen, ops, amounts)

    return {op: (ours(op), *one_by_one(images, Operation(op))) for op in OPS if op != "Identity"}


def floats(images: Tensor, device: torch.device) -> Stages:
    """Return runs of normalisation and of what follows it."""
    inputs, samples = normalize(images, MEAN, STD), torch.arange(len(images))
    seen, ours, labels = images.to(device), inputs.to(device), torch.zeros_like(samples)
    blank, mixup, cutmix = (
        v2.RandomErasing(p=1),
        *(c(num_classes=10) for c in (v2.MixUp, v2.CutMix)),
    )

    def stage(function: Callable[..., object], **settings: float) -> Run:
        config = AugmentConfig(**settings)  # type: ignore[arg-type]
        return lambda repeat: function(ours, config, 0, repeat, samples)

    return {
        "normalise": (lambda _: normalize(seen, MEAN, STD), *one_by_one(images, *TO_FLOATS)),
        "random erasing": (stage(erase, erasing=1), lambda _: [blank(x) for x in inputs], None),
        "mixup": (stage(mix, mixup=1), lambda _: mixup(inputs, labels), None),
        "cutmix": (stage(mix, cutmix=1), lambda _: cutmix(inputs, labels), None),
    }


def clock(device: torch.device) -> float:
    """Return CPU seconds of this process; with a GPU, wall seconds."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(
    runs: dict[tuple[str, str], Run], repeats: int, device: torch.device
) -> dict[tuple[str, str], list[float]]:
    """Time every run in turn, after one for warm-up; returns seconds."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for repeat in range(-1, repeats):
        for key, run in runs.items():
            start = clock(device)
            run(max(repeat, 0))
            times[key].append(clock(device) - start)
    return {key: values[1:] for key, values in times.items()}


def training_step(device: torch.device) -> Run:
    """Return a training step of the seed's model on fixed inputs."""
    model = build(SEED_MODEL, 10, 0).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    inputs = torch.randn(SEED_BATCH, 3, 32, 32).to(device)
    labels = torch.arange(SEED_BATCH, device=device) % 10

    def run(_: int) -> None:
        with autocast(device, "float32" if device.type == "cpu" else "bfloat16"):
            logits = model(inputs)
        F.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def measure(args: argparse.Namespace) -> tuple[list[Row], float]:
    """Return rows, and seconds of a training step; sets torch to one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(args.device)
    images = torch.randint(0, 256, (args.batch, 3, args.stored, args.stored), dtype=torch.uint8)
    seen = center_crop(images, args.size).contiguous()
    stages = {
        name: (recipe.ours(images, args.size, device), *recipe.theirs(images))
        for name, recipe in recipes(args.size).items()
    }
    stages = stages | operations(seen, device) | floats(seen, device)
    runs = {
        (stage, path): run
        for stage, paths in stages.items()
        for path, run in zip(PATHS, paths, strict=True)
        if run is not None
    }
    step = statistics.median(
        seconds({("step", ""): training_step(device)}, args.steps, device)["step", ""]
    )
    times = {
        key: [value / args.batch * 1e6 for value in values]
        for key, values in seconds(runs, args.repeats, device).items()
    }
    middle = {key: statistics.median(values) for key, values in times.items()}
    rows = [
        Row(
            stage=stage,
            path=path,
            median=middle[stage, path],
            min=min(values),
            max=max(values),
            n=args.repeats,
            ratio=middle[stage, path] / middle[stage, PATHS[0]],
            step_share=middle[stage, path] * 1e-6 * SEED_BATCH / step,
        )
        for (stage, path), values in times.items()
    ]
    return rows, step


def environment(device: str) -> dict[str, Any]:
    """Return hardware and versions."""
    name = device if device == "cpu" else torch.cuda.get_device_name(device)
    return {"device": name, **hardware(), **versions(), "pillow": PIL.__version__}


def table(rows: list[Row]) -> str:
    """Return a table in Markdown: a line per stage, a column per path."""
    cells: dict[str, dict[str, Row]] = {}
    for row in rows:
        cells.setdefault(row.stage, {})[row.path] = row
    lines = [
        "µs per sample: median (min), ratio to ours",
        "",
        f"|stage|{'|'.join(PATHS)}|ours of a step|",
        "|---|---|---|---|---|",
    ]
    for stage, found in cells.items():
        texts = [
            f"{r.median:.1f} ({r.min:.1f})" + (f", {r.ratio:.1f}x" if r.path != PATHS[0] else "")
            if (r := found.get(path))
            else "-"
            for path in PATHS
        ]
        lines.append(f"|{stage}|{'|'.join(texts)}|{found[PATHS[0]].step_share:.2%}|")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure, print and write the times; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=128, help="samples per batch (128)")
    parser.add_argument(
        "--stored", type=int, default=32, help="side of stored images, at least --size (32)"
    )
    parser.add_argument("--size", type=int, default=32, help="side for the model, pixels (32)")
    parser.add_argument("--repeats", type=int, default=20, help="how often each is timed (20)")
    parser.add_argument("--steps", type=int, default=2, help="training steps timed (2)")
    parser.add_argument("--device", default="cpu", help="where ours runs: cpu, cuda (cpu)")
    parser.add_argument("--json", type=Path, help="write rows, settings and environment here")
    args = parser.parse_args(argv)
    rows, step = measure(args)
    where = environment(args.device)
    print(table(rows))
    print(
        f"\nbatch {args.batch}, {args.stored} to {args.size} pixels, n = {args.repeats}; ", end=""
    )
    print(f"step {step * 1e3:.0f} ms, n = {args.steps}; ", end="")
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    if args.json:
        settings = {name: getattr(args, name) for name in ("batch", "stored", "size")}
        result = {"rows": [vars(row) for row in rows], "step_seconds": step, **settings}
        args.json.write_text(json.dumps({**result, "environment": where}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
