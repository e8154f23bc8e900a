"""Masked videos in other tools' formats, under `export/` of a mask run."""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.fetch import localize
from jobs.mask_plan import masks_place
from jobs.storage import Location
from masking.decode import Pixels
from masking.film import Film
from masking.outputs import coco, davis_png, frames_of, label_map, mask_of, mask_png, youtube_vos
from masking.overlay import draw_masks
from masking.video import Video

Kind = Literal["davis", "png", "coco", "youtube-vos", "cutout", "overlay"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Rows = Sequence[Mapping[str, Any]]


def table_of(out: Location, video_id: str) -> pa.Table:
    """A video's masks."""
    return pq.read_table(io.BytesIO(masks_place(out, video_id).read_bytes()))


def export_video(out: Location, record: Mapping[str, Any], kinds: Sequence[str]) -> None:
    """The formats that have a file a frame, or a film a video."""
    video_id, table = record["video_id"], table_of(out, record["video_id"])
    for kind in kinds:
        place = out / "export" / kind
        if kind == "davis":
            for frame, rows in frames_of(table):
                (place / video_id / f"{frame:05d}.png").write_bytes(davis_png(label_map(rows)))
        elif kind == "png":
            for frame, rows in frames_of(table):
                for row in rows:
                    name = f"{video_id}/{row['object_id']}/{frame:05d}.png"
                    (place / name).write_bytes(mask_png(mask_of(row)))
        elif kind in ("cutout", "overlay"):
            ending = "mov" if kind == "cutout" else "mp4"
            draw = _cut_out if kind == "cutout" else _overlaid
            content = _film(record["uri"], table, kind, draw)
            (place / f"{video_id}.{ending}").write_bytes(content)


def export_all(out: Location, records: Iterable[Mapping[str, Any]], kinds: Sequence[str]) -> None:
    """The formats that are one file for all videos."""
    ids = [record["video_id"] for record in records]
    if "coco" in kinds:
        content = coco(((one, table_of(out, one)) for one in ids), {})
        (out / "export" / "coco" / "annotations.json").write_text(json.dumps(content))
    if "youtube-vos" in kinds:
        content = youtube_vos(((one, table_of(out, one)) for one in ids), {})
        (out / "export" / "youtube-vos" / "meta.json").write_text(json.dumps(content))


def _film(uri: str, table: pa.Table, kind: str, draw: Callable[[Pixels, Rows], Pixels]) -> bytes:
    source = localize(Location.parse(uri))
    with TemporaryDirectory(prefix="patchray-film-") as folder, Video.open(source) as video:
        path = Path(folder) / "film"
        frames = iter(video)
        first = next(frames)
        size = first.image.shape[:2]
        with Film(path, kind, size, source, video.rate) as film:
            masks = frames_of(table)
            for frame in chain([first], frames):
                _, rows = next(masks)
                film.write(draw(frame.image, rows), frame.time_s)
        return path.read_bytes()


def _overlaid(image: Pixels, rows: Rows) -> Pixels:
    return draw_masks(image, np.stack([mask_of(row) for row in rows]))


def _cut_out(image: Pixels, rows: Rows) -> Pixels:
    alpha = np.stack([mask_of(row) for row in rows]).any(axis=0)
    return np.dstack([image, alpha * np.uint8(255)])
