"""What every training job does around its workers, up to the summary of a run that is over."""

import sys
from typing import Any

from jobs.cluster import connect
from jobs.cluster.workers import Resources
from jobs.run.folder import versions
from jobs.run.progress import TrainingProgress
from jobs.run.signals import Stop
from jobs.storage.location import Location
from jobs.training.launch import Body, launch
from jobs.training.task import TrainingConfig


def finished(out: Location, patience: int) -> dict[str, Any] | None:
    """The summary of a run that is over, or None: more patience lets a run go on."""
    path = out / "summary.json"
    summary = path.read_json() if path.exists() else None
    if not summary or summary["save_error"]:
        return None
    over = summary["ended"] == "epochs" or summary["patience"] == patience
    return summary if over else None


def on_workers(body: Body, config: TrainingConfig, out: Location, stop: Stop) -> dict[str, Any]:
    """Run `body(config, device, hooks)` on the workers of a Ray that can hold them.

    Returns rank 0's facts. Raises ClusterError before anything started, LaunchError after.
    """
    with connect.connect():
        cuda, gpus = connect.choose_device(
            config.device, config.workers, config.cpus_per_worker, config.gpus_per_worker
        )
        resources = Resources(config.workers, config.cpus_per_worker, gpus, cuda)
        connect.require(
            config.workers, config.cpus_per_worker, gpus, stop, wait=config.wait_for_nodes
        )
        progress = TrainingProgress(config.epochs)
        return launch(
            body, config, resources, config.max_restarts, out, progress, stop, config.wait_for_nodes
        )


def failed(facts: dict[str, Any], stop: Stop, prog: str) -> int | None:
    """The exit code of a run that is not over, after saying why; None of one that is."""
    if facts["ended"] == "stopped":
        return 1 if facts["save_error"] else stop.exit_code or 1
    if facts["error"]:
        sys.stderr.write(f"{prog}: {facts['error']}\n")
        return 1
    if facts["save_error"] and not facts["best_epoch"]:  # over, and nothing of it was saved
        return last_save(facts, prog)
    return None


def last_save(facts: dict[str, Any], prog: str) -> int:
    """The exit code of a run that is over: 1 if its last save failed, which is said."""
    if facts["save_error"]:
        sys.stderr.write(f"{prog}: the last save failed: {facts['save_error']}\n")
        return 1
    return 0


def common(config: TrainingConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """What the summary.json of every training holds."""
    samples = facts["step"] * config.batch_size
    return {
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
        "save_error": facts["save_error"],
        "versions": versions(),
        "hardware": facts["hardware"],
    }
