"""Train a Vision Transformer on as many workers as you have, from local or S3 data.

    python -m jobs.train --config digits.yaml --out runs/digits --workers 2

trains on scikit-learn's handwritten digits in about a minute on two cores. The same command on the
same folder resumes, whatever ended it. Under `ray job submit` the job joins the cluster; --out is
then s3://BUCKET/RUN or a folder that all nodes share.

    python -m jobs.train --evaluate --weights runs/digits

measures weights instead; --evaluate --help lists its flags.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from jobs.classifier import evaluate
from jobs.classifier.export import export
from jobs.classifier.task import TrainConfig, VitTask, load, local_paths
from jobs.cluster import connect
from jobs.cluster.workers import SHARING, SMALL_MODEL
from jobs.run.folder import check_same, describe
from jobs.run.main import JobError, run_job
from jobs.run.plots import curves_png
from jobs.run.progress import clock
from jobs.run.signals import Stop
from jobs.run.submitted import absolute, check_present, refuse_relative
from jobs.storage.lease import exclusive
from jobs.storage.location import Location, StorageError, check_writable
from jobs.training.checkpoints import CheckpointError
from jobs.training.loop import run
from jobs.training.ranks import AgreedError, Ranks
from jobs.training.stages import (
    failed,
    finished,
    has_checkpoint,
    last_save,
    on_workers,
    shared_summary,
)
from jobs.training.state import TrainingResult
from jobs.training.steps import steps_per_epoch
from jobs.training.task import Hooks, validation_metric
from jobs.weights.classifier import load_weights
from vit.cost import parameters
from vit.data import sets
from vit.data.decode import DataError
from vit.model import build
from vit.weights import WeightsError, fit


def work(config: TrainConfig, device: torch.device, hooks: Hooks) -> TrainingResult:
    """Load the data, then run the epoch loop; called on every rank."""
    ranks = Ranks.here()
    if ranks.rank == 0:
        hooks.say("loading the data into memory")
    try:
        task = ranks.each(lambda: VitTask(config, load(config), device, ranks))
        return run(task, config, Location.parse(config.out) / "checkpoints", hooks)
    except AgreedError as error:
        return TrainingResult(ended="failed", error=str(error))


def check(config: TrainConfig) -> None:
    """Check data and weights before any worker starts; downloads a data set that was not given.

    Data in object storage are checked by the workers, because each node has its own copy.
    """
    check_present("--data", config.data)
    classes = None
    if all(Location.parse(path).local_path for path in config.data):
        summary = sets.check(config.dataset, local_paths(config))
        steps_per_epoch(summary.train, config.batch_size)
        classes = summary.classes
    check_weights(config, classes)
    if classes is not None and connect.starts_own():
        # The workers share this machine's cache, so they need not decode again.
        steps_per_epoch(len(load(config).train), config.batch_size)
    if config.model.drop_rate or config.model.attn_drop_rate:
        print("dropout is above 0: results depend on the number of workers")


def check_weights(config: TrainConfig, classes: Sequence[str] | None) -> None:
    """Check that `init_weights` fit, and print what is loaded of them.

    Args:
        config: the settings of the run.
        classes: the data's classes; None if they are not known here, then the head is not checked.

    Raises:
        WeightsError: the weights do not fit.
        StorageError: the weights cannot be read.
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
                print(f"dataset.{name} is {now}, but the weights were trained with {then}")


def train(config: TrainConfig) -> int:
    """Run the stages of the job in order; returns its exit code."""
    # 1. Checks that need no workers.
    refuse_relative(config.out)
    config = absolute(config, "out", "data", "init_weights")
    out = Location.parse(config.out)
    check_same(out, config)
    if done := finished(out, config.patience):
        print_result(out, done)
        return 0
    needed = replace(config, init_weights=None) if has_checkpoint(out) else config
    check(needed)
    with exclusive(out, "jobs.train"):
        check_writable(out)
        describe(out, config)
        # 2. Training, and the test set at its end.
        with Stop() as stop:
            small = parameters(needed.model, num_classes=1000) <= SMALL_MODEL
            result = on_workers(work, needed, out, stop, SHARING if small else 1)
        # 3. Weights, curves and summary.
        try:
            return conclude(config, out, result, stop)
        except (CheckpointError, StorageError) as error:
            raise JobError(f"the training is finished, but {error}") from error


def conclude(config: TrainConfig, out: Location, result: TrainingResult, stop: Stop) -> int:
    """Publish weights, curves and summary of a finished run; returns the exit code.

    For a run that is not finished, print how it ended.
    """
    if (code := failed(result, stop, "jobs.train")) is not None:
        return code
    (out / "curves.png").write_bytes(curves_png(result.state.history, title=str(out)))
    summary = summarize(config, result)
    export(config, out, result, summary)
    (out / "summary.json").write_json(summary)
    print_result(out, summary)
    return last_save(result, "jobs.train")


def summarize(config: TrainConfig, result: TrainingResult) -> dict[str, Any]:
    """Return summary.json: accuracies are fractions, null where there is no test set."""
    return {
        "val_accuracy": validation_metric(result.best_row, "accuracy"),
        "test_accuracy": result.test.get("test_accuracy"),
        "test_loss": result.test.get("test_loss"),
        "val_track_accuracy": track_accuracy(result.best_row),
        "test_track_accuracy": result.test.get("test_track_accuracy"),
        **shared_summary(config, result),
        "numerics": result.state.facts["numerics"],
    }


def track_accuracy(row: dict[str, Any]) -> float | None:
    """Return the share of validation tracks that are right by votes; None: there are none."""
    return row.get("ema_track_accuracy", row.get("val_track_accuracy"))


def print_result(out: Location, summary: dict[str, Any]) -> None:
    """Print the figures of a finished run, and where its files are."""
    test = summary["test_accuracy"]
    measured = "no test set" if test is None else f"test accuracy {test:.2%}"
    tracks = {name: summary.get(f"{name}_track_accuracy") for name in ("test", "val")}
    of_test, of_val = (
        "" if value is None else f" ({value:.2%} of tracks)" for value in tracks.values()
    )
    print(
        f"done: {measured}{of_test}, validation {summary['val_accuracy']:.2%}{of_val} (epoch"
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
    return run_job(train, TrainConfig, argv, "jobs.train", __doc__, (DataError, WeightsError))


if __name__ == "__main__":
    sys.exit(main())
