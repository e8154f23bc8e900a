"""On a CUDA device: losses and masks agree with the CPU's, and steps do not wait for the device."""

import pytest
import torch

from jobs.classifier.task import VitTask, load
from jobs.run.device import settle
from jobs.segmenter.data import load as load_pairs
from jobs.segmenter.task import SegmentTask
from jobs.training.ranks import Ranks
from masking.segmenter.mini import Mini, MiniConfig
from masking.segmenter.official import Official
from masking.segmenter.sam import Prompts, Segmenter
from tests.masking.segmenter.networks import photographs, small_sam
from tests.squares import small, write_squares
from tests.tasks import small_config
from vit.config import AugmentConfig, ModelConfig, OptimConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def settled():
    settle(torch.device("cuda"))


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
    task.apply(model, task.decide(model, config.batch_size))
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


def test_a_segmenter_learns_in_bfloat16_and_does_not_wait(tmp_path):
    config = small(tmp_path, write_squares(tmp_path / "a.parquet"), precision="bfloat16")
    task = SegmentTask(config, load_pairs(config), torch.device("cuda"), Ranks(0, 1))
    model = task.build()
    optimizer, average = task.optimizer(model), task.average(model)
    task.apply(model, task.decide(model, config.batch_size))
    for step in range(4):
        if step == 3:
            torch.cuda.set_sync_debug_mode("error")
        try:
            sums = task.gradients(model, 0, step, step)
            task.update(model, optimizer, average, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.isfinite(sums).all()


@pytest.mark.parametrize("kind", ["mini", "sam"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_masks_agree_with_the_cpu(kind, precision):
    frames = photographs(3, (57, 101))
    prompts = Prompts.of((57, 101), [[(20, 30)], [(60, 9), (5, 5)]], [[1], [1, 0]], frames=[0, 2])
    logits = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        network = Mini(MiniConfig(side=64)) if kind == "mini" else Official(small_sam())
        used = precision if device == "cuda" else "float32"
        segmenter = Segmenter(network, torch.device(device), used)
        found = segmenter.decode(segmenter.encode(frames), prompts, "three")
        logits[device] = found.low_res_logits.cpu()
    error = (logits["cuda"] - logits["cpu"]).norm() / logits["cpu"].norm()
    assert error < (1e-3 if precision == "float32" else 0.05)
