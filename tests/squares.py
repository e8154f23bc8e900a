"""A small segmenter training on bright squares, and its start on a rank without Ray."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.data import load
from jobs.segmenter.task import SegmentTask
from jobs.storage.location import Location
from jobs.training.loop import run
from jobs.training.ranks import Ranks
from masking.training.compose import ComposeConfig
from tests.tasks import RecordingHooks
from tests.trained import png

SIDE = 64


def write_squares(path, images=24, objects=2):
    """Bright squares on noise, with their label maps; returns the file."""
    draw, rows = np.random.default_rng(0), []
    for number in range(images):
        pixels = draw.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
        labels = np.zeros((SIDE, SIDE), np.uint8)
        for label in range(1, objects + 1):
            x, y = draw.integers(0, SIDE // 2, 2)
            labels[y : y + SIDE // 2, x : x + SIDE // 2] = label
        pixels[labels > 0] += 120
        rows.append({"image": png(pixels), "masks": png(labels), "key": str(number)})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def small(out, data, **changes):
    config = FinetuneConfig(
        out=str(out), data=(str(data),), init_weights="scratch", epochs=3, batch_size=4,
        val_fraction=0.1, val_images=1, precision="float32", device="cpu", ema_half_life=20,
        warmup_epochs=0.5, compose=ComposeConfig(size=SIDE, objects=2),
    )  # fmt: skip
    return replace(config, **changes)


def finetune_small(config):
    """One start of a run on this rank, without Ray."""
    task = SegmentTask(config, load(config), torch.device("cpu"), Ranks.here())
    return run(task, config, Location.parse(config.out) / "checkpoints", RecordingHooks())
