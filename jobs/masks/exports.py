"""Exports masked videos to formats of other tools, below `export/` of a mask run."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.masks.annotations import (
    OF_VIDEOS,
    Labels,
    clip_of_record,
    delete_annotations,
    export_annotations,
    plan_labels,
    write_files,
)
from jobs.masks.folder import Rows, id_path, table_of
from jobs.masks.plan import frame_names
from jobs.storage import scratch
from jobs.storage.cache import localize_in
from jobs.storage.errors import explained
from jobs.storage.location import Location
from masking.images.arrays import Pixels
from masking.outputs.annotations.label_studio import write_label_studio
from masking.outputs.annotations.yolo import data_yaml
from masking.outputs.formats import davis_png, mask_png, write_coco, write_youtube_vos
from masking.outputs.overlay import draw_masks
from masking.outputs.redaction import Hiding, Redaction, unsafe_csv
from masking.outputs.rows import frame_stem, frames_of, label_map, mask_of, with_names
from masking.video.frame import VideoError
from masking.video.reader import Video
from masking.video.writer import Film

Kind = Literal[
    "davis", "png", "coco", "coco-polygons", "youtube-vos", "yolo", "cvat", "cvat-polygons",
    "label-studio", "mot", "cutout", "overlay", "blur", "pixelate", "crops",
]  # fmt: skip
KINDS: dict[Kind, str] = {
    "davis": "`davis/VIDEO_ID/FRAME.png`: an indexed PNG for each frame; indices are object ids",
    "png": "`png/VIDEO_ID/OBJECT_ID/FRAME.png`: a PNG for each frame and object, 255 on the object",
    "coco": "`coco/annotations.json`: run lengths of the masks of all videos",
    "coco-polygons": "`coco-polygons/annotations.json`: the same with polygons",
    "youtube-vos": "`youtube-vos/meta.json`: objects of all videos, and the frames that show each",
    "yolo": "`yolo/labels/VIDEO_ID/FRAME.txt`: segments, and `yolo/data.yaml` for Ultralytics",
    "cvat": "`cvat/VIDEO_ID.xml`: tracks of boxes with keyframes, CVAT for video 1.1",
    "cvat-polygons": "`cvat-polygons/VIDEO_ID.xml`: tracks of polygons, a keyframe on each frame",
    "label-studio": "`label-studio/tasks.json`: tracks of boxes with keyframes of all videos",
    "mot": "`mot/VIDEO_ID/gt/gt.txt`: a box a line, in the columns of MOTChallenge",
    "cutout": "`cutout/VIDEO_ID.mov`: ProRes 4444, transparent outside the objects",
    "overlay": "`overlay/VIDEO_ID.mp4`: the frames with masks drawn on them",
    "blur": "`blur/VIDEO_ID.mp4`: frames with blurred objects; `blur/VIDEO_ID.csv`: unsafe spans",
    "pixelate": "`pixelate/VIDEO_ID.mp4`, `pixelate/VIDEO_ID.csv`: the same with large pixels",
    "crops": "`crops/`: a data set of the named objects for `jobs.train`, split by video",
}
"""Formats, and what each writes below `export/`."""
HIDING: tuple[Hiding, ...] = get_args(Hiding)
"""Films in which objects are hidden."""
_ENDINGS = {"cutout": ".mov", "overlay": ".mp4", "blur": ".mp4", "pixelate": ".mp4"}
_UNNAMED = Labels()
_UNSAFE = 5  # spans that are not safe that a video's notes list
BATCH_FORMATS = {
    "coco": "annotations.json",
    "coco-polygons": "annotations.json",
    "youtube-vos": "meta.json",
    "label-studio": "tasks.json",
}
"""Formats that are one file for all videos: its name."""


def named_table(out: Location, record: Mapping[str, Any]) -> pa.Table:
    """Return a video's masks; those of a folder have the names of its frames.

    Raises:
        StorageError: the masks are not those of the record, or the folder cannot be read.
        VideoError: the folder has other frames than were masked.
    """
    table = table_of(out, record)
    if record.get("codec") != "images" or "frame_name" in table.column_names:
        return table
    names = frame_names(record["uri"])  # masks of an earlier version have none
    if len(names) != record["frames"]:
        raise VideoError(
            "not_a_video",
            f"{record['uri']} has {len(names):,} frames, but {record['frames']:,} were masked",
        )
    return with_names(table, names)


def export_video(
    out: Location,
    record: Mapping[str, Any],
    table: pa.Table,
    kind: str,
    labels: Labels = _UNNAMED,
) -> Sequence[str]:
    """Write a format that has files of each video: a file per frame, or a film.

    Args:
        out: folder of the run.
        record: of the video.
        table: masks of the video.
        kind: the format.
        labels: names of its objects, and of all classes.

    Returns:
        What a film lacks, such as sound of an unknown codec, and spans in which objects that should
        be hidden may show.
    """
    video_id, place = record["video_id"], out / "export" / kind
    folder = place / id_path(video_id)
    if kind == "davis":
        maps = ((frame_stem(rows[0]), davis_png(label_map(rows))) for _, rows in frames_of(table))
        _write_pngs(folder, maps)
    elif kind == "png":
        objects = pc.unique(table["object_id"]).to_pylist()
        for number in objects:
            own = frames_of(table.filter(pc.equal(table["object_id"], number)))
            masks = ((frame_stem(row), mask_png(mask_of(row))) for _, (row,) in own)
            _write_pngs(folder / str(number), masks)
        _delete_objects(folder, objects)  # objects of an earlier manifest
    elif kind in OF_VIDEOS:
        export_annotations(out, record, table, kind, labels)
    elif kind in HIDING:
        return _export_hidden(out, record, table, kind)
    else:
        draw = _cut_out if kind == "cutout" else _overlay
        target = place / id_path(video_id, _ENDINGS[kind])
        return _export_film(record["uri"], table, kind, draw, target)
    return ()


def delete_exports(out: Location, videos: Collection[str]) -> None:
    """Delete the exports of videos that are masked again, as they would pass for the new masks."""
    export = out / "export"
    if not videos or not export.exists():
        return
    for video_id in videos:
        _write_pngs(export / "davis" / id_path(video_id), ())
        _delete_objects(export / "png" / id_path(video_id), ())
        for kind, ending in _ENDINGS.items():
            (export / kind / id_path(video_id, ending)).delete()
        for kind in HIDING:
            (export / kind / id_path(video_id, ".csv")).delete()
        delete_annotations(export, video_id)
    for kind, name in (*BATCH_FORMATS.items(), ("yolo", "data.yaml")):
        (export / kind / name).delete()
    (export / "crops").delete()  # which set a video is in depends on all videos


def _delete_objects(folder: Location, but: Collection[int]) -> None:
    for entry in folder.list():
        if entry.name.isdecimal() and entry.is_folder and int(entry.name) not in but:
            _write_pngs(folder / entry.name, ())


def _write_pngs(folder: Location, pictures: Iterable[tuple[str, bytes]]) -> None:
    """Write a PNG for each frame's name, and delete those of other frames, of earlier masks."""
    write_files(folder, ((f"{stem}.png", content) for stem, content in pictures), (".png",))


