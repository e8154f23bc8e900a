"""Two sides of `benchmarks.training.train` without Ray: the loop of `jobs.train`, and bare steps.

    torchrun --nproc-per-node 2 -m benchmarks.training.plain_train --side steps --config CONFIG.yaml

`loop` is `jobs.training.loop.run`; its difference to the job is the share of Ray. `steps` is a
plain PyTorch loop over the same model, data, augmentation and optimizer, without checkpoints,
progress, metrics and agreement between ranks. Prints one line of JSON.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from jobs.classifier.task import TrainConfig, VitTask, load
from jobs.cluster.workers import keep_memory
from jobs.run.config import parse
from jobs.storage.location import Location
from jobs.training import loop as worker
from jobs.training.ranks import Ranks

WARM_STEPS = 5
"""First steps, in which caches fill, that all sides but the job leave out."""


def read(path: str) -> TrainConfig:
    """Read the settings of all sides, which `benchmarks.training.train` wrote."""
    return parse(TrainConfig, ["--config", path], "benchmarks", "one side")


def join(config: TrainConfig) -> Ranks:
    """Set threads and process group as `jobs.train` does; returns this rank."""
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    return Ranks.here()


def end(ranks: Ranks, result: dict[str, Any]) -> None:
    """Print rank 0's result and leave the process group."""
    if ranks.rank == 0:
        print(json.dumps(result))
    if ranks.world > 1:
        dist.destroy_process_group()


class Silent:
    """Hooks that do nothing."""

    def report(self, row: dict[str, Any]) -> None:
        """Do nothing."""

    def progress(self, facts: dict[str, Any]) -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def record(self, history: list[dict[str, Any]]) -> None:
        """Do nothing."""

    def stop_requested(self) -> bool:
        """Return False."""
        return False

    def preempted(self) -> bool:
        """Return False."""
        return False


def loop(task: VitTask) -> float:
    """Return the images/s of the epoch loop, as `jobs.train` counts them."""
    with tempfile.TemporaryDirectory() as own:
        folder = Location.parse(task.ranks.agree(own))
        result = worker.run(task, task.config, folder, Silent())
        task.ranks.gather(None)  # rank 0 deletes its folder after all ranks are done
    return result.state.step * task.config.batch_size / result.state.train_seconds


def stepping(task: VitTask) -> Callable[[int], None]:
    """Return a function that takes step `number` of the task's first epoch."""
    bare = task.build()
    optimizer, average = task.optimizer(bare), task.average(bare)
    part = task.config.batch_size // task.ranks.world
    task.apply(bare, task.ranks.agree(task.decide(bare, part)))
    model: nn.Module = bare
    if task.ranks.world > 1:
        model = DistributedDataParallel(bare, gradient_as_bucket_view=True)

    def step(number: int) -> None:
        task.gradients(model, 0, number, number)
        task.update(bare, optimizer, average, number)

    return step


def steps(task: VitTask, count: int) -> float:
    """Return the images/s of `count` of the task's steps, without the first ones."""
    step = stepping(task)
    for number in range(count):
        if number == WARM_STEPS:
            start = time.perf_counter()
        step(number)
    return (count - WARM_STEPS) * task.config.batch_size / (time.perf_counter() - start)


def main() -> None:
    """Train for an epoch, or for its first steps, and print the rate."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=("loop", "steps"), required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, help="steps of side `steps`; default: an epoch")
    options = parser.parse_args()
    keep_memory()
    config = read(options.config)
    ranks = join(config)
    task = VitTask(config, load(config), torch.device("cpu"), ranks)
    count = options.steps or task.steps_per_epoch
    rate = loop(task) if options.side == "loop" else steps(task, count)
    end(ranks, {"images_per_s": rate, "numerics": asdict(task.numerics)})


if __name__ == "__main__":
    main()
