"""The output folder of a mask run: where its files are, and which videos are done."""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.masks.ledger import as_marker
from jobs.storage.cache import localize_in
from jobs.storage.location import Location, StorageError
from jobs.storage.publish import TEMPORARY
from masking.video.folder import is_frame

_THREADS = 16  # reading markers at the same time
_LONGEST_NAME = 200  # of the 255 bytes that file systems allow, as quotes and endings lengthen it
_LONGEST_PATH = 700  # of the 1,024 bytes of a key in S3, the rest of which is for --out
_FILES = (".parquet", ".png", ".mp4", ".mov")
"""Endings of files of videos: no folder that an id names may have one, as `p` has the file
`p.parquet`, and `p.parquet/q` needs the folder."""
_ESCAPED = re.compile("%2[35E]")


def id_path(video_id: str, ending: str = "") -> str:
    """Return the path of a video's file, or with no ending of its folder: the id, as a rule.

    No two ids have the same path, and no file of one is where another needs a folder. So a part of
    an id is escaped if it ends like a file of ours where a folder is needed, looks like a temporary
    file, or like an escaped name; an id that is too long is its SHA-256.
    """
    *folders, last = video_id.split("/")
    parts = [*(_escaped(part, True) for part in folders), _escaped(last, not ending)]
    path = "/".join(parts) + ending
    longest = max(len(part.encode()) for part in path.split("/"))
    if longest > 255 or len(path.encode()) > _LONGEST_PATH:
        return f"%23{hashlib.sha256(video_id.encode()).hexdigest()}{ending}"
    return path


def _escaped(part: str, is_folder: bool) -> str:
    like_file = is_folder and part.lower().endswith(_FILES)
    if like_file or part.startswith(TEMPORARY) or _ESCAPED.search(part):
        return part.replace("%", "%25").replace(".", "%2E")
    return part


def file_name(video_id: str) -> str:
    """Return a file name for a video's id: the id quoted, or its SHA-256 if that is too long."""
    name = quote(video_id, safe="")
    if name.startswith(TEMPORARY):
        name = f"%2E{name[1:]}"  # `quote` leaves the dot; a temporary file is never read
    if len(name) > _LONGEST_NAME:
        return f"%sha256-{hashlib.sha256(video_id.encode()).hexdigest()}"  # `quote` makes no %s
    return name


def marker_place(out: Location, video_id: str) -> Location:
    """Return the location of a video's marker: written last, it says that the video is done."""
    return out / "commits" / f"{file_name(video_id)}.json"


def part_place(parts: Location, video_id: str) -> Location:
    """Return the location of a video's masks before they are published."""
    return parts / "masks" / file_name(video_id)


def masks_place(out: Location, video_id: str) -> Location:
    """Return the location of a video's masks."""
    return out / "masks" / id_path(video_id, ".parquet")


def read_marker(out: Location, video_id: str) -> dict[str, Any] | None:
    """Return the marker of a video; None if there is none, or none that is sound."""
    place = marker_place(out, video_id)
    return as_marker(place.read_bytes()) if place.exists() else None


def read_markers(out: Location) -> dict[str, dict[str, Any]]:
    """Return all sound markers, by the id of their video."""
    return survey_markers(out)[0]


def survey_markers(out: Location) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return all sound markers by the id of their video, and the names of unsound ones."""
    folder = out / "commits"
    entries = [e for e in folder.list() if e.name.endswith(".json") and not e.is_folder]
    with ThreadPoolExecutor(_THREADS) as pool:
        contents = pool.map(lambda entry: (folder / entry.name).read_bytes(), entries)
        found = [as_marker(content) for content in contents]
    markers: dict[str, dict[str, Any]] = {}
    for entry, marker in zip(entries, found, strict=True):
        if marker is not None:
            video_id = marker["video_id"]
            # An earlier version named some of them differently; the own name counts.
            if video_id not in markers or entry.name == f"{file_name(video_id)}.json":
                markers[video_id] = marker
    return markers, [e.name for e, marker in zip(entries, found, strict=True) if marker is None]


def has_hash(content: bytes, marker: Mapping[str, Any]) -> bool:
    """Return whether the content of a file of masks is what a marker says."""
    return hashlib.sha256(content).hexdigest() == marker["masks_sha256"]


Rows = Sequence[Mapping[str, Any]]


def table_of(out: Location, marker: Mapping[str, Any]) -> pa.Table:
    """Return a video's masks, as `masking.outputs.rows` describes them.

    Raises:
        StorageError: they are missing, or are not those of the video's marker.
    """
    place = masks_place(out, marker["video_id"])
    content = place.read_bytes()
    if not has_hash(content, marker):
        raise StorageError(
            f"{place} has other content than the masks that were published; run jobs.mask again,"
            " which masks the video again"
        )
    return pq.read_table(io.BytesIO(content))


def fetch_video(record: Mapping[str, Any], folder: Path) -> Path:
    """Return a local path of the video that was masked; one in S3 is fetched into a folder.

    Args:
        record: of the video, or its row of videos.parquet.
        folder: a temporary folder.

    Raises:
        OSError: the video is not there, or is not the one that was masked.
    """
    path = localize_in(folder / "video", Location.parse(record["uri"]))
    if not path.exists():
        raise FileNotFoundError("the video does not exist")
    if hash_of(path) != record["content_sha256"]:
        raise FileNotFoundError("the video has changed since it was masked")
    return path


def hash_of(path: Path) -> str:
    """Return the SHA-256, in hex, of a video file, or of a folder's frames and their names."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file == path or (is_frame(file.name) and file.is_file()):
            digest.update(file.relative_to(path).as_posix().encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
