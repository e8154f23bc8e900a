"""The stages of every training job around its workers, up to the summary of a finished run."""

import json
import sys
from typing import Any

from jobs.cluster import connect
from jobs.cluster.workers import Resources
from jobs.run.machine import versions
from jobs.run.progress import TrainingProgress
from jobs.run.signals import Stop
from jobs.storage.location import Location
from jobs.training.checkpoints import Checkpoints
from jobs.training.launch import Body, launch
from jobs.training.state import TrainingResult
from jobs.training.task import TrainingConfig


def finished(out: Location, patience: int) -> dict[str, Any] | None:
    """Return the summary of a run that is finished, else None; more patience resumes a run."""
    summary = _summary(out / "summary.json")
    if summary is None or summary["save_error"]:
        return None
    over = summary["ended"] == "epochs" or summary["patience"] == patience
    return summary if over else None


_SUMMARIZED = {
    *("ended", "patience", "save_error", "best_epoch", "epochs", "images_per_s", "wall_s"),
}


def _summary(path: Location) -> dict[str, Any] | None:
    """Read summary.json; None if it is absent or damaged: the run then writes it again."""
    try:
        found = json.loads(path.read_bytes()) if path.exists() else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() >= _SUMMARIZED else None


def has_checkpoint(out: Location) -> bool:
    """Return whether the run in `out` has a checkpoint to resume from."""
    return Checkpoints(out / "checkpoints", token="").latest() is not None


def on_workers(
    body: Body, config: TrainingConfig, out: Location, stop: Stop, sharing: int
) -> TrainingResult:
    """Run `body(config, device, hooks)` on workers of Ray; returns rank 0's result.

    At most `sharing` workers share a GPU, unless `config` says how many.

    Raises:
        ClusterError: the cluster has no room for the workers; nothing was started.
        LaunchError: the workers failed and are not restarted.
    """
    with connect.connect():
        cuda, gpus = connect.choose_device(
            config.device,
            config.workers,
            config.cpus_per_worker,
            config.gpus_per_worker,
            sharing=sharing,
        )
        resources = Resources(config.workers, config.cpus_per_worker, gpus, cuda)
        connect.require(
            config.workers, config.cpus_per_worker, gpus, stop, wait=config.wait_for_nodes
        )
        progress = TrainingProgress(config.epochs)
        return launch(body, config, resources, out, progress, stop)


def failed(result: TrainingResult, stop: Stop, prog: str) -> int | None:
    """Return the exit code of a run that is not finished, and print why; None if it is."""
    if result.ended == "stopped":
        return 1 if result.save_error else stop.exit_code or 1
    if result.error:
        sys.stderr.write(f"{prog}: {result.error}\n")
        return 1
    if result.save_error and not result.state.best_epoch:  # finished, but no epoch was saved
        return last_save(result, prog)
    return None


def last_save(result: TrainingResult, prog: str) -> int:
    """Return the exit code of a finished run: 1 if its last save failed, which is printed."""
    if result.save_error:
        sys.stderr.write(f"{prog}: the last save failed: {result.save_error}\n")
        return 1
    return 0


def shared_summary(config: TrainingConfig, result: TrainingResult) -> dict[str, Any]:
    """Return the part of summary.json that every training has."""
    state = result.state
    samples = state.step * config.batch_size
    return {
        "best_epoch": state.best_epoch,
        "epochs": state.epoch,
        "ended": result.ended,
        "patience": config.patience,
        "samples_seen": samples,
        "images_per_s": samples / state.train_seconds,
        "train_s": state.train_seconds,
        "wall_s": state.wall_seconds,
        "peak_rss_mb": result.peak_rss_mb,
        "resumed": result.resumed,
        "workers": config.workers,
        "nodes": result.nodes,
        "save_error": result.save_error,
        "versions": versions(),
        "hardware": result.hardware,
    }
