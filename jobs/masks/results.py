"""What an output folder holds of earlier starts: which videos are done, and what is not sound."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from jobs.masks.folder import has_hash, id_path, masks_place, survey_markers
from jobs.masks.plan import VideoWork
from jobs.masks.video import RETRIED
from jobs.storage.location import Location

_THREADS = 16  # reading masks at the same time


@dataclass(frozen=True)
class Results:
    """The results of earlier starts. What is not sound is no result: its video is masked again."""

    markers: Mapping[str, Mapping[str, Any]]
    """Sound markers, by the id of their video."""
    paths: frozenset[str]
    """Paths of all files of masks, below `masks/`."""
    unsound: Mapping[str, str]
    """What is wrong with the masks of videos that have a marker, by their id."""
    strange: Sequence[str]
    """Names of files in `commits/` that are no whole marker."""

    def is_done(self, work: VideoWork, retry_failed: bool) -> bool:
        """Return whether a video needs no work."""
        marker = self.markers.get(work.video_id)
        if marker is None or marker["key"] != work.key:
            return False
        if marker["status"] != "failed":
            return work.video_id not in self.unsound
        return not retry_failed and marker["code"] not in RETRIED

    def has_exports(self, video_id: str) -> bool:
        """Return whether there may be exports of a video: it has been masked before."""
        return video_id in self.markers or id_path(video_id, ".parquet") in self.paths

    def messages(self) -> list[str]:
        """Return a line of text about each marker, and each file of masks, that is not sound."""
        strange = [f"commits/{name} is no whole marker; it is ignored" for name in self.strange]
        unsound = [f"{name} is masked again: {why}" for name, why in self.unsound.items()]
        return strange + unsound


def read_results(out: Location, work: Sequence[VideoWork], read: bool) -> Results:
    """Return what the folder of a run holds of some videos.

    Args:
        out: folder of the run.
        work: the videos. Masks that another key than theirs made are not examined.
        read: whether masks are read now and compared with the hash in their marker; if not, only
            their size is compared. Those of earlier versions, whose markers have no size, are
            always read.

    Raises:
        StorageError: the folder cannot be read.
    """
    markers, strange = survey_markers(out)
    sizes = {entry.path: entry.size for entry in (out / "masks").walk()}
    masked = [
        marker
        for one in work
        if (marker := markers.get(one.video_id)) is not None
        and marker["key"] == one.key
        and marker["status"] != "failed"
    ]

    def fault(marker: Mapping[str, Any]) -> str:
        place = masks_place(out, marker["video_id"])
        size = sizes.get(id_path(marker["video_id"], ".parquet"))
        expected = marker.get("masks_bytes")
        if size is None:
            return f"{place} is missing"
        if expected is not None and size != expected:
            return f"{place} has {size:,} bytes instead of {expected:,}"
        if (read or expected is None) and not has_hash(place.read_bytes(), marker):
            return f"{place} has other content than was published"
        return ""

    with ThreadPoolExecutor(_THREADS) as pool:
        faults = list(pool.map(fault, masked))
    unsound = {one["video_id"]: text for one, text in zip(masked, faults, strict=True) if text}
    return Results(markers, frozenset(sizes), unsound, strange)
