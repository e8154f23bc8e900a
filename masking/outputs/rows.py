"""Rows of masks, a frame and object each."""

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from masking.images.arrays import Bools
from masking.images.masks import decode_rle
from masking.images.runs import Runs
from masking.tracking.masks import FrameMasks

FORMAT = 2
"""Version of the columns; raise it when they, or what they mean, change."""
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "frame": (pa.int32(), "index of the frame, from 0, in presentation order"),
    "time_s": (pa.float64(), "seconds since the first frame; null where they are unknown"),
    "object_id": (pa.int32(), "id of the object in the manifest"),
    "state": (pa.string(), "state of the object; null where it is not tracked"),
    "rle": (
        pa.binary(),
        "the mask in COCO's compressed run lengths; null where no mask was computed; an object that"
        " is lost or absent has an empty mask",
    ),
    "owned": (
        pa.binary(),
        "the part of the mask that is the object's in a label map, as run lengths; null: all of it",
    ),
    "height": (pa.int32(), "height of the frame in pixels"),
    "width": (pa.int32(), "width of the frame in pixels"),
    "area": (pa.int32(), "number of pixels of the mask"),
    "box": (
        pa.list_(pa.field("element", pa.int32())),
        "left, top, width and height of the mask in pixels; null for an empty mask",
    ),
    "score": (pa.float32(), "IoU of the mask with the truth that is to be expected, 0 to 1"),
    "quality": (
        pa.float32(),
        "probability that the mask is right: that its IoU with the truth is above 0.5; of an empty"
        " mask of a lost object, that the object cannot be seen",
    ),
    "direction": (pa.string(), "where the mask comes from: prompt, forward, backward or both"),
    "frame_name": (
        pa.string(), "name of the frame's file; only videos that are folders of images have this",
    ),
}  # fmt: skip
"""Columns of `masks/VIDEO_ID.parquet`, with type and meaning."""
SCHEMA = pa.schema(
    [(name, kind) for name, (kind, _) in COLUMNS.items() if name != "frame_name"],
    metadata={"patchray_masks": str(FORMAT)},
)
"""Schema of the masks of a video file."""
FOLDER_SCHEMA = SCHEMA.append(pa.field("frame_name", COLUMNS["frame_name"][0]))
"""Schema of the masks of a folder of images."""
GROUP = 2000
"""Rows of a group of the file, which are held in memory before they are written."""


class MaskFile:
    """A Parquet file of masks that grows frame by frame; holds no more than a group of rows."""

    def __init__(self, target: io.BufferedIOBase | str, names: Sequence[str] | None = None) -> None:
        """Start a file.

        Args:
            target: path or open stream.
            names: names of the files of all frames, if the video is a folder of images.
        """
        self._names, self._schema = names, SCHEMA if names is None else FOLDER_SCHEMA
        self._writer = pq.ParquetWriter(target, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, frame: FrameMasks) -> None:
        """Append the rows of a frame."""
        name = {} if self._names is None else {"frame_name": self._names[frame.index]}
        self._rows += [row | name for row in rows_of(frame)]
        if len(self._rows) >= GROUP:
            self._flush()

    def close(self) -> None:
        """Write the remaining rows and the footer, without which the file cannot be read."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
            self._rows = []


def rows_of(frame: FrameMasks) -> list[dict[str, Any]]:
    """Return a row for each object of a frame."""
    height, width = frame.image.shape[:2]
    masks = [None if one is None else one.mask for one in frame.found]
    runs = [None if mask is None else Runs.of(mask) for mask in masks]
    shared = _shared(masks, runs)
    labels = None if shared is None else frame.label_map()
    rows = []
    for object_id, one, found in zip(frame.objects, frame.found, runs, strict=True):
        row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
        row |= {"frame": frame.index, "time_s": frame.time_s, "object_id": object_id}
        row |= {"height": height, "width": width}
        if one is not None and found is not None:
            row |= {
                "state": one.state,
                "rle": found.counts,
                "area": found.area,
                "box": list(found.box) if found.area else None,
                "score": one.score,
                "quality": one.quality,
                "direction": one.direction,
            }
            if shared is not None and labels is not None and (one.mask & shared).any():
                row["owned"] = Runs.of(one.mask & (labels == object_id)).counts
        rows.append(row)
    return rows


def _shared(masks: Sequence[Bools | None], runs: Sequence[Runs | None]) -> Bools | None:
    """Return the pixels (H, W) of more than one mask; None: there are none."""
    shown = [m for m, one in zip(masks, runs, strict=True) if m is not None and one and one.area]
    if len(shown) < 2:
        return None
    any_, shared = shown[0].copy(), np.zeros_like(shown[0])
    for mask in shown[1:]:
        shared |= any_ & mask
        any_ |= mask
    return shared if shared.any() else None


def with_names(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return masks of a folder with the column `frame_name`, which earlier versions did not write.

    Args:
        table: masks of the folder, a row a frame and object.
        names: names of the files of all frames.
    """
    column = [names[frame] for frame in table["frame"].to_pylist()]
    return table.append_column(FOLDER_SCHEMA.field("frame_name"), pa.array(column, pa.string()))


def frame_stem(row: Mapping[str, Any]) -> str:
    """Return the name, without an ending, that other tools know the frame of a row by.

    It is the name of the file if the video is a folder, else the index in five digits.
    """
    name = row.get("frame_name")
    return f"{row['frame']:05d}" if name is None else PurePath(name).stem


def frames_of(table: pa.Table) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield the rows of a mask file by frame, in order."""
    batches = (batch.to_pylist() for batch in table.to_batches(max_chunksize=GROUP))
    for frame, rows in groupby(chain.from_iterable(batches), key=lambda row: row["frame"]):
        yield frame, list(rows)


def mask_of(row: Mapping[str, Any], owned: bool = False) -> Bools:
    """Return the mask (H, W) of a row; with `owned` only the part that a label map gives it."""
    counts = row["owned"] if owned and row["owned"] is not None else row["rle"]
    size = (row["height"], row["width"])
    return np.zeros(size, dtype=np.bool_) if counts is None else decode_rle(counts, size)


def label_map(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.uint16]:
    """Return the rows of a frame as a label map (H, W): the object's id at each pixel, or 0."""
    labels = np.zeros((rows[0]["height"], rows[0]["width"]), np.uint16)
    for row in rows:
        labels[mask_of(row, owned=True)] = row["object_id"]
    return labels
