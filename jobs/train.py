"""Train a Vision Transformer on as many workers as you have, from local or S3 data.

    python -m jobs.train --config digits.yaml --out runs/digits --workers 2

trains on scikit-learn's handwritten digits in about a minute on two cores. The same command on the
same folder goes on where it stopped, whatever stopped it. By `ray job submit` it joins the cluster;
--out is then s3://BUCKET/RUN or a folder that all nodes share.

    python -m jobs.train --evaluate --weights runs/digits

measures weights instead: --evaluate --help lists its flags.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from jobs.classifier import evaluate
from jobs.classifier.export import export
from jobs.classifier.task import TrainConfig, VitTask, absolute, check_present, load, local_paths
from jobs.cluster import connect
from jobs.cluster.workers import LaunchError
from jobs.run.config import ConfigError, parse
from jobs.run.folder import check_same, curves, describe
from jobs.run.progress import clock
from jobs.run.signals import Stop
from jobs.run.submitted import refuse_relative
from jobs.storage.location import Location, StorageError, check_writable
from jobs.training.checkpoints import CheckpointError, Checkpoints
from jobs.training.loop import run
from jobs.training.ranks import AgreedError, Ranks
from jobs.training.stages import common, failed, finished, last_save, on_workers
from jobs.training.steps import steps_per_epoch
from jobs.training.task import Hooks
from jobs.weights.classifier import load_weights
from vit.data import sets
from vit.data.decode import DataError
from vit.model import build
from vit.weights import WeightsError, fit


def work(payload: TrainConfig, device: torch.device, hooks: Hooks) -> dict[str, Any]:
    """What a worker does: bring the data, then run the epoch loop. Called on every rank."""
    config, ranks = payload, Ranks.here()
    if ranks.rank == 0:
        hooks.say("bringing the data to memory")
    try:
        task = ranks.each(lambda: VitTask(config, load(config), device, ranks))
        facts = run(task, config, Location.parse(config.out) / "checkpoints", hooks)
    except AgreedError as error:
        return {"ended": "failed", "error": str(error)}
    return {**facts, "classes": task.dataset.classes}


def check(config: TrainConfig) -> None:
    """Find the faults that show without workers; fetches a data set that was not given.

    Data in object storage are checked by the workers, each node having its own copy.
    """
    check_present(config)
    classes = None
    if all(Location.parse(path).local_path for path in config.data):
        summary = sets.check(config.dataset, local_paths(config))
        steps_per_epoch(summary.train, config.batch_size)
        classes = summary.classes
    check_weights(config, classes)
    if classes is not None and connect.starts_own():
        # The workers share this machine's cache: nothing is done twice.
        steps_per_epoch(len(load(config).train), config.batch_size)
    if config.model.drop_rate or config.model.attn_drop_rate:
        print("dropout is above 0: the run is repeatable with this number of workers only")


def check_weights(config: TrainConfig, classes: Sequence[str] | None) -> None:
    """See that `init_weights` fit, and say what of them is taken.

    Args:
        config: of the run.
        classes: of the data; None if they are not known here, and so the head is not looked at.

    Raises:
        WeightsError, StorageError: they do not fit, or cannot be had.
    """
    if config.init_weights is None:
        return
    weights = load_weights(config.init_weights)
    head = weights.tensors.get("head.bias", torch.empty(1))
    model = build(config.model, len(head if classes is None else classes), seed=0)
    for note in fit(weights, model, classes).notes:
        print(note)
    if weights.about is not None:
        for name in ("mean", "std"):
            then, now = (getattr(at.dataset, name) for at in (weights.about, config))
            if then != now:
                print(f"dataset.{name} is {now}; the weights were trained with {then}")


def train(config: TrainConfig) -> int:
    """The stages of the job, in order."""
    # 1. What can be known without workers.
    refuse_relative(config.out)
    config = absolute(config)
    out = Location.parse(config.out)
    check_same(out, config)
    if done := finished(out, config.patience):
        print_result(out, done)
        return 0
    going_on = Checkpoints(out / "checkpoints", token="").latest() is not None
    needed = replace(config, init_weights=None) if going_on else config
    check(needed)
    check_writable(out)
    describe(out, config)
    # 2. Training, and the test set at its end.
    with Stop() as stop:
        facts = on_workers(work, needed, out, stop)
    # 3. What it leaves.
    try:
        return conclude(config, out, facts, stop)
    except (CheckpointError, StorageError) as error:
        raise LaunchError(f"the training is over, but {error}") from error


def conclude(config: TrainConfig, out: Location, facts: dict[str, Any], stop: Stop) -> int:
    """Publish weights, curves and summary of a run that is over; say how it ended otherwise."""
    if (code := failed(facts, stop, "jobs.train")) is not None:
        return code
    (out / "curves.png").write_bytes(curves(facts["history"], title=str(out)))
    summary = summarize(config, facts)
    export(config, out, facts, summary)
    (out / "summary.json").write_json(summary)
    print_result(out, summary)
    return last_save(facts, "jobs.train")


def summarize(config: TrainConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """What summary.json holds; accuracies are fractions, null where there is no test set."""
    return {
        "val_accuracy": facts["best"][0],
        "test_accuracy": facts["test"].get("test_accuracy"),
        "test_loss": facts["test"].get("test_loss"),
        **common(config, facts),
        "numerics": facts["facts"]["numerics"],
    }


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
    argv = sys.argv[1:] if argv is None else argv
    if "--evaluate" in argv:
        return evaluate.main([word for word in argv if word != "--evaluate"])
    config = parse(TrainConfig, argv, "jobs.train", __doc__)
    try:
        return train(config)
    except (ConfigError, DataError, WeightsError, StorageError, connect.ClusterError) as error:
        sys.stderr.write(f"jobs.train: {error}\n")
        return 2
    except LaunchError as error:
        sys.stderr.write(f"jobs.train: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
