"""Exports masked videos to formats of other tools, below `export/` of a mask run."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.masks.folder import Rows, table_of
from jobs.storage import scratch
from jobs.storage.cache import localize_in
from jobs.storage.errors import explained
from jobs.storage.location import Location
from masking.images.arrays import Pixels
from masking.outputs.formats import davis_png, mask_png, write_coco, write_youtube_vos
from masking.outputs.overlay import draw_masks
from masking.outputs.rows import frames_of, label_map, mask_of
from masking.video.reader import Video
from masking.video.writer import Film

Kind = Literal["davis", "png", "coco", "youtube-vos", "cutout", "overlay"]
KINDS: dict[Kind, str] = {
    "davis": "`davis/VIDEO_ID/00000.png`: an indexed PNG for each frame; indices are object ids",
    "png": "`png/VIDEO_ID/OBJECT_ID/00000.png`: a PNG for each frame and object, 255 on the object",
    "coco": "`coco/annotations.json`: run lengths of the masks of all videos",
    "youtube-vos": "`youtube-vos/meta.json`: objects of all videos, and the frames that show each",
    "cutout": "`cutout/VIDEO_ID.mov`: ProRes 4444, transparent outside the objects",
    "overlay": "`overlay/VIDEO_ID.mp4`: the frames with masks drawn on them",
}
"""Formats, and what each writes below `export/`."""
_ENDINGS = {"cutout": "mov", "overlay": "mp4"}
BATCH_FORMATS = {
    "coco": ("annotations.json", write_coco),
    "youtube-vos": ("meta.json", write_youtube_vos),
}
"""Formats that are one file for all videos: its name, and the function that writes it."""


def export_video(out: Location, record: Mapping[str, Any], table: pa.Table, kind: str) -> None:
    """Write a format that has files of each video: a file per frame, or a film.

    Args:
        out: folder of the run.
        record: of the video.
        table: masks of the video.
        kind: davis, png, cutout or overlay.
    """
    video_id, place = record["video_id"], out / "export" / kind
    if kind == "davis":
        maps = ((frame, davis_png(label_map(rows))) for frame, rows in frames_of(table))
        _write_pngs(place / video_id, maps)
    elif kind == "png":
        objects = pc.unique(table["object_id"]).to_pylist()
        for number in objects:
            own = table.filter(pc.equal(table["object_id"], number))
            masks = ((frame, mask_png(mask_of(rows[0]))) for frame, rows in frames_of(own))
            _write_pngs(place / video_id / str(number), masks)
        _delete_objects(place / video_id, objects)  # objects of an earlier manifest
    else:
        draw = _cut_out if kind == "cutout" else _overlay
        _export_film(record["uri"], table, kind, draw, place / f"{video_id}.{_ENDINGS[kind]}")


def delete_exports(out: Location, videos: Collection[str]) -> None:
    """Delete the exports of videos that are masked again, as they would pass for the new masks."""
    export = out / "export"
    if not videos or not export.exists():
        return
    for video_id in videos:
        _write_pngs(export / "davis" / video_id, ())
        _delete_objects(export / "png" / video_id, ())
        for kind, ending in _ENDINGS.items():
            (export / kind / f"{video_id}.{ending}").delete()
    for kind, (name, _) in BATCH_FORMATS.items():
        (export / kind / name).delete()


def _delete_objects(folder: Location, but: Collection[int]) -> None:
    for entry in folder.list():
        if entry.name.isdecimal() and entry.is_folder and int(entry.name) not in but:
            _write_pngs(folder / entry.name, ())


def _write_pngs(folder: Location, pictures: Iterable[tuple[int, bytes]]) -> None:
    """Write a PNG for each frame, and delete those of other frames, which are of earlier masks."""
    written = set()
    for frame, content in pictures:
        name = f"{frame:05d}.png"
        (folder / name).write_bytes(content)
        written.add(name)
    for entry in folder.list():
        stem, _, ending = entry.name.partition(".")
        if stem.isdecimal() and ending == "png" and entry.name not in written:
            (folder / entry.name).delete()


def export_all(out: Location, names: Mapping[str, Mapping[int, str]], kinds: Sequence[str]) -> None:
    """Write the formats that are one file for all videos.

    Args:
        out: folder of the run.
        names: names of the objects of each video to export, by video and object id.
        kinds: formats; those with files of each video are skipped.

    Raises:
        StorageError: a file cannot be written, or the temporary folder, where it is made, is full.
    """
    for kind, (name, write) in BATCH_FORMATS.items():
        if kind in kinds:
            with scratch.folder() as folder:
                with explained("write", folder / name):
                    tables = ((video_id, table_of(out, video_id)) for video_id in names)
                    write(folder / name, tables, names)
                (out / "export" / kind / name).upload(folder / name)


def _export_film(
    uri: str, table: pa.Table, kind: str, draw: Callable[[Pixels, Rows], Pixels], target: Location
) -> None:
    with scratch.folder() as folder:
        path = folder / "film"
        source = localize_in(folder / "video", Location.parse(uri))
        _write_film(path, source, table, kind, draw)
        target.upload(path)  # in chunks, as a cut-out may have gigabytes


def _write_film(
    path: Path, source: Path, table: pa.Table, kind: str, draw: Callable[[Pixels, Rows], Pixels]
) -> None:
    with Video.open(source) as video:
        frames = iter(video)
        first = next(frames)
        size = first.image.shape[:2]
        with Film(path, kind, size, video) as film:
            masks = frames_of(table)
            for frame in chain([first], frames):
                _, rows = next(masks, (0, None))
                if rows is None:
                    raise ValueError("the video has more frames than were masked: mask it again")
                film.write(draw(frame.image, rows), frame.time_s)


def _overlay(image: Pixels, rows: Rows) -> Pixels:
    return draw_masks(image, np.stack([mask_of(row) for row in rows]))


def _cut_out(image: Pixels, rows: Rows) -> Pixels:
    alpha = np.stack([mask_of(row) for row in rows]).any(axis=0)
    return np.dstack([image, alpha * np.uint8(255)])
