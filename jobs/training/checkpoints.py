"""Checkpoints, from which a training resumes: immutable folders and two pointers to them.

A folder `step-<n>-<token>` is complete when its `files.json`, written last, exists and every file
that it lists has the size that it gives. `last.json` and `best.json` name a folder and are replaced
by one atomic put. Each start has a new token, so a late writer of a killed run never writes into a
folder of a later start, nor deletes one. After a save, folders that no pointer names are deleted,
except the one before the last, which a person can return to.
"""

import hashlib
import json
import re
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from jobs.storage.location import Location
from jobs.training.snapshot import Snapshot

FORMAT = 1
"""Version of a checkpoint's layout, in its `files.json`."""
_NAME = re.compile(r"step-(\d{1,18})-.+")
_FILES = ("weights.safetensors", "optimizer.safetensors", "average.safetensors", "state.json")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names the file and says what to do."""


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

    def passed_over(self, taken: str | None) -> str | None:
        """Return a line on why a resume from `taken` is not one from the last save; else None."""
        there, named = (self.folder / "last.json").exists(), self._named("last")
        if taken is None:
            names = self._names()
            listed = ", ".join(names[:5]) or "none is left"
            return (
                f"no checkpoint in {self.folder} is whole ({listed}): the training starts again"
                " from the beginning"
                if names or there
                else None
            )
        if not there or named == taken:
            return None
        what = "last.json" if named is None else named
        return f"{self.folder / what} is missing or damaged: {taken} is taken instead"

    def best(self) -> str | None:
        """Return the name of the complete checkpoint that `best.json` names, or None.

        If that is missing or damaged, it is the latest that was the best when it was saved.
        """
        named = self._named("best")
        if named is not None and self._complete(named):
            return named
        complete = filter(self._complete, self._names())
        return max(filter(self._was_best, complete), key=_step_of, default=None)

    def _was_best(self, name: str) -> bool:
        state = self._read_json(name, "state.json")
        done = state.get("best_epoch") if isinstance(state, dict) else None
        return bool(done) and state.get("epoch") == done and state.get("index") == 0

    def read(self, name: str) -> Snapshot:
        """Read a checkpoint. Raises CheckpointError if a file is damaged or of another format."""
        target = self.folder / name
        listing = self._read_json(name, "files.json")
        if not _is_listing(listing):
            raise _damaged(target, "files.json", "it is cut off or was changed")
        if listing["format"] != FORMAT:
            raise CheckpointError(
                f"{target} has checkpoint format {listing['format']}; this version reads {FORMAT}"
            )
        parts = {file: self._read_file(target, file, listing["files"][file]) for file in _FILES}
        try:
            state = json.loads(parts["state.json"])
            weights, optimizer, average = (load_tensors(parts[file]) for file in _FILES[:3])
        except (ValueError, RecursionError, SafetensorError) as error:
            raise CheckpointError(f"{target} cannot be read: {error}") from error
        return Snapshot(listing["step"], weights, optimizer, state, average)

    def state(self, name: str) -> dict[str, Any]:
        """Return the state of a complete checkpoint, without reading its tensors."""
        found: dict[str, Any] = (self.folder / name / "state.json").read_json()
        return found

    def count_resume(self) -> None:
        """Count that a start resumed from a checkpoint."""
        (self.folder / "resumes.json").write_json({"count": self.resumes() + 1})

    def resumes(self) -> int:
        """Return how often the run resumed from a checkpoint, as far as is known."""
        found = self._read_json("resumes.json")
        count = found.get("count") if isinstance(found, dict) else None
        return count if type(count) is int else 0

    def _read_file(self, target: Location, file: str, facts: dict[str, Any]) -> bytes:
        content = (target / file).read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise _damaged(target, file, "its SHA-256 is not the one in files.json")
        return content

    def _named(self, pointer: str) -> str | None:
        """Return the checkpoint that a pointer names; None if it is absent or damaged."""
        found = self._read_json(f"{pointer}.json")
        name = found.get("checkpoint") if isinstance(found, dict) else None
        return name if isinstance(name, str) and _is_name(name) else None

    def _read_json(self, *path: str) -> Any:
        """Return a small file's contents; None if it does not exist or is not JSON.

        Errors of storage are raised: if they counted as a missing file, a short network failure
        would restart a run from its beginning.
        """
        place = self.folder
        for name in path:
            place = place / name
        try:
            return json.loads(place.read_bytes()) if place.exists() else None
        except (ValueError, RecursionError):
            return None

    def _names(self) -> list[str]:
        """Return the names of the folders of checkpoints, complete or not."""
        return [e.name for e in self.folder.list() if e.is_folder and _is_name(e.name)]

    def _complete(self, name: str) -> bool:
        """Return whether all files of a checkpoint exist in their full size."""
        sizes = {e.name: e.size for e in (self.folder / name).list() if not e.is_folder}
        listing: Any = self._read_json(name, "files.json") if "files.json" in sizes else None
        if not _is_listing(listing):
            return False
        if listing["format"] != FORMAT:
            return True  # `read` says so
        return all(sizes.get(file) == listing["files"][file]["bytes"] for file in _FILES)

    def _prune(self, newest: str) -> None:
        """Delete folders that nothing names; never one of a later start of the run."""
        try:
            keep, names = {newest, self._named("last"), self.best()}, self._names()
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


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and "/" not in name


def _step_of(name: str) -> int:
    found = _NAME.fullmatch(name)
    return -1 if found is None else int(found[1])


def _is_listing(listing: Any) -> bool:
    """Return whether a `files.json` has what is read of it, or is of another format."""
    if not isinstance(listing, dict) or type(listing.get("format")) is not int:
        return False
    if listing["format"] != FORMAT:
        return True
    files = listing.get("files")
    return (
        type(listing.get("step")) is int
        and isinstance(files, dict)
        and all(_is_facts(files.get(name)) for name in _FILES)
    )


def _is_facts(facts: Any) -> bool:
    return (
        isinstance(facts, dict)
        and type(facts.get("bytes")) is int
        and type(facts.get("sha256")) is str
    )


def _damaged(target: Location, file: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{target / file} is damaged: {why}; delete the folder {target} to resume from the"
        " checkpoint before it"
    )
