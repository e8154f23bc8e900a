"""Finetune a promptable segmenter on images with masks: SAM, or the small one of Patchray.

    python -m jobs.finetune --data masks/ --out runs/mine --workers 2

starts from `mini`; --init-weights vit_b starts from Meta's SAM. --data are Parquet files (columns
image, masks, ignore), COCO JSON beside its images, DAVIS folders, or the --out of a jobs.mask. The
same command on the same folder resumes, whatever ended it.

    python -m jobs.finetune --evaluate --weights runs/mine --data held-back.parquet --json out.json

measures weights with simulated clicks instead; --evaluate --help lists its flags.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from jobs.cluster.workers import SHARING
from jobs.run.folder import check_same, describe
from jobs.run.main import JobError, run_job
from jobs.run.plots import curves_png
from jobs.run.progress import clock
from jobs.run.signals import Stop
from jobs.run.submitted import absolute, check_present, refuse_relative
from jobs.segmenter import evaluate
from jobs.segmenter.clips import ClipTask, load_films
from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.data import check_pairs, load
from jobs.segmenter.export import export
from jobs.segmenter.network import is_name, starting_network
from jobs.segmenter.task import SegmentTask
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
from jobs.training.task import Hooks, validation_metric
from jobs.weights.segmenter import OFFICIAL, announce
from masking.segmenter.sam import SegmenterWeightsError
from masking.training.pairs import ImageError


def work(config: FinetuneConfig, device: torch.device, hooks: Hooks) -> TrainingResult:
    """Find the images with masks, then run the epoch loop; called on every rank."""
    ranks, out = Ranks.here(), Location.parse(config.out)

    def prepare() -> SegmentTask:
        sets = load(config)
        if ranks.rank == 0 and is_remote(config) and not has_checkpoint(out):
            check_pairs(config, sets)  # local data were checked by the driver
        if config.clips:
            return ClipTask(config, sets, load_films(config), device, ranks)
        return SegmentTask(config, sets, device, ranks)

    try:
        task = ranks.each(prepare)
        return run(task, config, out / "checkpoints", hooks)
    except AgreedError as error:
        return TrainingResult(ended="failed", error=str(error))


def finetune(config: FinetuneConfig) -> int:
    """Run the stages of the job in order; returns its exit code."""
    # 1. Checks that need no workers.
    refuse_relative(config.out)
    start = () if is_name(config.init_weights) else ("init_weights",)
    config = absolute(config, "out", "data", "val", "clips", *start)
    out = Location.parse(config.out)
    check_same(out, config)
    if done := finished(out, config.patience):
        print_result(out, done)
        return 0
    if not has_checkpoint(out):  # a checkpoint needs no start weights, and its data were checked
        check(config)
    announce(config.init_weights)
    with exclusive(out, "jobs.finetune"):
        check_writable(out)
        describe(out, config)
        # 2. Training.
        with Stop() as stop:
            sharing = 1 if config.init_weights in OFFICIAL else SHARING
            result = on_workers(work, config, out, stop, sharing)
        # 3. Weights, curves and summary.
        try:
            return conclude(config, out, result, stop)
        except (CheckpointError, StorageError) as error:
            raise JobError(f"the training is finished, but {error}") from error


def is_remote(config: FinetuneConfig) -> bool:
    """Return whether any of the data are in object storage."""
    paths = (*config.data, *config.val, *config.clips)
    return not all(Location.parse(path).local_path for path in paths)


def check(config: FinetuneConfig) -> None:
    """Check data and start weights before any worker starts.

    Data in object storage are checked by the workers, because each node has its own copy.
    """
    check_present("--data, --val, --clips", (*config.data, *config.val, *config.clips))
    if not is_remote(config):
        check_pairs(config, load(config))
        if config.clips:
            load_films(config)
    starting_network(config)


def conclude(config: FinetuneConfig, out: Location, result: TrainingResult, stop: Stop) -> int:
    """Publish weights, curves and summary of a finished run; returns the exit code.

    For a run that is not finished, print how it ended.
    """
    if (code := failed(result, stop, "jobs.finetune")) is not None:
        return code
    kinds = ("loss", *(name for name in config.figures if "iou" in name))
    (out / "curves.png").write_bytes(curves_png(result.state.history, str(out), kinds))
    summary = summarize(config, result)
    export(config, out, summary)
    (out / "summary.json").write_json(summary)
    print_result(out, summary)
    return last_save(result, "jobs.finetune")


def summarize(config: FinetuneConfig, result: TrainingResult) -> dict[str, Any]:
    """Return summary.json; its figures are those of the best epoch."""
    return {
        **{name: validation_metric(result.best_row, name) for name in config.figures},
        **shared_summary(config, result),
        "precision": result.state.facts["precision"],
    }


def print_result(out: Location, summary: dict[str, Any]) -> None:
    """Print the figures of a finished run, and where its files are."""
    clicks = (summary.get(f"miou_{count}") for count in (1, 3, 5))
    if "iou" in summary:
        reached = f"{summary['iou']:.3f} through videos"
    else:
        reached = " / ".join(f"{iou:.3f}" for iou in clicks) + " after 1 / 3 / 5 clicks"
    print(
        f"done: mean IoU {reached} (epoch {summary['best_epoch']} of"
        f" {summary['epochs']}), {summary['images_per_s']:,.1f} images/s,"
        f" {clock(summary['wall_s'])}\n"
        f"  curve    {out / 'curves.png'}\n"
        f"  weights  {out / 'export' / 'model.safetensors'}\n"
        f"  summary  {out / 'summary.json'}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if "--evaluate" in argv:
        return evaluate.main([word for word in argv if word != "--evaluate"])
    errors = (ImageError, SegmenterWeightsError)
    return run_job(finetune, FinetuneConfig, argv, "jobs.finetune", __doc__, errors)


if __name__ == "__main__":
    sys.exit(main())