def export_all(
    out: Location,
    records: Sequence[Mapping[str, Any]],
    names: Mapping[str, Mapping[int, str]],
    kinds: Sequence[str],
) -> None:
    """Write the formats that are one file for all videos.

    Args:
        out: folder of the run.
        records: of the videos to export.
        names: names of the objects of each video, by video and object id.
        kinds: formats; those with files of each video are skipped.

    Raises:
        StorageError: a file cannot be written, or the temporary folder, where it is made, is full.
    """
    for kind, name in BATCH_FORMATS.items():
        if kind in kinds:
            with scratch.folder() as folder:
                with explained("write", folder / name):
                    _write_batch(folder / name, out, records, names, kind)
                (out / "export" / kind / name).upload(folder / name)
    if "yolo" in kinds and records:
        labels = plan_labels(records, names)[records[0]["video_id"]]
        (out / "export/yolo/data.yaml").write_bytes(data_yaml(labels.categories).encode())


def _write_batch(
    path: Path,
    out: Location,
    records: Sequence[Mapping[str, Any]],
    names: Mapping[str, Mapping[int, str]],
    kind: str,
) -> None:
    tables = ((record["video_id"], named_table(out, record)) for record in records)
    if kind == "youtube-vos":
        write_youtube_vos(path, tables, names)
    elif kind == "label-studio":
        by_id = {record["video_id"]: record for record in records}
        videos = ((clip_of_record(by_id[name], table), table) for name, table in tables)
        write_label_studio(path, videos, names)
    else:
        write_coco(path, tables, names, polygons=kind == "coco-polygons")


def _export_hidden(
    out: Location, record: Mapping[str, Any], table: pa.Table, kind: Hiding
) -> list[str]:
    """Write a film in which objects are hidden, and the spans in which they may show."""
    redaction, place = Redaction(table, kind), out / "export" / kind
    target = place / id_path(record["video_id"], _ENDINGS[kind])
    notes = _export_film(record["uri"], table, "overlay", redaction.draw, target)
    spans = place / id_path(record["video_id"], ".csv")
    spans.write_bytes(unsafe_csv(redaction.unsafe).encode())
    listed = [str(span) for span in redaction.unsafe[:_UNSAFE]]
    if len(redaction.unsafe) > _UNSAFE:
        listed.append(f"... and {len(redaction.unsafe) - _UNSAFE:,} more spans: {spans}")
    return [*notes, *listed]


def _export_film(
    uri: str, table: pa.Table, kind: str, draw: Callable[[Pixels, Rows], Pixels], target: Location
) -> list[str]:
    with scratch.folder() as folder:
        path = folder / "film"
        source = localize_in(folder / "video", Location.parse(uri))
        notes = _write_film(path, source, table, kind, draw)
        target.upload(path)  # in chunks, as a cut-out may have gigabytes
        return notes


def _write_film(
    path: Path, source: Path, table: pa.Table, kind: str, draw: Callable[[Pixels, Rows], Pixels]
) -> list[str]:
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
        return film.notes


def _overlay(image: Pixels, rows: Rows) -> Pixels:
    return draw_masks(image, np.stack([mask_of(row) for row in rows]))


def _cut_out(image: Pixels, rows: Rows) -> Pixels:
    alpha = np.stack([mask_of(row) for row in rows]).any(axis=0)
    return np.dstack([image, alpha * np.uint8(255)])
