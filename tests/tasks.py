"""A small ViT training on digits for tests of the loop, and hooks that keep what they hear."""

from dataclasses import dataclass, field

import torch

from jobs.ranks import Ranks
from jobs.storage import Location
from jobs.vit_task import TrainConfig, VitTask, load
from jobs.worker import run
from vit.config import AugmentConfig, ModelConfig, OptimConfig


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


@dataclass
class RecordingHooks:
    """Hooks that ask to stop before a given step, and keep what they hear."""

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
    """One start of a run, on this rank: (facts, losses by step, hooks)."""
    hooks = RecordingHooks(stop_before)
    made = task(config, load(config), torch.device("cpu"), Ranks.here())
    made.hooks, made.losses = hooks, {}
    import jobs.worker

    jobs.worker.EXCHANGE_SECONDS = 0.0  # exchange after every step: stops are then exact
    facts = run(made, config, Location.parse(config.out) / "checkpoints", hooks)
    return facts, made.losses, hooks
