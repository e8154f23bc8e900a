"""The epoch loop of any training, on any number of ranks: plain torch.

A `Task` is what differs between trainings; through `Hooks` the loop reports to the process that
started it. Nothing here knows Ray. All randomness is a function of (seed, epoch, step, sample),
so the whole state of a run is its weights, its optimizer and a few counts.
"""

import math
import resource
import secrets
import time
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jobs.storage.location import Location
from jobs.training.checkpoints import CheckpointError, Checkpoints
from jobs.training.ranks import Ranks
from jobs.training.saver import Saver
from jobs.training.snapshot import Snapshot, lay_out, restore, snapshot
from jobs.training.state import State, TrainingResult
from jobs.training.task import Hooks, LoopConfig, Task

EXCHANGE_SECONDS = 0.25
"""Time between two exchanges, in which losses are read and ranks agree on stopping and saving.

`ray job stop` leaves 3 s for a stop."""
PREEMPTION_SECONDS = 5.0
"""Time between two checks whether a node is about to be removed."""


class NonFiniteError(RuntimeError):
    """The loss or its gradient is not finite."""


class _StopRequestedError(Exception):
    """Leaves the loop after ranks have agreed on a stop and saved."""


def run(task: Task, config: LoopConfig, folder: Location, hooks: Hooks) -> TrainingResult:
    """Train until the last epoch, early stopping or a stop request; resumes what `folder` holds.

    Called on every rank, with the process group set up; returns on every rank. Whether the loss
    became infinite or the last save failed is in the result.

    Raises:
        AgreedError: on every rank, when the task or the last checkpoint cannot be used.
    """
    loop = _Loop(task, config, folder, hooks)
    try:
        return loop.finish(loop.epochs())
    except _StopRequestedError:
        return loop.finish("stopped")
    except NonFiniteError as error:
        return loop.finish("non-finite", str(error))


