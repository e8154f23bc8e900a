"""Checkpoints, from which a training resumes: immutable folders and two pointers to them.

A folder `step-<n>-<token>` is complete when its `files.json`, written last, exists and every file
that it lists has the size that it gives. `last.json` and `best.json` name a folder and are replaced
by one atomic put. Each start has a new token, so a late writer of a killed run never writes into a
folder of a later start, nor deletes one. After a save, folders that no pointer names are deleted,
except the one before the last, which a person can return to.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from jobs.storage.location import Location

FORMAT = 1
"""Version of a checkpoint's layout, in its `files.json`."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names the file and says what to do."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a training, copied to the host: training continues while it is written."""

    step: int
    """Optimizer steps taken so far."""
    weights: dict[str, Tensor]
    """The model's state dict."""
    optimizer: dict[str, Tensor]
    """The optimizer's state: tensors by the names `<key>/<parameter>`."""
    state: dict[str, Any]
    """The part that is not tensors: the fields of `jobs.training.state.State`."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """The state dict of the averaged weights; empty if no average is kept."""
    wait: Callable[[], None] = lambda: None
    """Waits until the copies from the device have arrived."""


def snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    step: int,
    state: dict[str, Any],
) -> Snapshot:
    """Copy a bare model, its optimizer and its average to the host, not waiting for the device."""
    averaged = {} if average is None else average.state_dict()
    weights = {name: _to_host(tensor) for name, tensor in model.state_dict().items()}
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    states = {
        f"{key}/{names[parameter]}": _to_host(tensor)
        for parameter, entries in optimizer.state.items()
        for key, tensor in entries.items()
    }
    kept = {name: _to_host(tensor) for name, tensor in averaged.items()}
    wait: Callable[[], None] = lambda: None  # noqa: E731
    if torch.cuda.is_available() and any(p.is_cuda for p in model.parameters()):
        event = torch.cuda.Event()
        event.record()
        wait = event.synchronize
    return Snapshot(step, weights, states, state, kept, wait)


def _to_host(tensor: Tensor) -> Tensor:
    """Return a copy that later steps do not change; from a GPU it is pinned and arrives later."""
    tensor = tensor.detach()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor, non_blocking=True)


def restore(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    saved: Snapshot,
) -> None:
    """Load a snapshot into a bare model, its optimizer and its average, on their device."""
    model.load_state_dict(saved.weights)
    if average is not None:
        average.load_state_dict(saved.average)
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_name: dict[str, dict[str, Tensor]] = {}
    for path, tensor in saved.optimizer.items():
        key, _, name = path.partition("/")
        by_name.setdefault(name, {})[key] = tensor
    packed = optimizer.state_dict()
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    packed["state"] = {
        index: by_name[names[parameter]]
        for index, parameter in enumerate(order)
        if names[parameter] in by_name
    }
    optimizer.load_state_dict(packed)


def lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's state the memory layout of its weights, which may have changed.

    Fused kernels read both by address; on a CPU they would silently pair the wrong numbers.
    """
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if value.shape == parameter.shape:
                entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class Checkpoints:
    """The checkpoints of a run, as one start of it reads and writes them."""

    def __init__(self, folder: Location, token: str) -> None:
        """List the checkpoints in `folder`; new ones get `token` in their names."""
        self.folder = folder
        self.token = token
        self._inherited = set(self._names())

    def write(self, saved: Snapshot, pointers: tuple[str, ...]) -> str:
        """Write a snapshot, then let `pointers` ("last", "best") name it; returns its name.

        Raises:
            StorageError: storage refused; earlier checkpoints are unchanged.
        """
        saved.wait()
        name = f"step-{saved.step}-{self.token}"
        if not self._complete(name):
            try:
                self._write_folder(self.folder / name, saved)
            except BaseException:
                self._drop(name)
                raise
        for pointer in pointers:
            (self.folder / f"{pointer}.json").write_json({"checkpoint": name, "step": saved.step})
        self._prune(name)
        return name

    def _write_folder(self, target: Location, saved: Snapshot) -> None:
        contents = {
            "weights.safetensors": lambda: save_tensors(saved.weights),
            "optimizer.safetensors": lambda: save_tensors(saved.optimizer),
            "average.safetensors": lambda: save_tensors(saved.average),
            "state.json": lambda: json.dumps(saved.state).encode(),
        }
        files = {}
        for name, make in contents.items():
            content = make()
            (target / name).write_bytes(content)
            files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        listing = {"format": FORMAT, "step": saved.step, "files": files}
        (target / "files.json").write_json(listing)

    def latest(self) -> str | None:
        """Return the name of the checkpoint to resume from, or None if none is complete.

        It is the one that `last.json` names, else the complete one with the most steps.
        """
        named = self._named("last")
        if named is not None and self._complete(named):
            return named
        return max(filter(self._complete, self._names()), key=_step_of, default=None)

    def best(self) -> str | None:
        """Return the name of the complete checkpoint that `best.json` names, or None."""
        named = self._named("best")
        return named if named is not None and self._complete(named) else None

    def read(self, name: str) -> Snapshot:
        """Read a checkpoint. Raises CheckpointError if a file is damaged or of another format."""
        target = self.folder / name
        listing = (target / "files.json").read_json()
        if listing["format"] != FORMAT:
            raise CheckpointError(
                f"{target} has checkpoint format {listing['format']}; this version reads {FORMAT}"
            )
        parts = {file: self._read_file(target, file, facts) for file, facts in _items(listing)}
        return Snapshot(
            step=listing["step"],
            weights=load_tensors(parts["weights.safetensors"]),
            optimizer=load_tensors(parts["optimizer.safetensors"]),
            state=json.loads(parts["state.json"]),
            average=load_tensors(parts["average.safetensors"]),
        )

    def state(self, name: str) -> dict[str, Any]:
        """Return the state of a complete checkpoint, without reading its tensors."""
        found: dict[str, Any] = (self.folder / name / "state.json").read_json()
        return found

    def count_resume(self) -> None:
        """Count that a start resumed from a checkpoint."""
        (self.folder / "resumes.json").write_json({"count": self.resumes() + 1})

    def resumes(self) -> int:
        """Return how often the run resumed from a checkpoint."""
        found = self._read_json("resumes.json")
        return 0 if found is None else int(found["count"])

    def _read_file(self, target: Location, file: str, facts: dict[str, Any]) -> bytes:
        content = (target / file).read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise CheckpointError(
                f"{target / file} is damaged: its SHA-256 is not the one in files.json; delete"
                f" the folder {target} to resume from the checkpoint before it"
            )
        return content

    def _named(self, pointer: str) -> str | None:
        found = self._read_json(f"{pointer}.json")
        return None if found is None else str(found["checkpoint"])

    def _read_json(self, *path: str) -> Any:
        """Return a small file's contents, or None if it does not exist.

        Other errors of storage are raised: if they counted as a missing file, a short network
        failure would restart a run from its beginning.
        """
        place = self.folder
        for name in path:
            place = place / name
        return place.read_json() if place.exists() else None

    def _names(self) -> list[str]:
        return [entry.name for entry in self.folder.list() if entry.name.startswith("step-")]

    def _complete(self, name: str) -> bool:
        """Return whether all files of a checkpoint exist in their full size."""
        listing = self._read_json(name, "files.json")
        if listing is None:
            return False
        sizes = {entry.name: entry.size for entry in (self.folder / name).list()}
        return all(sizes.get(file) == facts["bytes"] for file, facts in _items(listing))

    def _prune(self, newest: str) -> None:
        """Delete folders that nothing names; never one of a later start of the run."""
        try:
            keep, names = {newest, self._named("last"), self._named("best")}, self._names()
        except OSError:
            return  # what cannot be listed now is kept until the next save
        earlier = [name for name in names if _step_of(name) < _step_of(newest)]
        keep.add(max(earlier, key=_step_of, default=None))
        for name in names:
            own = name in self._inherited or name.endswith(f"-{self.token}")
            if own and name not in keep:
                self._drop(name)

    def _drop(self, name: str) -> None:
        """Delete a folder; if that fails, the next save tries it again."""
        try:
            # files.json first: a folder that is half deleted must not count as complete.
            (self.folder / name / "files.json").delete()
            (self.folder / name).delete()
        except OSError:
            return


def _step_of(name: str) -> int:
    return int(name.split("-")[1])


def _items(listing: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(listing["files"].items())


class Saver:
    """Runs saves in a thread of its own, in order, while the training continues."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        """Call `complain` with a message after every save that fails."""
        self.error: str | None = None
        self._complain = complain
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a save is running."""
        return self._pending is not None and not self._pending.done()

    def submit(self, save: Callable[[], object]) -> None:
        """Run `save` in the thread; waits for the save before it, so at most one holds memory."""
        self.wait()
        self._pending = self._pool.submit(self._run, save)

    def wait(self) -> None:
        """Wait until no save is running; `error` then says how the last one ended."""
        if self._pending is not None:
            self._pending.result()

    def _run(self, save: Callable[[], object]) -> None:
        try:
            save()
            self.error = None
        except Exception as error:  # no failed save, for any reason, may end the training
            self.error = f"{type(error).__name__}: {error}"
            self._complain(
                f"save failed ({self.error}); the last good checkpoint stays, training continues"
            )
