"""Train a Vision Transformer on as many workers as you have, from local or S3 data.

    python -m jobs.train --config digits.yaml --out runs/digits --workers 2

trains on scikit-learn's handwritten digits in about a minute on two cores. The same command on the
same folder goes on where it stopped, whatever stopped it. By `ray job submit` it joins the cluster;
--out is then s3://BUCKET/RUN or a folder that all nodes share.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from safetensors.torch import save

from jobs import cluster, runs
from jobs.checkpoints import CheckpointError, Checkpoints
from jobs.config import ConfigError, parse
from jobs.launch import LaunchError, Resources, launch
from jobs.progress import TrainingProgress, clock
from jobs.ranks import AgreedError, Ranks
from jobs.signals import Stop
from jobs.storage import Location, StorageError, check_writable
from jobs.task import Hooks
from jobs.vit_task import TrainConfig, VitTask, load, local_paths
from jobs.worker import run
from vit import data
from vit.formats import DataError


def work(payload: TrainConfig, device: torch.device, hooks: Hooks) -> dict[str, Any]:
    """What a worker does: bring the data, then run the epoch loop. Called on every rank."""
    config, ranks = payload, Ranks.here()
    if ranks.rank == 0:
        hooks.say("bringing the data to memory")
    try:
        dataset = ranks.each(lambda: load(config))
        task = VitTask(config, dataset, device, ranks)
        facts = run(task, config, Location.parse(config.out) / "checkpoints", hooks)
    except AgreedError as error:
        return {"ended": "failed", "error": str(error)}
    return {**facts, "classes": dataset.classes}


def check(config: TrainConfig) -> None:
    """Find the faults that show without workers; fetches a data set that was not given.

    Data in object storage are checked by the workers, each node having its own copy.
    """
    locations = [Location.parse(path) for path in config.data]
    missing = [str(location) for location in locations if not location.exists()]
    if missing:
        raise ConfigError(f"--data: no such file or folder: {', '.join(missing)}")
    if all(location.local_path for location in locations):
        summary = data.check(config.dataset, local_paths(config))
        data.steps_per_epoch(summary.train, config.batch_size)
        if cluster.starts_own():  # the workers share this machine's cache: nothing is done twice
            load(config)
    if config.model.drop_rate or config.model.attn_drop_rate:
        print("dropout is above 0: the run is repeatable with this number of workers only")


def train(config: TrainConfig) -> int:
    """The stages of the job, in order."""
    # 1. What can be known without workers.
    cluster.refuse_relative(config.out)
    config = absolute(config)
    out = Location.parse(config.out)
    check(config)
    check_writable(out)
    runs.check_same(out, config)
    if done := finished(config, out):
        print_result(out, done)
        return 0
    runs.describe(out, config)
    # 2. A Ray, and what it must have.
    with Stop() as stop, cluster.connect():
        cuda, gpus = cluster.choose_device(
            config.device, config.workers, config.cpus_per_worker, config.gpus_per_worker
        )
        resources = Resources(config.workers, config.cpus_per_worker, gpus, cuda)
        cluster.require(config.workers, config.cpus_per_worker, gpus, stop)
        # 3. Training, and the test set at its end.
        facts = launch(
            work, config, resources, config.max_restarts, out, TrainingProgress(config.epochs), stop
        )
    # 4. What it leaves.
    try:
        return conclude(config, out, facts, stop)
    except (CheckpointError, StorageError) as error:
        raise LaunchError(f"the training is over, but {error}") from error


def absolute(config: TrainConfig) -> TrainConfig:
    """The same config with paths that mean the same in a worker's folder, or on another day."""
    data = tuple(str(Location.parse(path)) for path in config.data)
    return replace(config, out=str(Location.parse(config.out)), data=data)


def finished(config: TrainConfig, out: Location) -> dict[str, Any] | None:
    """The summary of a run that is over, or None: more patience lets a run go on."""
    path = out / "summary.json"
    summary = path.read_json() if path.exists() else None
    if not summary or summary["save_error"]:
        return None
    over = summary["ended"] == "epochs" or summary["patience"] == config.patience
    return summary if over else None


def conclude(config: TrainConfig, out: Location, facts: dict[str, Any], stop: Stop) -> int:
    """Publish weights, curves and summary of a run that is over; say how it ended otherwise."""
    if facts["ended"] == "stopped":
        return 1 if facts["save_error"] else stop.exit_code or 1
    if facts["error"]:
        sys.stderr.write(f"jobs.train: {facts['error']}\n")
        return 1
    (out / "curves.png").write_bytes(runs.curves(facts["history"], title=str(out)))
    export(config, out, facts["classes"])
    summary = summarize(config, facts)
    (out / "summary.json").write_json(summary)
    print_result(out, summary)
    if facts["save_error"]:
        sys.stderr.write(f"jobs.train: the last save failed: {facts['save_error']}\n")
        return 1
    return 0


def summarize(config: TrainConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """What summary.json holds; accuracies are fractions, null where there is no test set."""
    samples = facts["step"] * config.batch_size
    return {
        "val_accuracy": facts["history"][facts["best_epoch"] - 1]["val_accuracy"],
        "test_accuracy": facts["test"].get("test_accuracy"),
        "test_loss": facts["test"].get("test_loss"),
        "best_epoch": facts["best_epoch"],
        "epochs": facts["epoch"],
        "ended": facts["ended"],
        "patience": config.patience,
        "samples_seen": samples,
        "images_per_s": samples / facts["train_seconds"],
        "train_s": facts["train_seconds"],
        "wall_s": facts["wall_seconds"],
        "peak_rss_mb": facts["peak_rss_mb"],
        "resumed": facts["resumed"],
        "workers": config.workers,
        "nodes": facts["nodes"],
        "precision": facts["facts"]["precision"],
        "save_error": facts["save_error"],
        "versions": runs.versions(),
        "hardware": facts["hardware"],
    }


def export(config: TrainConfig, out: Location, classes: Sequence[str]) -> None:
    """Publish the best weights in timm's names, and what a reader of them must know."""
    checkpoints = Checkpoints(out / "checkpoints", token="export")
    name = checkpoints.best()
    if name is None:
        return
    weights = checkpoints.read(name).weights
    (out / "export" / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))
    about = {
        "checkpoint": name,
        "classes": list(classes),
        "model": asdict(config.model),
        "mean": list(config.dataset.mean),
        "std": list(config.dataset.std),
    }
    (out / "export" / "model.json").write_json(about)


def print_result(out: Location, summary: dict[str, Any]) -> None:
    """Say what came out, and where it lies."""
    test = summary["test_accuracy"]
    measured = "no test set" if test is None else f"test accuracy {test:.2%}"
    print(
        f"done: {measured}, validation {summary['val_accuracy']:.2%} (epoch"
        f" {summary['best_epoch']} of {summary['epochs']}),"
        f" {summary['images_per_s']:,.0f} images/s, {clock(summary['wall_s'])}\n"
        f"  curve    {out / 'curves.png'}\n"
        f"  weights  {out / 'export' / 'model.safetensors'}\n"
        f"  summary  {out / 'summary.json'}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    config = parse(TrainConfig, sys.argv[1:] if argv is None else argv, "jobs.train", __doc__)
    try:
        return train(config)
    except (ConfigError, DataError, StorageError, cluster.ClusterError) as error:
        sys.stderr.write(f"jobs.train: {error}\n")
        return 2
    except LaunchError as error:
        sys.stderr.write(f"jobs.train: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
