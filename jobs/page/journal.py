"""The journal of a manifest: one line of JSON per change, from which changes are undone.

The file is append-only. A line has the change of one video and the digests of the manifest before
and after it, so that the lines that lead to a manifest can be found.
"""

import base64
import fcntl
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.storage.errors import explained
from jobs.storage.location import StorageError
from masking.manifest.faults import Fault, ManifestError

Record = dict[str, Any]
"""A row of a manifest: values by column; None where a cell is empty."""
_PARQUET = "$parquet"
"""Key of a value that JSON cannot hold: a Parquet file with that one value, in base 64. An object
of a manifest with only this key, or only this key after more `$`, gets one more `$` here."""


@dataclass(frozen=True)
class Change:
    """A change of the rows of a video: from row `at` on, `removed` is replaced by `added`."""

    at: int
    removed: Sequence[Record]
    added: Sequence[Record]

    def reverse(self) -> "Change":
        """Return the change that undoes this one."""
        return Change(self.at, self.added, self.removed)

    def apply(self, rows: Sequence[Record]) -> list[Record]:
        """Return the rows after the change."""
        return [*rows[: self.at], *self.added, *rows[self.at + len(self.removed) :]]

    @classmethod
    def between(cls, old: Sequence[Record], new: Sequence[Record]) -> "Change":
        """Return the change that turns the old rows into the new ones."""
        at, last = 0, min(len(old), len(new))
        while at < last and old[at] == new[at]:
            at += 1
        end = 0
        while end < last - at and old[-1 - end] == new[-1 - end]:
            end += 1
        return cls(at, old[at : len(old) - end], new[at : len(new) - end])


@dataclass
class History:
    """The changes of one video that can be undone, and those that can be redone."""

    done: list[Change] = field(default_factory=list)
    undone: list[Change] = field(default_factory=list)

    def add(self, kind: str, change: Change) -> None:
        """Add a change that was made; `kind` is edit, undo or redo."""
        if kind == "undo":
            self.undone.append(self.done.pop().reverse() if self.done else change)
        elif kind == "redo":
            self.done.append(self.undone.pop().reverse() if self.undone else change)
        else:
            self.done.append(change)
            self.undone.clear()


@dataclass(frozen=True)
class Entry:
    """A line of the journal. The names of the fields are those in the file."""

    kind: str
    """edit, undo or redo."""
    video_id: str
    at: int
    removed: Sequence[Record]
    added: Sequence[Record]
    before: str
    """Digest of the manifest before the change."""
    after: str
    """Digest of the manifest after the change."""

    @property
    def change(self) -> Change:
        """The change itself."""
        return Change(self.at, self.removed, self.added)


class Journal:
    """A journal file, locked by this process."""

    def __init__(self, manifest: Path) -> None:
        """Open the journal beside a manifest, and lock it.

        Raises:
            StorageError: it cannot be opened, or another process has locked it.
        """
        self._path = manifest.with_name(f"{manifest.name}.journal")
        with explained("open", self._path):
            # Without a buffer: bytes that a full disk refused must not be written later.
            self._file = self._path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise StorageError(f"{manifest} is open in another jobs.prompt; end that one") from None

    def close(self) -> None:
        """Release the lock."""
        self._file.close()

    def read(self) -> list[Entry]:
        """Return all entries; a line that a killed process did not finish is cut off.

        Raises:
            StorageError: the file cannot be read, or a line of it is no entry.
        """
        with explained("read", self._path):
            self._file.seek(0)
            content = self._file.read()
            whole = content.rfind(b"\n") + 1
            self._file.truncate(whole)
        found = []
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
            try:
                found.append(_entry(line))
            except Exception as error:  # Parquet and base 64 raise all kinds
                raise self.unsound(number, str(error) or type(error).__name__) from error
        return found

    def unsound(self, number: int, reason: str) -> StorageError:
        """Return the error of a line that is no entry, or does not fit the manifest."""
        return StorageError(
            f"{self._path}: line {number} was not written by jobs.prompt, or is damaged: {reason}."
            " Move this file away; only the changes in it can then no longer be undone"
        )

    def append(self, entry: Entry) -> int:
        """Append an entry, and wait until it is on disk; returns the size of the file before.

        Raises:
            OSError: the disk refused it; the file is as it was before.
            ManifestError: a value of it cannot be written.
        """
        end: int = self._file.seek(0, os.SEEK_END)
        left = memoryview(_line(entry))
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            self.truncate(end)
            raise
        return end

    def truncate(self, size: int) -> None:
        """Cut the file to a size in bytes, to take an entry back."""
        with suppress(OSError):
            self._file.truncate(size)


def leading_to(digest: str, entries: Sequence[Entry]) -> Sequence[Entry]:
    """Return the last entries that, one after another, lead to the manifest with a digest."""
    for number, entry in reversed([*enumerate(entries)]):
        if entry.after != digest:
            return entries[number + 1 :]
        digest = entry.before
    return entries


def _line(entry: Entry) -> bytes:
    """Return an entry as a line of the file."""
    try:
        return json.dumps(_escaped(vars(entry)), default=_encode_value).encode() + b"\n"
    except (TypeError, ValueError, ArithmeticError, RecursionError, pa.ArrowException) as error:
        expected = "values that can be written, so that the change can be undone"
        raise ManifestError([Fault(0, "a value", str(error), expected)]) from error


def _entry(line: bytes) -> Entry:
    """Return the entry of a line; raises any exception if it is none."""
    found = json.loads(line, object_hook=_decode_value)
    names = {each.name for each in fields(Entry)}
    if not isinstance(found, dict) or found.keys() != names:
        raise ValueError(f"expected an object with {', '.join(sorted(names))}")
    texts = ("kind", "video_id", "before", "after")
    wrong = [name for name in texts if not isinstance(found[name], str)]
    wrong += [] if found["kind"] in ("edit", "undo", "redo") else ["kind"]
    wrong += [] if type(found["at"]) is int and found["at"] >= 0 else ["at"]
    for name in ("removed", "added"):
        rows = found[name]
        if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            wrong.append(name)
    if wrong:
        raise ValueError(f"{', '.join(dict.fromkeys(wrong))} of another kind")
    return Entry(**found)


def _escaped(value: Any) -> Any:
    """Return a value in which no object looks like an encoded one."""
    if isinstance(value, Mapping):
        added = "$" if len(value) == 1 and _is_escaped(*value) else ""
        return {added + name: _escaped(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(each) for each in value]
    return value


def _is_escaped(name: str) -> bool:
    return re.fullmatch(r"\$+" + _PARQUET.removeprefix("$"), name) is not None


def _encode_value(value: Any) -> dict[str, str]:
    """Return a value that JSON cannot hold, such as a timestamp, as a Parquet file."""
    table, stream = pa.table({"value": [value]}), io.BytesIO()
    pq.write_table(table, stream)
    return {_PARQUET: base64.b64encode(stream.getvalue()).decode()}


def _decode_value(found: Mapping[str, Any]) -> Any:
    if len(found) != 1 or not _is_escaped(*found):
        return found
    ((name, value),) = found.items()
    if name != _PARQUET:
        return {name[1:]: value}
    return pq.read_table(io.BytesIO(base64.b64decode(value)))["value"][0].as_py()
