"""Fit a promptable segmenter to images with masks: SAM, or the small one that Patchray ships.

    python -m jobs.finetune --data masks/ --out runs/mine --workers 2

goes on from `mini`; --init-weights vit_b from Meta's SAM. --data are Parquet files (columns image,
masks, ignore), COCO JSON beside its images, DAVIS folders, or the --out of a jobs.mask. The same
command on the same folder goes on where it stopped, whatever stopped it.

    python -m jobs.finetune --evaluate --weights runs/mine --data held-back.parquet --json out.json

measures weights by simulated clicks instead: --evaluate --help lists its flags.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from jobs.cluster import connect
from jobs.cluster.workers import LaunchError
from jobs.run.config import ConfigError, parse
from jobs.run.folder import check_same, curves, describe
from jobs.run.progress import clock
from jobs.run.signals import Stop
from jobs.run.submitted import refuse_relative, why_not_here
from jobs.segmenter import evaluate
from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.export import export
from jobs.segmenter.network import named, start
from jobs.segmenter.task import SegmentTask, Sets, load
from jobs.storage.location import Location, StorageError, check_writable
from jobs.training.checkpoints import CheckpointError as StateError
from jobs.training.checkpoints import Checkpoints
from jobs.training.loop import run
from jobs.training.ranks import AgreedError, Ranks
from jobs.training.stages import common, failed, finished, last_save, on_workers
from jobs.training.task import Hooks
from jobs.weights.segmenter import announce
from masking.segmenter.sam import CheckpointError
from masking.training.pairs import ImageError, NothingToLearnError, faults


def work(config: FinetuneConfig, device: torch.device, hooks: Hooks) -> dict[str, Any]:
    """What a worker does: find the pairs, then run the epoch loop. Called on every rank."""
    ranks = Ranks.here()

    def prepare() -> SegmentTask:
        sets = load(config)
        if ranks.rank == 0 and remote(config) and not going_on(config):
            check_pairs(config, sets)  # where all are local, the driver has done so
        return SegmentTask(config, sets, device, ranks)

    try:
        task = ranks.each(prepare)
        return run(task, config, Location.parse(config.out) / "checkpoints", hooks)
    except AgreedError as error:
        return {"ended": "failed", "error": str(error)}


def finetune(config: FinetuneConfig) -> int:
    """The stages of the job, in order."""
    # 1. What can be known without workers.
    refuse_relative(config.out)
    config = absolute(config)
    out = Location.parse(config.out)
    check_same(out, config)
    check_writable(out)
    if done := finished(out, config.patience):
        print_result(out, done)
        return 0
    if not going_on(config):  # a checkpoint needs neither the start weights nor the check again
        check(config)
    announce(config.init_weights)
    describe(out, config)
    # 2. Training.
    with Stop() as stop:
        facts = on_workers(work, config, out, stop)
    # 3. What it leaves.
    try:
        return conclude(config, out, facts, stop)
    except (StateError, StorageError) as error:
        raise LaunchError(f"the training is over, but {error}") from error


def going_on(config: FinetuneConfig) -> bool:
    """Whether there is a checkpoint to go on from."""
    folder = Location.parse(config.out) / "checkpoints"
    return Checkpoints(folder, token="").latest() is not None


def remote(config: FinetuneConfig) -> bool:
    """Whether any of the data lie in object storage."""
    return not all(Location.parse(path).local_path for path in (*config.data, *config.val))


def absolute(config: FinetuneConfig) -> FinetuneConfig:
    """The same config with paths that mean the same in a worker's folder, or on another day."""
    data, val = (
        tuple(str(Location.parse(path)) for path in paths) for paths in (config.data, config.val)
    )
    weights = config.init_weights
    if not named(weights):
        weights = str(Location.parse(weights))
    return replace(
        config, out=str(Location.parse(config.out)), data=data, val=val, init_weights=weights
    )


def check(config: FinetuneConfig) -> None:
    """Find the faults that show without workers; data in object storage are theirs to check."""
    places = [Location.parse(path) for path in (*config.data, *config.val)]
    missing = [str(place) for place in places if not place.exists()]
    if missing:
        raise ConfigError(
            f"--data, --val: no such file or folder: {', '.join(missing)}{why_not_here()}"
        )
    if not remote(config):
        check_pairs(config, load(config))
    start(config)


def check_pairs(config: FinetuneConfig, sets: Sets) -> None:
    """Decode all images once; raises ImageError if more are bad than the config allows."""
    for note in {*sets.train.notes, *sets.val.notes}:
        print(note)
    if len(sets.train) < config.batch_size:
        raise ConfigError(
            f"--data has {len(sets.train)} images to train on, fewer than a batch of"
            f" --batch-size {config.batch_size}"
        )
    threads, errors = os.cpu_count() or 1, list[ImageError]()
    for what, part in (("to train on", sets.train), ("held back", sets.val)):
        found = faults(part, threads)
        errors += found.values()
        if len(found) == len(part):
            raise ImageError(
                f"--data, --val: none of the {len(part):,} images {what} can be used;"
                " look at --pairs.smallest and --pairs.largest",
                *map(str, found.values()),
            )
    bad = [error for error in errors if not isinstance(error, NothingToLearnError)]
    if len(errors) > len(bad):
        print(
            f"{len(errors) - len(bad):,} images show no object between pairs.smallest and .largest"
        )
    if len(bad) > config.max_bad_images:
        raise ImageError(
            f"--data, --val: {len(bad):,} images cannot be used;"
            f" --max-bad-images {len(bad)} would let others stand in for them",
            *(str(error) for error in bad),
        )
    for error in bad:
        print(f"cannot be used: {error}")


def conclude(config: FinetuneConfig, out: Location, facts: dict[str, Any], stop: Stop) -> int:
    """Publish weights, curves and summary of a run that is over; say how it ended otherwise."""
    if (code := failed(facts, stop, "jobs.finetune")) is not None:
        return code
    kinds = ("loss", "miou_1", "miou_3", "miou_5")
    (out / "curves.png").write_bytes(curves(facts["history"], str(out), kinds))
    summary = summarize(config, facts)
    export(config, out, summary)
    (out / "summary.json").write_json(summary)
    print_result(out, summary)
    return last_save(facts, "jobs.finetune")


def summarize(config: FinetuneConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """What summary.json holds; the figures are those of the best epoch."""
    best = facts["history"][facts["best_epoch"] - 1]
    prefix = "ema" if config.ema_half_life else "val"
    figures = {
        name: best[f"{prefix}_{name}"] for name in ("miou_1", "miou_3", "miou_5", "clicks_to_85")
    }
    return {**figures, **common(config, facts), "precision": facts["facts"]["precision"]}


def print_result(out: Location, summary: dict[str, Any]) -> None:
    """Say what came out, and where it lies."""
    print(
        f"done: mean IoU {summary['miou_1']:.3f} / {summary['miou_3']:.3f} /"
        f" {summary['miou_5']:.3f} after 1 / 3 / 5 clicks (epoch {summary['best_epoch']} of"
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
    config = parse(FinetuneConfig, argv, "jobs.finetune", __doc__)
    try:
        return finetune(config)
    except (ConfigError, ImageError, CheckpointError, StorageError, connect.ClusterError) as error:
        sys.stderr.write(f"jobs.finetune: {error}\n")
        return 2
    except LaunchError as error:
        sys.stderr.write(f"jobs.finetune: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
