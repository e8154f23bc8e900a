"""The rows of a manifest on disk: every change is written, and synced, before it is said to be.

A change is appended to a journal beside the manifest, then the manifest is replaced. A process that
is killed between the two leaves a journal that is one change ahead: the next one makes up for it.
The journal is also what undo goes by, so that it survives a restart. A change names the revision of
the rows that it is meant for; if there is another one by now, it is refused.
"""

import base64
import csv
import fcntl
import hashlib
import io
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.storage.location import Location, StorageError, check_writable
from masking.manifest.rows import COLUMNS, ManifestError, given, parse_rows
from masking.manifest.table import filled, identity, json_rows, parse_table, read_manifest

Record = dict[str, Any]
"""A row: its columns, and what they hold; None where it is empty."""

NEW_COLUMNS = (
    "uri", "video_id", "object_id", "object_name", "frame", "x", "y", "label",
)  # fmt: skip
"""Of a manifest that begins here; others are added when they are needed."""
FORMATS = (".csv", ".jsonl", ".ndjson", ".parquet")
_BOX = "$parquet"
"""Key of a value in the journal that JSON does not know: a Parquet file of that one."""


class StaleError(Exception):
    """A change of rows that have been changed meanwhile: nothing was saved."""


@dataclass(frozen=True)
class Change:
    """What is different in the rows of a video: from `at` on, `removed` made way for `added`."""

    at: int
    removed: Sequence[Record]
    added: Sequence[Record]

    def reverse(self) -> "Change":
        """What takes it back."""
        return Change(self.at, self.added, self.removed)

    def apply(self, rows: Sequence[Record]) -> list[Record]:
        """The rows after it."""
        return [*rows[: self.at], *self.added, *rows[self.at + len(self.removed) :]]

    @classmethod
    def between(cls, old: Sequence[Record], new: Sequence[Record]) -> "Change":
        """What leads from one list of rows to another."""
        at, last = 0, min(len(old), len(new))
        while at < last and old[at] == new[at]:
            at += 1
        end = 0
        while end < last - at and old[-1 - end] == new[-1 - end]:
            end += 1
        return cls(at, old[at : len(old) - end], new[at : len(new) - end])


@dataclass
class _History:
    """Of one video: changes that can be taken back, and such as were."""

    done: list[Change] = field(default_factory=list)
    undone: list[Change] = field(default_factory=list)

    def note(self, kind: str, change: Change) -> None:
        if kind == "undo":
            self.undone.append(self.done.pop().reverse() if self.done else change)
        elif kind == "redo":
            self.done.append(self.undone.pop().reverse() if self.undone else change)
        else:
            self.done.append(change)
            self.undone.clear()


