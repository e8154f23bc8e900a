"""What masked videos are on disk: rows of masks, spans to look at, and other tools' formats.

Values and bytes only; where they go is the caller's affair. A row is a frame and an object:

    frame      int32    from 0, in presentation order
    time_s     double   seconds since the first frame; null: unknown
    object_id  int32    of the manifest
    state      string   prompted, tracked, uncertain, lost, recovered, absent; null: not asked for
    rle        binary   COCO's packed run lengths; null: not evaluated; no object is an empty mask
    owned      binary   of these, what a label map gives to the object; null: all of it
    height, width  int32  of the frame
    area       int32    pixels of the mask
    box        list<int32>  x, y, width, height; null of an empty mask
    score      float    IoU that the segmenter predicts
    quality    float    agreement with what motion and memory expected, 0 to 1
    direction  string   prompt, forward, backward, both
"""

import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from masking.images.arrays import Bools
from masking.images.masks import area, box, decode_rle, encode_rle
from masking.propagate import FrameMasks

FORMAT = 1
"""Version of the columns; raise it when they, or what they mean, change."""
SCHEMA = pa.schema(
    [
        ("frame", pa.int32()),
        ("time_s", pa.float64()),
        ("object_id", pa.int32()),
        ("state", pa.string()),
        ("rle", pa.binary()),
        ("owned", pa.binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("area", pa.int32()),
        ("box", pa.list_(pa.field("element", pa.int32()))),
        ("score", pa.float32()),
        ("quality", pa.float32()),
        ("direction", pa.string()),
    ],
    metadata={"patchray_masks": str(FORMAT)},
)
DAVIS_IDS = 255
"""The largest object id that an indexed PNG holds."""
GROUP = 2000
"""Rows of a group of the file: so many are held before they are written."""


class MaskFile:
    """A Parquet file of masks that grows frame by frame; holds no more than a group of rows."""

    def __init__(self, target: io.BufferedIOBase | str) -> None:
        """Begin a file; `target` is a path or an open stream."""
        self._writer = pq.ParquetWriter(target, SCHEMA, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, frame: FrameMasks) -> None:
        """Append the rows of a frame."""
        self._rows += rows_of(frame)
        if len(self._rows) >= GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is left, and the footer, without which there is no file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
            self._rows = []


def rows_of(frame: FrameMasks) -> list[dict[str, Any]]:
    """A row for each object of a frame."""
    height, width = frame.image.shape[:2]
    masks = frame.masks
    shared = masks.sum(axis=0) > 1
    labels = frame.label_map() if shared.any() else None
    rows = []
    for object_id, one, mask in zip(frame.objects, frame.found, masks, strict=True):
        row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
        row |= {"frame": frame.index, "time_s": frame.time_s, "object_id": object_id}
        row |= {"height": height, "width": width}
        if one is not None:
            row |= {
                "state": one.state,
                "rle": encode_rle(mask),
                "area": area(mask),
                "box": list(box(mask)) if mask.any() else None,
                "score": one.score,
                "quality": one.quality,
                "direction": one.direction,
            }
            if labels is not None and (mask & shared).any():
                row["owned"] = encode_rle(mask & (labels == object_id))
        rows.append(row)
    return rows


def frames_of(table: pa.Table) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Rows of a mask file by frame, in order."""
    batches = (batch.to_pylist() for batch in table.to_batches(max_chunksize=GROUP))
    for frame, rows in groupby(chain.from_iterable(batches), key=lambda row: row["frame"]):
        yield frame, list(rows)


def mask_of(row: Mapping[str, Any], owned: bool = False) -> Bools:
    """(H, W) of a row; of `owned` without what other objects of the frame were given."""
    counts = row["owned"] if owned and row["owned"] is not None else row["rle"]
    size = (row["height"], row["width"])
    return np.zeros(size, dtype=np.bool_) if counts is None else decode_rle(counts, size)


def label_map(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.uint16]:
    """(H, W): the id of the object at each pixel of a frame, 0 for none."""
    labels = np.zeros((rows[0]["height"], rows[0]["width"]), np.uint16)
    for row in rows:
        labels[mask_of(row, owned=True)] = row["object_id"]
    return labels


@dataclass(frozen=True)
class Span:
    """Frames of an object that a person should look at."""

    video_id: str
    object_id: int
    first_frame: int
    last_frame: int
    reason: str
    """lost or uncertain."""
    click_frame: int
    """Where a click would help most: the first frame of what is lost, from which on all is missing;
    of what is uncertain the frame that agrees least with what was expected."""
    severity: float
    """Frames, weighted by how far each is from being trusted: for the order of the list."""


def spans(video_id: str, rows: Iterable[Mapping[str, Any]]) -> list[Span]:
    """Runs of uncertain and of lost frames of each object, worst first."""
    by_object: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_object.setdefault(row["object_id"], []).append(row)
    found = []
    for object_id, mine in by_object.items():
        for state, run in groupby(mine, key=lambda row: row["state"]):
            if state not in ("lost", "uncertain"):
                continue
            part = list(run)
            doubt = [1.0 if state == "lost" else 1.0 - row["quality"] for row in part]
            place = 0 if state == "lost" else int(np.argmax(doubt))
            frames = [row["frame"] for row in part]
            found.append(
                Span(video_id, object_id, frames[0], frames[-1], state, frames[place], sum(doubt))
            )
    return sorted(found, key=lambda span: (-span.severity, span.video_id, span.first_frame))


def palette() -> list[int]:
    """Colours of DAVIS' and PASCAL VOC's indexed images: 256 times RGB."""
    colours = []
    for index in range(256):
        red = green = blue = 0
        for bit in range(8):
            shift, part = 7 - bit, index >> (3 * bit)
            red |= (part & 1) << shift
            green |= (part >> 1 & 1) << shift
            blue |= (part >> 2 & 1) << shift
        colours += [red, green, blue]
    return colours


def davis_png(labels: NDArray[np.uint16]) -> bytes:
    """A label map as DAVIS has it: an indexed PNG, 0 the background.

    Raises:
        ValueError: an object id above 255, which such an image cannot hold.
    """
    if labels.max(initial=0) > DAVIS_IDS:
        raise ValueError(f"object {labels.max()}: an indexed PNG holds ids up to {DAVIS_IDS}")
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(palette())
    return _png(picture)


def mask_png(mask: Bools) -> bytes:
    """A mask as a grey PNG, 255 where the object is."""
    return _png(Image.fromarray(mask.astype(np.uint8) * 255))


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "png")
    return content.getvalue()


def write_coco(
    path: Path, videos: Iterable[tuple[str, pa.Table]], names: Mapping[str, Mapping[int, str]]
) -> None:
    """COCO's JSON of masked videos: an image a frame, an annotation a mask that is not empty.

    Goes to disk video by video, so that a batch may be larger than memory; a second file beside
    `path` holds the annotations until the images are written.

    Args:
        path: the file to write, local.
        videos: ids and mask tables.
        names: of each video's objects. Each name is a category; an object without one is of the
            category "object N", N being its id.
    """
    categories: dict[str, int] = {}
    with path.open("w") as file, TemporaryFile("w+", dir=path.parent) as later:
        images, annotations = _Array(file), _Array(later)
        file.write('{"images": [')
        for video_id, table in videos:
            called = names.get(video_id, {})
            for frame, rows in frames_of(table):
                size = [rows[0]["height"], rows[0]["width"]]
                images.add(
                    {
                        "id": images.count + 1,
                        "file_name": f"{video_id}/{frame:05d}.jpg",
                        "height": size[0],
                        "width": size[1],
                        "video_id": video_id,
                        "frame": frame,
                    }
                )
                for row in rows:
                    object_id = row["object_id"]
                    name = called.get(object_id, f"object {object_id}")
                    category = categories.setdefault(name, len(categories) + 1)
                    if not row["area"]:
                        continue
                    annotations.add(
                        {
                            "id": annotations.count + 1,
                            "image_id": images.count,
                            "category_id": category,
                            "object_id": object_id,
                            "segmentation": {"size": size, "counts": row["rle"].decode()},
                            "area": row["area"],
                            "bbox": row["box"],
                            "iscrowd": 0,
                            "score": row["score"],
                            "state": row["state"],
                        }
                    )
        file.write('],\n"annotations": [')
        later.seek(0)
        shutil.copyfileobj(later, file)
        listed = [{"id": number, "name": name} for name, number in categories.items()]
        file.write(f'],\n"categories": {json.dumps(listed)}}}')


class _Array:
    """Members of a JSON array, one after the other, a line each."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.count = file, 0

    def add(self, member: Mapping[str, Any]) -> None:
        self.file.write(f"{',' if self.count else ''}\n{json.dumps(member)}")
        self.count += 1


def write_youtube_vos(
    path: Path, videos: Iterable[tuple[str, pa.Table]], names: Mapping[str, Mapping[int, str]]
) -> None:
    """YouTube-VOS' `meta.json`: of each video its objects, and the frames that show each.

    Arguments are those of `write_coco`.
    """
    with path.open("w") as file:
        file.write('{"videos": {')
        for number, (video_id, table) in enumerate(videos):
            objects: dict[str, dict[str, Any]] = {}
            for frame, rows in frames_of(table):
                for row in rows:
                    name = names.get(video_id, {}).get(row["object_id"], "object")
                    entry = objects.setdefault(
                        str(row["object_id"]), {"category": name, "frames": []}
                    )
                    if row["area"]:
                        entry["frames"].append(f"{frame:05d}")
            member = f"{json.dumps(video_id)}: {json.dumps({'objects': objects})}"
            file.write(f"{',' if number else ''}\n{member}")
        file.write("}}")
