"""Training steps on a CUDA device: the same losses as on the CPU, and no wait for the host."""

import pytest
import torch

from jobs.ranks import Ranks
from jobs.vit_task import VitTask, load
from tests.tasks import small_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def made(device, tmp_path):
    config = small_config(tmp_path)
    task = VitTask(config, load(config), torch.device(device), Ranks(0, 1))
    model = task.build()
    return task, model, task.optimizer(model)


def test_losses_agree_with_the_cpu(tmp_path):
    losses = {}
    for device in ("cpu", "cuda"):
        task, model, optimizer = made(device, tmp_path)
        losses[device] = []
        for step in range(20):
            losses[device].append(task.gradients(model, 0, step, step)[0].item() / 64)
            task.update(model, optimizer, step)
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=1e-3)


def test_a_step_does_not_wait_for_the_device(tmp_path):
    task, model, optimizer = made("cuda", tmp_path)
    for step in range(3):
        if step == 2:
            torch.cuda.set_sync_debug_mode("error")
        try:
            task.gradients(model, 0, step, step)
            task.update(model, optimizer, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
