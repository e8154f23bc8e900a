"""Every recipe takes its first steps: on a few random images, with a small batch."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs.classifier.task import TrainConfig, VitTask, load
from jobs.run.config import RECIPES, parse
from jobs.training.ranks import Ranks

BATCH = 4


def encoded(generator, size):
    content = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (size, size, 3), np.uint8)).save(content, "PNG")
    return content.getvalue()


def write_images(dataset, folder):
    """Images as the recipe's data set wants them; returns what --data is."""
    generator = np.random.default_rng(0)
    if dataset == "imagefolder":
        for index in range(24):
            path = folder / "train" / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(generator, 64))
        return [str(folder)]
    if dataset == "parquet" or dataset.startswith("cifar"):
        for split in ("train", "test"):
            images = [encoded(generator, 32) for _ in range(40)]
            labels = [index % 10 for index in range(40)]
            table = pa.table({"image": images, "label": labels})
            pq.write_table(table, folder / f"{split}.parquet")
        return [str(folder)]
    return []


OTHERS = {
    "mini_whole.yaml",
    "mini_once.yaml",
    "mini_memory.yaml",
    "digits_sweep.yaml",
    "cifar10_sweep.yaml",
}
"""Recipes of `jobs.finetune` and `jobs.tune`, whose own tests take their first steps."""


@pytest.mark.parametrize("recipe", sorted({p.name for p in RECIPES.glob("*.yaml")} - OTHERS))
def test_first_steps(recipe, tmp_path):
    flags = ["--config", recipe, "--out", "unused", "--precision", "float32"]
    flags += ["--batch-size", str(BATCH)]
    config = parse(TrainConfig, flags, "test", "")
    paths = write_images(config.dataset.name, tmp_path)
    config = parse(TrainConfig, [*flags, *(["--data", *paths] if paths else [])], "test", "")
    task = VitTask(config, load(config), torch.device("cpu"), Ranks(0, 1))
    model = task.build()
    optimizer, average = task.optimizer(model), task.average(model)
    task.apply(model, task.decide(model, BATCH))
    before = [parameter.clone() for parameter in model.parameters()]
    for step in range(2):
        loss, _, count = task.gradients(model, 0, step, step).tolist()
        norm = task.update(model, optimizer, average, step).item()
        assert (count, np.isfinite(loss), norm > 0) == (BATCH, True, True)
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    learns = [parameter.requires_grad for parameter in model.parameters()]
    assert changed == learns
