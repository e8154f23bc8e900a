"""A run of `jobs.mask` that is reviewed: its masks, states and doubtful spans."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.masks.folder import read_marker, read_markers, table_of
from jobs.masks.plan import is_accepted, key_of, settings_of, state_of
from jobs.run.config import ConfigError, parse_yaml
from jobs.storage.location import Location, StorageError
from jobs.weights.segmenter import locate
from masking.images.arrays import Bools
from masking.manifest.rows import Row, prompts
from masking.outputs.polish import PolishConfig
from masking.outputs.rows import mask_of
from masking.tracking.state import TrackConfig

Marker = Mapping[str, Any]
_KEPT = 8  # tables of masks that are kept in memory


class MaskRun:
    """The output of `jobs.mask`, which may be written again. Usable from any thread."""

    def __init__(self, out: Location) -> None:
        """Read the settings and markers of a run.

        Raises:
            ConfigError, SegmenterWeightsError, StorageError: the run cannot be read.
        """
        self.out = out
        given = parse_yaml((out / "config.yaml").read_bytes(), f"{out}/config.yaml")
        try:
            track = TrackConfig(**given["track"])
            polish = PolishConfig(**given.get("polish", {}))
            self.weights, precision = str(given["weights"]), given["precision"]
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"{out}/config.yaml: expected the settings of a jobs.mask run: {error}"
            ) from error
        self._settings = settings_of(locate(self.weights), precision, track, polish)
        self._markers = read_markers(out)
        self._tables: OrderedDict[tuple[str, str], pa.Table] = OrderedDict()
        self._unsound: dict[tuple[str, str], str] = {}  # masks that cannot be read, and why
        self._lock = threading.Lock()  # never held while a file is read

    def refresh(self, video_id: str | None = None) -> None:
        """Read the marker of a video, or all markers, again."""
        if video_id is None:
            self._markers = read_markers(self.out)
            unsound, self._unsound = self._unsound, {}
            for each, _ in unsound:
                self._table(each)  # jobs.mask may have made them again, byte for byte
            return
        self._unsound = {k: why for k, why in self._unsound.items() if k[0] != video_id}
        marker = read_marker(self.out, video_id)
        if marker is not None:
            self._markers[video_id] = marker
        else:
            self._markers.pop(video_id, None)

    def spans(self, video_id: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the doubtful spans of a video, those first where a click gains most.

        Args:
            video_id: of the video; one that is not in the run has no spans.
            rows: current rows of the video.

        Returns:
            Columns of review.csv for each span, and `answer`: accepted, corrected, or empty.
        """
        marker = self._good(video_id)
        found = [] if marker is None else marker["review"]
        return [{**span, "answer": _answer(rows, span)} for span in found]

    def states(self, video_id: str) -> dict[int, list[tuple[int, int, str]]]:
        """Return (first frame, last frame, state) of each stretch of equal states, by object id."""
        table = self._table(video_id)
        if table is None:
            return {}
        columns = [table[name].to_pylist() for name in ("object_id", "frame", "state")]
        by_object: dict[int, list[tuple[int, str]]] = {}
        for number, frame, state in zip(*columns, strict=True):
            if state is not None:
                by_object.setdefault(number, []).append((frame, state))
        return {number: _stretches(states) for number, states in by_object.items()}

    def masks(self, video_id: str, frame: int) -> list[dict[str, Any]]:
        """Return the rows of a frame, one for each object that has a mask there."""
        table = self._table(video_id)
        if table is None:
            return []
        frames = table["frame"].to_numpy()
        first, last = (int(np.searchsorted(frames, frame, side=side)) for side in ("left", "right"))
        rows = table.slice(first, last - first).to_pylist()
        return [row for row in rows if row["rle"] is not None]

    def mask(self, video_id: str, frame: int, object_id: int) -> Bools | None:
        """Return the (H, W) mask of an object on a frame, or None if it is not visible there."""
        rows = [row for row in self.masks(video_id, frame) if row["object_id"] == object_id]
        return mask_of(rows[0]) if rows and rows[0]["area"] else None

    def status(self, video_id: str, uri: str, rows: Sequence[Row]) -> str:
        """Return the status of a video in the run.

        Args:
            video_id: of the video.
            uri: absolute path or s3:// address of the video.
            rows: current rows of the video.

        Returns:
            done, failed, missing, or changed: `jobs.mask` would mask it again.
        """
        marker = self._markers.get(video_id)
        if marker is None:
            return "missing"
        state = state_of(uri)
        if (video_id, marker.get("masks_sha256", "")) in self._unsound:
            return "changed"
        if isinstance(state, str) or marker["key"] != key_of(self._settings, state, prompts(rows)):
            return "changed"
        return "failed" if marker["status"] == "failed" else "done"

    def error(self, video_id: str) -> str:
        """Return why a video failed, or why its masks are no result; empty if neither is so."""
        marker = self._markers.get(video_id, {})
        unsound = self._unsound.get((video_id, marker.get("masks_sha256", "")))
        if unsound is not None:
            return unsound
        return f"{marker['code']}: {marker['error']}" if marker.get("status") == "failed" else ""

    def _good(self, video_id: str) -> Marker | None:
        marker = self._markers.get(video_id)
        return None if marker is None or marker["status"] == "failed" else marker

    def _table(self, video_id: str) -> pa.Table | None:
        marker = self._good(video_id)
        if marker is None:
            return None
        name = video_id, str(marker["masks_sha256"])
        found = self._tables.get(name)
        if found is None and name not in self._unsound:
            try:
                found = table_of(self.out, marker)
            except StorageError as error:  # they are missing or damaged: jobs.mask makes them again
                self._unsound[name] = str(error)
        if found is not None:
            with self._lock:
                self._tables[name] = found
                self._tables.move_to_end(name)
                while len(self._tables) > _KEPT:
                    self._tables.popitem(last=False)
        return found


def _answer(rows: Sequence[Row], span: Mapping[str, Any]) -> str:
    """Return what a person did about a span: accepted, corrected, or nothing (empty)."""
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
    gone = last is not None and last.role in ("absent", "end")
    return "corrected" if inside or gone else ""


def _stretches(states: Sequence[tuple[int, str]]) -> list[tuple[int, int, str]]:
    """Return the first frame, last frame and state of consecutive frames in the same state."""
    groups = groupby(enumerate(states), key=lambda item: (item[1][0] - item[0], item[1][1]))
    found = []
    for (_, state), part in groups:
        frames = [frame for _, (frame, _) in part]
        found.append((frames[0], frames[-1], state))
    return found
