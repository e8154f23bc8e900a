"""The processes of a trial, which train it: rank 0, which Ray Tune starts, and the other ranks.

A trial of several processes has one placement group of Tune's, with a bundle for each. Rank 0
starts the others in the group's other bundles, so Tune counts their resources, and all of them are
free again when Tune stops the trial. (Ray Train's trainer inside a trial would make a second
group, which Tune would not know of.)
"""

import os
import socket
import threading
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import tune
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from jobs.classifier.task import TrainConfig, VitTask, load
from jobs.cluster.actors import reason
from jobs.cluster.link import Link
from jobs.cluster.workers import DATA_SECONDS, Resources, keep_memory
from jobs.run.device import settle
from jobs.run.folder import write_metrics
from jobs.run.machine import hardware
from jobs.storage.location import Location
from jobs.training.checkpoints import Checkpoints
from jobs.training.loop import run
from jobs.training.ranks import AgreedError, Ranks
from jobs.training.state import TrainingResult
from jobs.training.task import Hooks

ABANDON_SECONDS = 30.0
"""How long rank 0 may take to notice that another rank was lost; then its process ends."""


@dataclass(frozen=True)
class TrialWork:
    """What the processes of a trial need to train it."""

    number: int
    """Number of the trial."""
    config: TrainConfig
    resources: Resources
    link: Link
    test: bool
    """Whether to measure on the test set at the end."""


class _TrialHooks:
    """The hooks of the training loop on one rank of a trial; rank 0 reports to Tune."""

    def __init__(self, work: TrialWork) -> None:
        self._work = work
        self._stop = work.link.watch()

    def report(self, row: dict[str, Any]) -> None:
        """Give Tune the row, and wait for its decision: a trial that it stops ends here."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            tune.report({"rows": [row]})

    def progress(self, facts: dict[str, Any]) -> None:
        """Send the position in the training to the driver's terminal."""
        if "row" not in facts:
            self._work.link.push({"trial": self._work.number, **facts})

    def say(self, line: str) -> None:
        """Drop the line: there are too many trials to print it."""

    def record(self, history: list[dict[str, Any]]) -> None:
        """Publish the trial's metrics.csv."""
        write_metrics(Location.parse(self._work.config.out), history)

    def stop_requested(self) -> bool:
        """Return whether the driver requested a stop."""
        return self._stop.is_set()

    def preempted(self) -> bool:
        """Return False: only Ray Train tells its workers."""
        return False


def run_trial(config: dict[str, Any]) -> None:
    """Run a trial in the process that Tune starts, as rank 0, and report rows and the end to Tune.

    Args:
        config: Tune's configuration of the trial; its `work` is a TrialWork.
    """
    work: TrialWork = config["work"]
    checkpoints = Checkpoints(Location.parse(work.config.out) / "checkpoints", "")
    if (name := checkpoints.latest()) is not None:  # the driver may lack some of its rows
        tune.report({"rows": checkpoints.state(name)["history"]})
    address = _free_address()
    lost: list[str] = []
    others = _start_other_ranks(work, address)
    if others:
        threading.Thread(target=_end_if_lost, args=(others, lost), daemon=True).start()
    try:
        result = _train_rank(work, 0, address)
    except Exception as error:
        if lost or (others and not _is_out_of_memory(error)):
            raise  # perhaps another rank was lost: Tune restarts the trial from its checkpoint
        result = TrainingResult(ended="failed", error=_describe(error))
    tune.report({"end": [result.as_facts()]})  # in a list, as Tune flattens nested dicts


def _train_rank(work: TrialWork, rank: int, address: str) -> TrainingResult:
    """Train as one rank of a trial; ranks meet at `address`, as host:port."""
    keep_memory()
    resources = work.resources
    torch.set_num_threads(max(1, int(resources.cpus)))
    if resources.workers > 1:
        dist.init_process_group(
            resources.backend,
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=resources.workers,
            timeout=timedelta(seconds=DATA_SECONDS),
        )
    device = torch.device("cpu")
    if resources.cuda:
        device = torch.device("cuda", 0)  # Ray shows a process only its own GPUs
        torch.cuda.set_device(device)
    settle(device, resources.gpus)
    result = train_trial(work.config, device, _TrialHooks(work), work.test)
    return replace(result, hardware=hardware())


def _start_other_ranks(work: TrialWork, address: str) -> list[Any]:
    """Start the other ranks in the other bundles of this trial's placement group."""
    group: Any = ray.util.get_current_placement_group()
    remote: Any = ray.remote(max_calls=1)(_train_rank)  # no later task gets its process group
    return [
        remote.options(
            num_cpus=work.resources.cpus,
            num_gpus=work.resources.gpus,
            max_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=rank
            ),
        ).remote(work, rank, address)
        for rank in range(1, work.resources.workers)
    ]


def _end_if_lost(others: list[Any], lost: list[str]) -> None:
    """End this process when another rank is lost and the collectives do not notice.

    gloo raises at once, NCCL may wait for its timeout. Tune then restarts the trial.
    """
    waiting = others
    while waiting:
        done, waiting = ray.wait(waiting)
        try:
            ray.get(done)
        except Exception as error:
            lost.append(reason(error))
            threading.Event().wait(ABANDON_SECONDS)
            os._exit(1)


def _is_out_of_memory(error: BaseException) -> bool:
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}"
    return f"out of memory ({text})" if _is_out_of_memory(error) else text


def _free_address() -> str:
    host = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def train_trial(
    config: TrainConfig, device: torch.device, hooks: Hooks, test: bool
) -> TrainingResult:
    """Train a trial, on every rank of it; resumes from its last checkpoint.

    Args:
        config: of the trial.
        device: of this rank.
        hooks: called by the training loop.
        test: whether to measure on the test set at the end; a sweep does not.
    """
    ranks = Ranks.here()
    try:
        dataset = ranks.each(lambda: load(config))
        dataset = dataset if test else replace(dataset, test=None)
        task = VitTask(config, dataset, device, ranks)
        return run(task, config, Location.parse(config.out) / "checkpoints", hooks)
    except AgreedError as error:
        return TrainingResult(ended="failed", error=str(error))
