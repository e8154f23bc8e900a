"""The other side of `benchmarks.train`: the same training as a plain PyTorch loop.

    python -m benchmarks.plain_train --epochs 4
    torchrun --nproc-per-node 2 -m benchmarks.plain_train --epochs 4

Same model, data, augmentation, optimizer and precision, without Ray, checkpoints, progress,
metrics and agreement between ranks. Prints one line of JSON.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vit import data
from vit.augment import augment, normalize
from vit.config import AugmentConfig, DatasetConfig, ModelConfig
from vit.model import build


def flags() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--model", type=json.loads, required=True)
    parser.add_argument("--augment", type=json.loads, required=True)
    return parser.parse_args()


def main() -> None:
    """Train for some epochs and print the rate."""
    options = flags()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo")
    shape, policy, dataset = (
        ModelConfig(**options.model),
        AugmentConfig(**options.augment),
        DatasetConfig(),
    )
    train = data.load(dataset, [], shape.image_size, options.cache).train
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    rows = torch.from_numpy(train.rows)
    model: nn.Module = build(shape, 10, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    if world > 1:
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    size = options.batch_size // world
    steps = len(rows) // options.batch_size
    warm = normalize(images[rows[:size]], dataset.mean, dataset.std)
    F.cross_entropy(model(warm), labels[rows[:size]]).backward()  # as the job does before step 1
    optimizer.zero_grad(set_to_none=True)
    start = time.perf_counter()
    for epoch in range(options.epochs):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch))
        for step in range(steps):
            first = step * options.batch_size + rank * size
            samples = order[first : first + size]
            chosen = rows[samples]
            batch = augment(images[chosen], policy, 0, epoch, samples)
            logits = model(normalize(batch, dataset.mean, dataset.std))
            F.cross_entropy(logits, labels[chosen], label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    if rank == 0:
        print(json.dumps({"images_per_s": options.epochs * steps * options.batch_size / seconds}))
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
