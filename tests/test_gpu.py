"""Training steps on a CUDA device: the same losses as on the CPU, and no wait for the host."""

import pytest
import torch

from jobs.ranks import Ranks
from jobs.vit_task import VitTask, load
from tests.tasks import small_config
from vit.config import AugmentConfig, ModelConfig, OptimConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


EVERYTHING = {
    "model": ModelConfig(
        image_size=8, patch_size=4, embed_dim=32, depth=2, num_heads=2, stem="conv",
        drop_path_rate=0.2,
    ),
    "augment": AugmentConfig(policy="autoaugment-imagenet", erasing=0.3, mixup=0.2, cutmix=1.0),
    "optim": OptimConfig(optimizer="muon", warmup_epochs=0, accumulate=2, ema_half_life=500),
}  # fmt: skip


def made(device, tmp_path):
    config = small_config(tmp_path, **EVERYTHING)
    task = VitTask(config, load(config), torch.device(device), Ranks(0, 1))
    model = task.build()
    optimizer, average = task.optimizer(model), task.average(model)
    task.settle(model, task.decide(model, config.batch_size))
    return task, model, optimizer, average


def test_losses_agree_with_the_cpu(tmp_path):
    losses = {}
    for device in ("cpu", "cuda"):
        task, model, optimizer, average = made(device, tmp_path)
        losses[device] = []
        for step in range(20):
            losses[device].append(task.gradients(model, 0, step, step)[0].item() / 64)
            task.update(model, optimizer, average, step)
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=1e-3)


def test_a_step_does_not_wait_for_the_device(tmp_path):
    task, model, optimizer, average = made("cuda", tmp_path)
    for step in range(3):
        if step == 2:
            torch.cuda.set_sync_debug_mode("error")
        try:
            task.gradients(model, 0, step, step)
            task.update(model, optimizer, average, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
