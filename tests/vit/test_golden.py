"""Ten seeded steps of three configurations, loss and gradient norm to the last bit.

A change that is meant to change no number must leave tests/vit/golden.txt as it is. When numbers
should change, `python -m tests.vit.test_golden` writes the file again, and the commit says why.
"""

import platform
from pathlib import Path

import pytest
import torch

from jobs.classifier.task import VitTask, load
from jobs.training.ranks import Ranks
from tests.tasks import small_config
from vit.config import AugmentConfig, DatasetConfig, ModelConfig, OptimConfig

FILE = Path(__file__).parent / "golden.txt"
SMALL = {"image_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
CONFIGURATIONS = {
    "adamw": {
        "model": ModelConfig(**SMALL, drop_path_rate=0.2, init_values=0.1, reg_tokens=1),
        "augment": AugmentConfig(crop_padding=1, policy="autoaugment-cifar10"),
        "optim": OptimConfig(lr=3e-3, warmup_epochs=1, layer_decay=0.8),
    },
    "muon": {
        "dataset": DatasetConfig(store_size=12),
        "model": ModelConfig(**SMALL, stem="conv", global_pool="avg", qk_norm=True),
        "augment": AugmentConfig(
            crop="resized", policy="randaugment", erasing=0.3, mixup=0.2, cutmix=1.0
        ),
        "optim": OptimConfig(
            optimizer="muon", schedule="wsd", warmup_epochs=0, accumulate=2, ema_half_life=500
        ),
    },
    "bfloat16": {
        "precision": "bfloat16",
        "model": ModelConfig(**SMALL, pos_embed="sincos2d"),
        "augment": AugmentConfig(crop_padding=1, policy="trivialaugment", cutmix=1.0, mix_prob=0.5),
        "optim": OptimConfig(schedule="constant", warmup_epochs=0, clip_norm=0.5),
    },
}


def cpu():
    """What rounding depends on: the version of torch, and the kernels that this CPU gets."""
    kernels = torch.backends.cpu.get_cpu_capability()
    amx = ", AMX" if torch.cpu._is_amx_tile_supported() else ""
    return f"torch {torch.__version__}, {platform.machine()}, {kernels}{amx}"


def ten_steps(name):
    """Lines of loss and norm, as hexadecimal floats."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = small_config("unused", **CONFIGURATIONS[name])
    task = VitTask(config, load(config), torch.device("cpu"), Ranks(0, 1))
    model = task.build()
    optimizer, average = task.optimizer(model), task.average(model)
    task.apply(model, task.decide(model, config.batch_size))
    lines = []
    for step in range(10):
        loss = task.gradients(model, 0, step, step)[0].item() / config.batch_size
        norm = task.update(model, optimizer, average, step).item()
        lines.append(f"{name} {step} {loss.hex()} {norm.hex()}")
    torch.set_num_threads(threads)
    return lines


def numbers(line):
    return [float.fromhex(word) for word in line.split()[2:]]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_ten_steps_are_the_golden_ones(name):
    first, *golden = FILE.read_text().splitlines()
    golden = [line for line in golden if line.startswith(f"{name} ")]
    lines = ten_steps(name)
    if first == f"# {cpu()}":
        assert lines == golden
    else:  # other kernels round differently
        for ours, theirs in zip(lines, golden, strict=True):
            assert numbers(ours) == pytest.approx(numbers(theirs), rel=2e-2)


if __name__ == "__main__":
    every = [line for name in CONFIGURATIONS for line in ten_steps(name)]
    FILE.write_text("\n".join([f"# {cpu()}", *every]) + "\n")
