"""What lies where in the output folder of a mask run, and what is done there already."""

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
from masking.video.reader import is_frame

_THREADS = 16  # that read markers at a time


def file_name(video_id: str) -> str:
    """A video's id as one name of a file; a long one, which no disk would take, as its hash."""
    name = quote(video_id, safe="")
    return name if len(name) <= 200 else hashlib.sha256(video_id.encode()).hexdigest()


def commit_place(out: Location, video_id: str) -> Location:
    """The marker of a video: written last, and all that says that it is done."""
    return out / "commits" / f"{file_name(video_id)}.json"


def part_place(parts: Location, video_id: str) -> Location:
    """Its masks, not yet published."""
    return parts / "masks" / file_name(video_id)


def masks_place(out: Location, video_id: str) -> Location:
    """Its masks."""
    return out / "masks" / f"{video_id}.parquet"


def masked_videos(out: Location) -> set[str]:
    """Videos of which there are masks, whether or not a marker says that they are sound."""
    return {entry.path.removesuffix(".parquet") for entry in (out / "masks").walk()}


def commits(out: Location) -> dict[str, dict[str, Any]]:
    """All markers, by video."""
    folder = out / "commits"
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda entry: (folder / entry.name).read_json(), folder.list()))
    return {marker["video_id"]: marker for marker in found}


Rows = Sequence[Mapping[str, Any]]


def table_of(out: Location, video_id: str) -> pa.Table:
    """A video's masks."""
    return pq.read_table(io.BytesIO(masks_place(out, video_id).read_bytes()))


def hash_of(path: Path) -> str:
    """Of a file, or of a folder's frames and their names."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file == path or (is_frame(file.name) and file.is_file()):
            digest.update(file.relative_to(path).as_posix().encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
