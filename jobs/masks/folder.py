"""The output folder of a mask run: where its files are, and which videos are done."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.storage.location import Location
from masking.video.folder import is_frame

_THREADS = 16  # reading markers at the same time


def file_name(video_id: str) -> str:
    """Return a file name for a video's id: the id quoted, or its SHA-256 if that is too long."""
    name = quote(video_id, safe="")
    return name if len(name) <= 200 else hashlib.sha256(video_id.encode()).hexdigest()


def marker_place(out: Location, video_id: str) -> Location:
    """Return the location of a video's marker: written last, it says that the video is done."""
    return out / "commits" / f"{file_name(video_id)}.json"


def part_place(parts: Location, video_id: str) -> Location:
    """Return the location of a video's masks before they are published."""
    return parts / "masks" / file_name(video_id)


def masks_place(out: Location, video_id: str) -> Location:
    """Return the location of a video's masks."""
    return out / "masks" / f"{video_id}.parquet"


def masked_videos(out: Location) -> set[str]:
    """Return the ids of videos that have a file of masks, with or without a marker."""
    return {entry.path.removesuffix(".parquet") for entry in (out / "masks").walk()}


def read_markers(out: Location) -> dict[str, dict[str, Any]]:
    """Return all markers, by the id of their video."""
    folder = out / "commits"
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda entry: (folder / entry.name).read_json(), folder.list()))
    return {marker["video_id"]: marker for marker in found}


Rows = Sequence[Mapping[str, Any]]


def table_of(out: Location, video_id: str) -> pa.Table:
    """Return a video's masks, as `masking.outputs.rows` describes them."""
    return pq.read_table(io.BytesIO(masks_place(out, video_id).read_bytes()))


def hash_of(path: Path) -> str:
    """Return the SHA-256, in hex, of a video file, or of a folder's frames and their names."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file == path or (is_frame(file.name) and file.is_file()):
            digest.update(file.relative_to(path).as_posix().encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
