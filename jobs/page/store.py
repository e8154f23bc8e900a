"""A manifest that the page edits: a change is on disk before it is acknowledged.

A change is appended to the journal beside the manifest, then the manifest is replaced. If the
process is killed between the two, the journal is one change ahead, and the next process applies
that change. Undo reads the journal, so it works after a restart. A change names the revision of the
rows that it was made for; if the rows have changed since, it is refused.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from jobs.page.formats import Types, check_readable, read_records, types_of, write_records
from jobs.page.journal import Change, Entry, History, Journal, Record, leading_to
from jobs.storage.errors import explained
from jobs.storage.location import Location, StorageError, check_writable
from masking.manifest.faults import ManifestError
from masking.manifest.formats.read import FORMATS, format_of
from masking.manifest.records import check_cells, check_columns
from masking.manifest.rows import COLUMNS, given, parse_rows
from masking.manifest.table import identity

NEW_COLUMNS = (
    "uri", "video_id", "object_id", "object_name", "frame", "x", "y", "label",
)  # fmt: skip
"""Columns of a new manifest; other columns are added when they are needed."""

_PATIENCE = 5.0  # seconds at the end for a change that is being saved


class StaleError(Exception):
    """The rows were changed after the revision that a change was made for; nothing was saved."""


class Store:
    """A manifest that is being edited. Its methods may be called from any thread."""

    def __init__(self, path: Path, begin: Iterable[Record] = ()) -> None:
        """Open a manifest, or create it.

        Args:
            path: of the manifest: .csv, .jsonl, .ndjson or .parquet.
            begin: rows of a manifest that does not exist yet.

        Raises:
            StorageError: it cannot be written, its journal cannot be read, or another process has
                it open.
            ManifestError: the manifest has faults, or its rows could not be read again once they
                were written.
        """
        self._ending = format_of(path.name)
        if not self._ending:
            raise StorageError(f"{path}: the name of a manifest must end in {', '.join(FORMATS)}")
        self.path, self._place = path, Location.parse(path)
        self._lock = threading.RLock()
        self._rows: dict[str, list[Record]] = {}
        self._types: Types = {}
        check_writable(self._place.parent)
        with explained("open", path):
            is_closed = path.exists() and not os.access(path, os.W_OK)
        if is_closed:
            raise StorageError(f"cannot write {path}: permission denied")
        self._journal = Journal(path)
        try:
            self._load(self._journal.read())
            is_new = not path.exists()
            if is_new:
                self._group([*begin])
            self._check_readable(self._rows, sound=not is_new)
            if self._rows and is_new:
                self._publish(self._content(self._rows))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock, so that another process can open the manifest.

        A change that is being saved is awaited, but not for ever: a disk may not answer.
        """
        saved = self._lock.acquire(timeout=_PATIENCE)
        self._journal.close()
        if saved:
            self._lock.release()

    @property
    def videos(self) -> dict[str, Record]:
        """The first row of each video, by id."""
        with self._lock:
            return {name: rows[0] for name, rows in self._rows.items() if rows}

    def rows(self, video_id: str) -> list[Record]:
        """Return a video's rows, in order."""
        with self._lock:
            return [*self._rows.get(video_id, [])]

    def revision(self, video_id: str) -> str:
        """Return a hash of a video's rows, which a change of them has to name."""
        text = json.dumps(self.rows(video_id), default=str, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def undo_counts(self, video_id: str) -> tuple[int, int]:
        """Return how many changes of a video can be undone, and how many redone."""
        with self._lock:
            history = self._history.get(video_id, History())
            return len(history.done), len(history.undone)

    def replace(self, video_id: str, revision: str, rows: Sequence[Record]) -> None:
        """Replace the rows of a video; they are on disk when it returns.

        Args:
            video_id: of the video.
            revision: what `revision` returned for the rows that are replaced.
            rows: the new rows.

        Raises:
            StaleError: the rows have another revision now, or another program wrote the manifest.
            ManifestError: the new rows have faults, or could not be read again once they were
                written.
            StorageError: the disk refused the change.
        """
        with self._lock:
            self._check(video_id, revision)
            faults = parse_rows(rows)[1]
            if faults:
                raise ManifestError(faults)
            change = Change.between(self.rows(video_id), [_clean(row) for row in rows])
            if change.removed or change.added:
                self._check_readable({video_id: change.added})
                self._save("edit", video_id, change)

    def undo(self, video_id: str, revision: str, redo: bool = False) -> None:
        """Undo, or redo, the last change of a video, if there is one.

        Raises:
            StaleError, StorageError: as `replace`.
        """
        with self._lock:
            self._check(video_id, revision)
            history = self._history.get(video_id, History())
            stack = history.undone if redo else history.done
            if stack:
                self._save("redo" if redo else "undo", video_id, stack[-1].reverse())

    def table(self) -> pd.DataFrame:
        """Return all rows as a table, with numbers as numbers."""
        with self._lock:
            rows = [row for some in self._rows.values() for row in some]
        table = pd.DataFrame(rows, columns=self._columns(self._rows))
        for column in {*table} - {"uri", "video_id", "object_name", "prompt_type", "role"}:
            if column in COLUMNS and table[column].notna().any():
                numbers = pd.to_numeric(table[column], errors="coerce")
                if numbers.notna().sum() == table[column].notna().sum():
                    table[column] = numbers.convert_dtypes()
        return table

    # On disk

    def _check(self, video_id: str, revision: str) -> None:
        if self._digest() != self._known:
            self._load([])
            raise StaleError(f"another program changed {self.path.name}, and it was read again")
        if revision != self.revision(video_id):
            raise StaleError("the clicks of this video were changed in another tab")

    def _save(self, kind: str, video_id: str, change: Change) -> None:
        after = self._rows | {video_id: change.apply(self.rows(video_id))}
        content = self._content(after)
        columns = self._columns(after)
        check_columns(len(columns))
        check_cells(len(columns) * sum(map(len, after.values())), len(content))
        entry = Entry(
            kind, video_id, change.at, change.removed, change.added, self._known, _sha(content)
        )
        try:
            end = self._journal.append(entry)
            try:
                self._publish(content)
            except OSError:
                self._journal.truncate(end)
                raise
        except OSError as error:
            raise StorageError(
                f"cannot save to {self.path}: {error}; nothing was changed"
            ) from error
        self._rows = after
        self._history.setdefault(video_id, History()).add(kind, change)

    def _publish(self, content: bytes) -> None:
        self._place.write_bytes(content)
        self._known = _sha(content)

    def _check_readable(self, rows: Mapping[str, Sequence[Record]], sound: bool = False) -> None:
        records = [row for some in rows.values() for row in some]
        check_readable(self._ending, self._columns(rows), records, self._types, sound)

    def _read(self) -> bytes | None:
        """Return the bytes of the manifest; None if it does not exist."""
        with explained("read", self.path):
            return self.path.read_bytes() if self.path.exists() else None

    def _digest(self) -> str:
        content = self._read()
        return "" if content is None else _sha(content)

    def _load(self, entries: Sequence[Entry]) -> None:
        """Read the manifest, and take its history from the journal."""
        content = self._read()
        self._group([] if content is None else read_records(self.path.name, content))
        self._types = {} if content is None else types_of(self.path.name, content)
        self._known = "" if content is None else _sha(content)
        self._history: dict[str, History] = {}
        ahead = [entry for entry in entries[-1:] if entry.before == self._known]
        before = leading_to(self._known, entries[: len(entries) - len(ahead)])
        for entry in [*before, *ahead]:
            self._history.setdefault(entry.video_id, History()).add(entry.kind, entry.change)
        for entry in ahead:
            rows = entry.change.apply(self.rows(entry.video_id))
            try:
                self._check_readable({entry.video_id: rows})
            except ManifestError as error:
                raise self._journal.unsound(len(entries), str(error)) from error
            if any(identity(0, row)[1] != entry.video_id for row in rows):
                raise self._journal.unsound(len(entries), "its rows are of another video")
            self._rows[entry.video_id] = rows
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
        return write_records(self._ending, self._columns(rows), records, self._types)


def _clean(record: Mapping[str, Any]) -> Record:
    return {name: value if given(value) else None for name, value in record.items()}


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
