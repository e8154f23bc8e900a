"""A small ViT training on digits for tests of the loop, and hooks that record its calls."""

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from jobs.classifier.task import TrainConfig, VitTask, load
from jobs.storage.location import Location
from jobs.training.loop import run
from jobs.training.ranks import Ranks
from vit.config import AugmentConfig, DatasetConfig, ModelConfig, OptimConfig

SMALL = [
    *("--config", "digits.yaml", "--model.patch-size", "4", "--model.embed-dim", "32"),
    *("--model.depth", "2", "--model.num-heads", "2", "--optim.warmup-epochs", "1"),
    *("--cpus-per-worker", "0.5", "--device", "cpu"),
]
"""Flags of a small `jobs.train`."""


def small_config(out, **changes):
    """Digits at 8x8 with everything random switched on; 20 steps an epoch of 64."""
    model = ModelConfig(
        image_size=8, patch_size=4, embed_dim=32, depth=2, num_heads=2, drop_path_rate=0.2
    )
    settings = {
        "epochs": 3,
        "batch_size": 64,
        "precision": "float32",
        "model": model,
        "augment": AugmentConfig(crop_padding=1, hflip=0.5, policy="autoaugment-cifar10"),
        "optim": OptimConfig(lr=3e-3, warmup_epochs=1),
    }
    return TrainConfig(out=str(out), **(settings | changes))


def every_option(out, folder):
    """A training with every option on at once, on the images of `folder`, streamed."""
    return TrainConfig(
        out=str(out),
        data=(str(folder),),
        epochs=3,
        batch_size=32,
        precision="float32",
        device="cpu",
        dataset=DatasetConfig(name="imagefolder", store_size=12, cache_gb=0, max_bad_images=1),
        model=ModelConfig(
            image_size=8, patch_size=4, embed_dim=32, depth=2, num_heads=2, stem="conv",
            reg_tokens=1, qk_norm=True, init_values=0.1, drop_path_rate=0.2, drop_rate=0.1,
            attn_drop_rate=0.1,
        ),
        augment=AugmentConfig(
            crop="resized", policy="randaugment", erasing=0.3, mixup=0.2, cutmix=1.0,
            mix_prob=0.7, mix_until=0.6,
        ),
        optim=OptimConfig(
            optimizer="muon", schedule="wsd", lr=3e-3, warmup_epochs=1, layer_decay=0.8,
            accumulate=2, ema_half_life=200,
        ),
    )  # fmt: skip


def write_digits(folder, train=800, test=200):
    """The digits as a folder of PNG files, one of them cut off; returns it."""
    digits = load_digits()
    for index in range(train + test):
        split, label = "train" if index < train else "test", digits.target[index]
        target = folder / split / f"digit {label}" / f"{index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 15).astype(np.uint8)).save(target)
    (folder / "train" / "digit 0" / "cut.png").write_bytes(target.read_bytes()[:60])
    return folder


@dataclass
class RecordingHooks:
    """Hooks that request a stop before a given step, and record what they are called with."""

    stop_before: int | None = None
    said: list = field(default_factory=list)
    reports: list = field(default_factory=list)
    steps: int = 0

    def report(self, row):
        self.reports.append(row)

    def progress(self, facts):
        pass

    def say(self, line):
        self.said.append(line)

    def record(self, history):
        pass

    def stop_requested(self):
        return self.stop_before is not None and self.steps >= self.stop_before

    def preempted(self):
        return False


class RecordingTask(VitTask):
    """A VitTask that keeps each step's local sums and samples."""

    hooks: RecordingHooks

    def gradients(self, model, epoch, index, step):
        sums = super().gradients(model, epoch, index, step)
        self.losses[step] = Ranks.here().add(sums)
        self.hooks.steps = step + 1
        return sums


def train_small(config, stop_before=None, task=RecordingTask):
    """One start of a run, on this rank: (result, losses by step, hooks)."""
    hooks = RecordingHooks(stop_before)
    made = task(config, load(config), torch.device("cpu"), Ranks.here())
    made.hooks, made.losses = hooks, {}
    import jobs.training.loop

    jobs.training.loop.EXCHANGE_SECONDS = 0.0  # exchange after every step: stops are then exact
    result = run(made, config, Location.parse(config.out) / "checkpoints", hooks)
    return result, made.losses, hooks