class Store:
    """A manifest that is being made. Its methods may be called from any thread."""

    def __init__(self, path: Path, begin: Iterable[Record] = ()) -> None:
        """Open a manifest, or begin one.

        Args:
            path: .csv, .jsonl, .ndjson or .parquet.
            begin: rows of one that is not there yet.

        Raises:
            StorageError: it cannot be written, or another process has it open.
            ManifestError: what is there has faults.
        """
        if path.suffix not in FORMATS:
            raise StorageError(f"{path} is no manifest: its name must end in {', '.join(FORMATS)}")
        self.path, self._place = path, Location.parse(path)
        self._lock = threading.RLock()
        self._rows: dict[str, list[Record]] = {}
        check_writable(self._place.parent)
        if path.exists() and not os.access(path, os.W_OK):
            raise StorageError(f"cannot write {path}: permission denied")
        self._journal = _locked(path.with_name(f"{path.name}.journal"))
        try:
            self._load(self._entries())
            if not path.exists():
                self._group([*begin])
                if self._rows:
                    self._publish(self._content(self._rows))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process have it."""
        self._journal.close()

    @property
    def videos(self) -> dict[str, Record]:
        """The first row of each video, by id."""
        with self._lock:
            return {name: rows[0] for name, rows in self._rows.items() if rows}

    def rows(self, video_id: str) -> list[Record]:
        """A video's rows, in order."""
        with self._lock:
            return [*self._rows.get(video_id, [])]

    def revision(self, video_id: str) -> str:
        """What rows a change of a video is meant for: the same text for the same rows."""
        text = json.dumps(self.rows(video_id), default=str, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def steps(self, video_id: str) -> tuple[int, int]:
        """How many changes of a video can be undone, and redone."""
        with self._lock:
            history = self._history.get(video_id, _History())
            return len(history.done), len(history.undone)

    def replace(self, video_id: str, revision: str, rows: Sequence[Record]) -> None:
        """Give a video other rows; they are on disk when it returns.

        Raises:
            StaleError: there is another revision by now, or another program wrote the manifest.
            ManifestError: rows that cannot be meant so.
            StorageError: the disk did not take it.
        """
        with self._lock:
            self._check(video_id, revision)
            faults = parse_rows(rows)[1]
            if faults:
                raise ManifestError(faults)
            change = Change.between(self.rows(video_id), [_clean(row) for row in rows])
            if change.removed or change.added:
                self._save("edit", video_id, change)

    def undo(self, video_id: str, revision: str, redo: bool = False) -> None:
        """Take a video's last change back, or make it again; nothing where there is none.

        Raises:
            StaleError, StorageError: as `replace`.
        """
        with self._lock:
            self._check(video_id, revision)
            history = self._history.get(video_id, _History())
            stack = history.undone if redo else history.done
            if stack:
                self._save("redo" if redo else "undo", video_id, stack[-1].reverse())

    def table(self) -> pd.DataFrame:
        """All rows, numbers as numbers."""
        with self._lock:
            rows = [row for some in self._rows.values() for row in some]
        table = pd.DataFrame(rows, columns=self._columns(self._rows))
        for column in {*table} - {"uri", "video_id", "object_name", "prompt_type", "role"}:
            if column in COLUMNS and table[column].notna().any():
                with_numbers = pd.to_numeric(table[column], errors="coerce")
                if with_numbers.notna().sum() == table[column].notna().sum():
                    table[column] = with_numbers.convert_dtypes()
        return table

    # On disk

    def _check(self, video_id: str, revision: str) -> None:
        if self._digest() != self._known:
            self._load([])
            raise StaleError(f"{self.path.name} was changed by another program; it is read anew")
        if revision != self.revision(video_id):
            raise StaleError("the clicks of this video were changed in another tab")

    def _save(self, kind: str, video_id: str, change: Change) -> None:
        after = self._rows | {video_id: change.apply(self.rows(video_id))}
        content = self._content(after)
        line = {
            "kind": kind, "video_id": video_id, "at": change.at, "removed": change.removed,
            "added": change.added, "before": self._known, "after": _sha(content),
        }  # fmt: skip
        end = self._journal.seek(0, os.SEEK_END)
        try:
            self._note(json.dumps(line, default=_boxed).encode() + b"\n")
            self._publish(content)
        except OSError as error:
            with suppress(OSError):
                self._journal.truncate(end)
            raise StorageError(
                f"cannot save to {self.path}: {error}; nothing was changed"
            ) from error
        self._rows = after
        self._history.setdefault(video_id, _History()).note(kind, change)

    def _note(self, line: bytes) -> None:
        """Append to the journal. It has no buffer: what a full disk refused must not come later."""
        left = memoryview(line)
        while left:
            left = left[self._journal.write(left) :]
        os.fsync(self._journal.fileno())

    def _publish(self, content: bytes) -> None:
        self._place.write_bytes(content)
        self._known = _sha(content)

    def _digest(self) -> str:
        return _sha(self.path.read_bytes()) if self.path.exists() else ""

    def _entries(self) -> list[dict[str, Any]]:
        """Lines of the journal; what a killed process left of one is cut off."""
        self._journal.seek(0)
        content = self._journal.read()
        whole = content.rfind(b"\n") + 1
        self._journal.truncate(whole)
        lines = content[:whole].splitlines()
        return [json.loads(line, object_hook=_unboxed) for line in lines]

    def _load(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Read the manifest, and of the journal what led to it."""
        content = self.path.read_bytes() if self.path.exists() else None
        self._group([] if content is None else read_records(self.path.name, content))
        self._known = "" if content is None else _sha(content)
        self._history: dict[str, _History] = {}
        ahead = [entry for entry in entries[-1:] if entry["before"] == self._known]
        for entry in _leading_to(self._known, entries[: len(entries) - len(ahead)]):
            history = self._history.setdefault(entry["video_id"], _History())
            history.note(entry["kind"], _change(entry))
        for entry in ahead:
            video_id, change = entry["video_id"], _change(entry)
            self._rows[video_id] = change.apply(self.rows(video_id))
            self._history.setdefault(video_id, _History()).note(entry["kind"], change)
            self._publish(self._content(self._rows))

    def _group(self, records: Sequence[Record]) -> None:
        self._first_columns = [*dict.fromkeys(name for row in records for name in row)]
        self._rows.clear()
        for record in records:
            self._rows.setdefault(identity(0, record)[1], []).append(_clean(record))

    def _columns(self, rows: Mapping[str, Sequence[Record]]) -> list[str]:
        used = [name for some in rows.values() for row in some for name in row]
        return [*dict.fromkeys([*(self._first_columns or NEW_COLUMNS), *used])]

    def _content(self, rows: Mapping[str, Sequence[Record]]) -> bytes:
        records = [row for some in rows.values() for row in some]
        return _content(self.path.suffix, self._columns(rows), records)


def read_records(name: str, content: bytes) -> list[Record]:
    """The rows of a manifest that may still be in the making.

    Raises:
        ManifestError: every fault, but for objects without a positive point yet.
    """
    table = parse_table(name, content)
    records = [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]
    if not any(map(filled, records)):
        return []
    _, faulty, loose = read_manifest(table, finished=False)
    faults = [*loose, *(fault for some in faulty.values() for fault in some)]
    if faults:
        raise ManifestError(faults)
    # Not by way of pandas, to which a whole number is a float where another row has none.
    if name.endswith((".jsonl", ".ndjson")):
        return [*json_rows(content.decode("utf-8-sig"))]
    if name.endswith(".parquet"):
        return cast(list[Record], pq.read_table(io.BytesIO(content)).to_pylist())
    return [record for record in records if filled(record)]


def _locked(path: Path) -> Any:
    journal = path.open("a+b", buffering=0)
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        journal.close()
        manifest = path.with_suffix("")
        raise StorageError(f"{manifest} is open in another jobs.prompt; end that one") from None
    return journal


def _leading_to(digest: str, entries: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The last of a journal's lines that lead, one after another, to a manifest's digest."""
    for number, entry in reversed([*enumerate(entries)]):
        if entry["after"] != digest:
            return entries[number + 1 :]
        digest = entry["before"]
    return entries


def _change(entry: Mapping[str, Any]) -> Change:
    return Change(entry["at"], entry["removed"], entry["added"])


def _boxed(value: Any) -> dict[str, str]:
    """What JSON does not know, such as a timestamp of a Parquet file, with its type."""
    table, stream = pa.table({"value": [value]}), io.BytesIO()
    pq.write_table(table, stream)
    return {_BOX: base64.b64encode(stream.getvalue()).decode()}


def _unboxed(found: dict[str, Any]) -> Any:
    if found.keys() != {_BOX}:
        return found
    return pq.read_table(io.BytesIO(base64.b64decode(found[_BOX])))["value"][0].as_py()


def _clean(record: Mapping[str, Any]) -> Record:
    return {name: value if given(value) else None for name, value in record.items()}


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _content(ending: str, columns: Sequence[str], records: Sequence[Record]) -> bytes:
    """A manifest's bytes: of the same rows the same ones."""
    if ending == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue().encode()
    if ending != ".parquet":
        rows = ({k: v for k, v in record.items() if v is not None} for record in records)
        return "".join(
            json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows
        ).encode()
    file = io.BytesIO()
    table = {name: _column([record.get(name) for record in records]) for name in columns}
    pq.write_table(pa.table(table), file)
    return file.getvalue()


def _column(values: Sequence[Any]) -> pa.Array:
    """Of the type that the values have; of text if they differ."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])