class _Loop:
    """One start of a run, on one rank."""

    def __init__(self, task: Task, config: LoopConfig, folder: Location, hooks: Hooks) -> None:
        self.task, self.config, self.hooks = task, config, hooks
        self.ranks = Ranks.here()
        self.started = time.monotonic()
        self.checkpoints = Checkpoints(folder, secrets.token_hex(4))
        self.saver = Saver(hooks.say)
        self.saved_at = time.monotonic()
        self.checked_at = time.monotonic()
        self.saved_for_preemption = False
        self.bare = task.build()
        self.optimizer = task.optimizer(self.bare)
        self.average = task.average(self.bare)
        self.state = self._resume()
        self._decide()
        self.model = self._parallel()
        self.totals: Tensor | None = None
        self.norms: list[Tensor] = []
        self.stride = 1
        self.resumed_wall = self.state.wall_seconds
        self.published = (self.state.best, self.state.best_epoch)
        self.window = time.monotonic()
        self.since = 0

    def _resume(self) -> State:
        """Load the last complete checkpoint, the same one on every rank; returns its state."""
        name = self.ranks.first(self.checkpoints.latest)
        line = self.ranks.first(lambda: self.checkpoints.passed_over(name))
        if line and self.ranks.rank == 0:
            self.hooks.say(line)
        if name is None:
            return State()
        state = self.ranks.each(lambda: self._load(name))
        if self.ranks.rank == 0:
            with suppress(OSError):  # a full disk must not end the training
                self.checkpoints.count_resume()
            self.hooks.say(
                f"resuming from step {state.step}: epoch {state.epoch + 1}, "
                f"{state.index} of {self.task.steps_per_epoch} batches done"
            )
        return state

    def _load(self, name: str) -> State:
        """Load a checkpoint into model, optimizer and average; raises CheckpointError."""
        saved = self.checkpoints.read(name)
        try:
            restore(self.bare, self.optimizer, self.average, saved)
            return State(**saved.state)
        except (KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{self.checkpoints.folder / name} does not fit this training: {error}"
            ) from error

    def _decide(self) -> None:
        """Apply what the first start of the run decided, which may be this one."""
        if not self.state.facts:
            part = math.ceil(self.config.batch_size / self.ranks.world)
            # All ranks probe, so that cores are as busy as in training; rank 0's choice holds.
            self.state.facts = self.ranks.agree(self.task.decide(self.bare, part))
        self.ranks.each(lambda: self.task.apply(self.bare, self.state.facts))
        lay_out(self.optimizer)
        if self.ranks.rank == 0:
            self.hooks.say(self.task.describe())

    def _parallel(self) -> nn.Module:
        """Wrap the model for data parallelism, with its buckets already in their final order.

        DDP rebuilds its buckets after the first backward, which changes the order of sums: a
        resumed run would differ from an uninterrupted one. A backward that is thrown away makes
        that happen before the first step of every start.
        """
        if self.ranks.world == 1:
            return self.bare
        model = DistributedDataParallel(
            self.bare, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
        state = self.state
        # The next batch, so that a stream need not read another one.
        index = min(state.index, self.task.steps_per_epoch - 1)
        self.task.gradients(model, state.epoch, index, state.step)
        model.zero_grad(set_to_none=True)
        return model

    def epochs(self) -> Literal["epochs", "patience"]:
        """Run epochs to the last one or until patience is over; returns which it was."""
        while self.state.epoch < self.config.epochs:
            if self._out_of_patience():
                return "patience"
            self._batches()
            self._end_epoch()
        return "epochs"

    def _out_of_patience(self) -> bool:
        waited = self.state.epoch - self.state.best_epoch
        return 0 < self.config.patience <= waited

    def _batches(self) -> None:
        """Train on the remaining batches of this epoch: the hot loop, without host syncs."""
        state, task = self.state, self.task
        self.model.train()
        self.window = time.monotonic()
        self.since = 0
        while state.index < task.steps_per_epoch:
            sums = task.gradients(self.model, state.epoch, state.index, state.step)
            self.totals = sums if self.totals is None else self.totals + sums
            norm = task.update(self.model, self.optimizer, self.average, state.step)
            self.norms.append(norm)
            state.step += 1
            state.index += 1
            self.since += 1
            if self.since >= self.stride or state.index == task.steps_per_epoch:
                self._exchange()

    def _exchange(self) -> None:
        """Read losses, report progress, and let rank 0 decide for all on stopping and saving."""
        self._check_finite()
        pace = self._close_window()
        now = time.monotonic()
        request = {
            "stop": self.hooks.stop_requested(),
            "save": now - self.saved_at > 60 * self.config.save_minutes and not self.saver.busy,
            "check": now - self.checked_at > PREEMPTION_SECONDS,
            "stride": max(1, min(1000, round(EXCHANGE_SECONDS / pace))),
        }
        request = self.ranks.agree(request)
        self.stride = request["stride"]
        if request["check"]:
            self.checked_at = now
            self._save_before_preemption()
        if request["stop"] or request["save"]:
            self._save(("last",))
        if request["stop"]:
            raise _StopRequestedError

    def _save_before_preemption(self) -> None:
        """Save once when a node is about to be removed; Ray restarts the ranks elsewhere."""
        if self.hooks.preempted() and not self.saved_for_preemption:
            self.saved_for_preemption = True
            if self.ranks.rank == 0:
                self.hooks.say("a node is about to be removed: saving")
            self._save(("last",))

    def _check_finite(self) -> None:
        """Raise NonFiniteError, on all ranks at once, before anything that follows is saved."""
        if not self.norms:
            return
        finite = torch.isfinite(torch.stack(self.norms)).tolist()
        first = self.state.step - len(self.norms)
        self.norms.clear()
        if not all(finite):
            bad = first + finite.index(False)
            raise NonFiniteError(
                f"the loss is not finite at step {bad} (epoch {self.state.epoch + 1}, batch"
                f" {bad % self.task.steps_per_epoch + 1} of {self.task.steps_per_epoch});"
                " start in another --out, with a lower learning rate, or a lower limit of the"
                " gradient's norm"
            )

    def _close_window(self) -> float:
        """Count the time since the last exchange; the device has finished its steps.

        Returns the seconds per step.
        """
        now = time.monotonic()
        pace = (now - self.window) / max(1, self.since)
        self.state.train_seconds += now - self.window
        if self.since and self.ranks.rank == 0:
            self.hooks.progress(
                {
                    "epoch": self.state.epoch,
                    "index": self.state.index,
                    "steps": self.task.steps_per_epoch,
                    "images_per_s": self.config.batch_size / pace,
                }
            )
        self.window, self.since = now, 0
        return pace

    def _end_epoch(self) -> None:
        """Evaluate, add the epoch's row to the history, save, report."""
        state = self.state
        sums = self._reduce_totals()
        row: dict[str, Any] = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "samples_seen": state.step * self.config.batch_size,
            "lr": self.task.learning_rate(state.step - 1),
            **self.task.metrics(sums, "train"),
            **self._evaluate(self.bare, "val", "val"),
            **(self._evaluate(self.average, "val", "ema") if self.average else {}),
            "images_per_s": state.step * self.config.batch_size / state.train_seconds,
            "seconds": self._wall(),
        }
        state.history.append(row)
        state.epoch, state.index, state.sums = state.epoch + 1, 0, []
        self._agree_on_best()
        better = self.task.score(row) > state.best
        if better:
            state.best, state.best_epoch = self.task.score(row), state.epoch
        # best first: after a kill between the two, the best of the state that is read exists.
        self._save(("best", "last") if better else ("last",))
        if self.ranks.rank == 0:
            self.hooks.progress({"row": row})
        self.hooks.report(row)
        if self.ranks.agree(self.hooks.stop_requested()):
            raise _StopRequestedError

    def _evaluate(
        self, model: nn.Module, split: Literal["val", "test"], prefix: str
    ) -> dict[str, float]:
        """Return a split's metrics over all ranks; empty if there is no such split."""
        sums = self.task.evaluate(model, split)
        return {} if sums is None else self.task.metrics(self.ranks.add(sums), prefix)

    def _agree_on_best(self) -> None:
        """Return to the best epoch that was saved, if the save of a better one failed."""
        if self.ranks.rank == 0:
            self.saver.wait()
        self.state.best, self.state.best_epoch = self.ranks.agree(self.published)

    def _wall(self) -> float:
        return self.resumed_wall + time.monotonic() - self.started

    def _reduce_totals(self) -> list[float]:
        """Return sums over all ranks of this epoch so far, including steps before a resume."""
        sums = self.state.sums
        if self.totals is not None:
            new = self.ranks.add(self.totals)
            sums = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
            self.totals = None
        return sums

    def _save(self, pointers: tuple[str, ...]) -> None:
        """Copy the state and write it in the background, on rank 0; all ranks must call it."""
        self.state.sums = self._reduce_totals()
        self.state.wall_seconds = self._wall()
        self.saved_at = time.monotonic()
        if self.ranks.rank > 0:
            return
        self.saver.wait()
        plain = asdict(self.state)
        saved = snapshot(self.bare, self.optimizer, self.average, self.state.step, plain)
        self.saver.submit(partial(self._publish, saved, pointers))

    def _publish(self, saved: Snapshot, pointers: tuple[str, ...]) -> None:
        """Write the checkpoint, then publish its history; runs in the saver's thread."""
        self.checkpoints.write(saved, pointers)
        if "best" in pointers:
            self.published = (saved.state["best"], saved.state["best_epoch"])
        try:
            self.hooks.record(saved.state["history"])
        except OSError as error:
            self.hooks.say(f"metrics.csv and events are not up to date: {error}")

    def finish(
        self,
        ended: Literal["epochs", "patience", "stopped", "non-finite"],
        error: str | None = None,
    ) -> TrainingResult:
        """Wait for the last save; after the last epoch, test the best weights."""
        self._agree_on_best()
        if ended == "stopped" and self.ranks.rank == 0:
            saved = "saved" if self.saver.error is None else "NOT saved"
            self.hooks.say(
                f"stopped after step {self.state.step}, {saved}; the same command resumes"
            )
        test = {}
        if ended in ("epochs", "patience"):
            self._load_best()
            test = self._evaluate(self.bare, "test", "test")
        self.state.wall_seconds = self._wall()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return TrainingResult(
            ended=ended,
            error=error,
            save_error=self.saver.error,
            test=test,
            state=self.state,
            resumed=self.checkpoints.resumes(),
            peak_rss_mb=self.ranks.most(peak),
        )

    def _load_best(self) -> None:
        """Load the best weights; without a checkpoint of them the last weights are kept."""
        name = self.ranks.first(self.checkpoints.best)
        if name is not None:
            saved = self.ranks.each(lambda: self.checkpoints.read(name))
            self.bare.load_state_dict(saved.average or saved.weights)
