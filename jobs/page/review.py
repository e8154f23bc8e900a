"""The output of a `jobs.mask` run, as a person looks through it: masks, states, doubtful spans."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.masks.folder import commit_place, commits, table_of
from jobs.masks.plan import is_accepted, key_of, settings_of, state_of
from jobs.run.config import ConfigError, parse_yaml
from jobs.storage.location import Location
from jobs.weights.segmenter import locate
from masking.images.arrays import Bools
from masking.manifest.rows import Row, prompts
from masking.outputs.rows import mask_of
from masking.tracking.state import TrackConfig

Marker = Mapping[str, Any]
_KEPT = 8  # tables of masks that are held


class Run:
    """A folder that `jobs.mask` wrote, and may write again. Usable from any thread."""

    def __init__(self, out: Location) -> None:
        """Read its settings and markers.

        Raises:
            ConfigError, CheckpointError, StorageError: it cannot be read.
        """
        self.out = out
        given = parse_yaml((out / "config.yaml").read_text(), f"{out}/config.yaml")
        try:
            track = TrackConfig(**given["track"])
            self.weights, precision = str(given["weights"]), given["precision"]
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{out}/config.yaml: not that of a jobs.mask run: {error}") from error
        self._settings = settings_of(locate(self.weights), precision, track)
        self._markers = commits(out)
        self._tables: OrderedDict[str, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def refresh(self, video_id: str | None = None) -> None:
        """Look whether a video, or any, was masked anew."""
        if video_id is None:
            self._markers = commits(self.out)
            return
        place = commit_place(self.out, video_id)
        if place.exists():
            self._markers[video_id] = place.read_json()
        else:
            self._markers.pop(video_id, None)

    def spans(self, video_id: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Its doubtful spans, worst first, each with what a person did about it.

        Args:
            video_id: of a video of the run, or of another one, which has none.
            rows: of the video as they are now.
        """
        marker = self._good(video_id)
        found = [] if marker is None else marker["review"]
        return [{**span, "answer": _answer(rows, span)} for span in found]

    def states(self, video_id: str) -> dict[int, list[tuple[int, int, str]]]:
        """Of each object: first frame, last frame and state of each run of equal states."""
        table = self._table(video_id)
        if table is None:
            return {}
        columns = [table[name].to_pylist() for name in ("object_id", "frame", "state")]
        by_object: dict[int, list[tuple[int, str]]] = {}
        for number, frame, state in zip(*columns, strict=True):
            if state is not None:
                by_object.setdefault(number, []).append((frame, state))
        return {number: _runs(mine) for number, mine in by_object.items()}

    def masks(self, video_id: str, frame: int) -> list[dict[str, Any]]:
        """The rows of a frame, one an object, without what was not asked for."""
        table = self._table(video_id)
        if table is None:
            return []
        frames = table["frame"].to_numpy()
        first, last = (int(np.searchsorted(frames, frame, side=side)) for side in ("left", "right"))
        rows = table.slice(first, last - first).to_pylist()
        return [row for row in rows if row["rle"] is not None]

    def mask(self, video_id: str, frame: int, object_id: int) -> Bools | None:
        """(H, W) of an object on a frame; None: it is not to be seen there."""
        rows = [row for row in self.masks(video_id, frame) if row["object_id"] == object_id]
        return mask_of(rows[0]) if rows and rows[0]["area"] else None

    def standing(self, video_id: str, uri: str, rows: Sequence[Row]) -> str:
        """What `jobs.mask` would say of a video: done, changed (it would be masked anew), failed,
        or missing."""
        marker = self._markers.get(video_id)
        if marker is None:
            return "missing"
        state = state_of(uri)
        if isinstance(state, str) or marker["key"] != key_of(self._settings, state, prompts(rows)):
            return "changed"
        return "failed" if marker["status"] == "failed" else "done"

    def error(self, video_id: str) -> str:
        """Why it failed; empty if it did not."""
        marker = self._markers.get(video_id, {})
        return f"{marker['code']}: {marker['error']}" if marker.get("status") == "failed" else ""

    def _good(self, video_id: str) -> Marker | None:
        marker = self._markers.get(video_id)
        return None if marker is None or marker["status"] == "failed" else marker

    def _table(self, video_id: str) -> pa.Table | None:
        marker = self._good(video_id)
        if marker is None:
            return None
        with self._lock:
            name = f"{video_id} {marker['masks_sha256']}"
            if name not in self._tables:
                self._tables[name] = table_of(self.out, video_id)
            self._tables.move_to_end(name)
            while len(self._tables) > _KEPT:
                self._tables.popitem(last=False)
            return self._tables[name]


def _answer(rows: Sequence[Row], span: Mapping[str, Any]) -> str:
    """accepted, corrected, or nothing yet."""
    if is_accepted(rows, span):
        return "accepted"
    before = [
        row
        for row in prompts(rows)
        if row.object_id == span["object_id"]
        and row.frame is not None
        and row.frame <= span["last_frame"]
    ]
    last = max(before, key=lambda row: row.frame or 0, default=None)
    inside = last is not None and (last.frame or 0) >= span["first_frame"]
    told = last is not None and last.role in ("absent", "end")
    return "corrected" if inside or told else ""


def _runs(states: Sequence[tuple[int, str]]) -> list[tuple[int, int, str]]:
    """Frames that follow one another in the same state."""
    runs = groupby(enumerate(states), key=lambda item: (item[1][0] - item[0], item[1][1]))
    found = []
    for (_, state), part in runs:
        frames = [frame for _, (frame, _) in part]
        found.append((frames[0], frames[-1], state))
    return found
