"""Turns a mask run into training data: frames of its videos with masks, in one Parquet file.

Only masks of the states prompted and tracked are used; those of other states become void. The
frames come from the run's videos, which must not have changed since.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.masks.folder import Rows, fetch_video, masks_place
from jobs.storage import scratch
from jobs.storage.cache import cache_folder, once
from jobs.storage.location import Location
from masking.images.arrays import Bools, Pixels
from masking.images.decode import ImageError, nearest
from masking.outputs.crops import TRUSTED
from masking.outputs.rows import frames_of, label_map, mask_of
from masking.video.frame import VideoError
from masking.video.reader import Video

FORMAT = 1
"""Version of the Parquet file's content: raise it when that changes."""
FRAMES = 32
"""Largest number of frames per video. Frames with prompts come first; the others are evenly spread,
as neighbouring frames differ too little to be worth training on."""
QUALITY = 95
"""Quality of the JPEGs, up to 100."""
_REMEDY = (
    "A mask run holds masks, not frames: move its videos back to where they were, or mask them"
    " again where they are."
)
_SCHEMA = pa.schema(
    [("image", pa.binary()), ("masks", pa.binary()), ("ignore", pa.binary()), ("key", pa.string())]
)


def is_run(place: Location) -> bool:
    """Return whether a folder is the output of a mask run."""
    return (place / "videos.parquet").exists() and (place / "masks").exists()


def as_pairs(place: Location, longest: int) -> Path:
    """Return a Parquet file of a run's frames in this node's cache; it is made if it is not there.

    Args:
        place: folder of the run.
        longest: larger frames are shrunk to this longer side, in pixels; 0: frames keep their size.

    Raises:
        ImageError: a video is missing or has changed, or the run has no mask that can be used.
    """
    columns = ["video_id", "uri", "status", "content_sha256", "masks_sha256"]
    good = [row for row in read_ledger(place, columns) if row["status"] in ("ok", "partial")]
    if not good:
        raise ImageError(f"{place}: the mask run has no masked video")
    state = [(row["video_id"], row["masks_sha256"], row["content_sha256"]) for row in good]
    digest = hashlib.sha256(repr((FORMAT, FRAMES, QUALITY, longest, state)).encode()).hexdigest()

    def make(target: Path) -> None:
        count, faults = 0, list[str]()
        with pq.ParquetWriter(target, _SCHEMA) as writer:
            for row in good:
                try:
                    made = _rows_of_video(place, row, longest)
                except (OSError, VideoError) as error:
                    faults.append(f"{place}: video {row['video_id']} ({row['uri']}): {error}")
                    continue
                writer.write_table(pa.Table.from_pylist(made, _SCHEMA))
                count += len(made)
        if faults:
            raise ImageError(*faults, _REMEDY)
        if not count:
            raise ImageError(f"{place}: the mask run has no mask of the states prompted or tracked")

    return once(cache_folder() / "masked" / f"{digest[:16]}.parquet", make)


def read_ledger(place: Location, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return some columns of the ledger of a mask run, a dict a video.

    Raises:
        ImageError: it cannot be read.
        StorageError: it is not there.
    """
    ledger = (place / "videos.parquet").read_bytes()
    try:
        rows: list[dict[str, Any]] = pq.read_table(
            io.BytesIO(ledger), columns=list(columns)
        ).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ImageError(
            f"{place / 'videos.parquet'} cannot be read: {error}; run jobs.mask again, which writes"
            " it from the markers in commits/"
        ) from error
    return rows


def _rows_of_video(place: Location, row: Mapping[str, Any], longest: int) -> list[dict[str, Any]]:
    """Return the Parquet rows of a video's frames; a video in S3 is fetched, then deleted again.

    Raises:
        OSError, VideoError: it cannot be read, or it or its masks are not those of the ledger.
    """
    content = masks_place(place, row["video_id"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != row["masks_sha256"]:
        raise FileNotFoundError(
            "its masks are newer than videos.parquet: finish the mask job first"
        )
    with scratch.folder() as folder:
        path = fetch_video(row, folder)
        return list(_frames(pq.read_table(io.BytesIO(content)), row["video_id"], path, longest))


def _frames(table: pa.Table, video_id: str, path: Path, longest: int) -> Iterator[dict[str, Any]]:
    masks = {
        frame: rows
        for frame, rows in frames_of(table)
        if any(row["state"] in TRUSTED and row["area"] for row in rows)
    }
    wanted = choose_frames(masks)
    with Video.open(path) as video:
        for frame in video:
            if frame.index in wanted:
                row = _row(frame.image, masks[frame.index], longest)
                if row is not None:
                    yield row | {"key": f"{video_id} frame {frame.index}"}
            if frame.index >= max(wanted, default=-1):
                break


def choose_frames(masks: Mapping[int, Rows]) -> set[int]:
    """Choose at most `FRAMES` of the frames with trusted masks; returns their numbers.

    Args:
        masks: rows of each frame's masks, by the frame's number.
    """
    prompted = [n for n, rows in masks.items() if any(row["state"] == "prompted" for row in rows)]
    others = [frame for frame in masks if frame not in prompted]
    count = min(len(others), max(0, FRAMES - len(prompted)))
    places: list[int] = np.linspace(0, len(others) - 1, count).round().astype(int).tolist()
    return {*prompted[:FRAMES], *(others[place] for place in places)}


def _row(image: Pixels, rows: Rows, longest: int) -> dict[str, Any] | None:
    """Return a row of the Parquet file, or None if no object is left: each is too small at that
    size, or hidden by others."""
    trusted = [row for row in rows if row["state"] in TRUSTED]
    labels = label_map(trusted)
    void: Bools = np.zeros(labels.shape, dtype=np.bool_)
    for row in rows:
        if row["state"] not in TRUSTED:
            void |= mask_of(row)
    picture = Image.fromarray(image)
    if longest:
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    size = picture.size[::-1]
    shrunk = nearest(labels, size)
    if not shrunk.any():
        return None
    return {
        "image": _encoded(picture, "jpeg"),
        "masks": _encoded(Image.fromarray(shrunk), "png"),
        "ignore": _encoded(Image.fromarray(nearest(void & (labels == 0), size)), "png"),
    }


def _encoded(picture: Image.Image, form: str) -> bytes:
    content = io.BytesIO()
    picture.save(content, form, **({"quality": QUALITY} if form == "jpeg" else {}))
    return content.getvalue()
