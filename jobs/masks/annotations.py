"""Exports masked videos to files of annotation tools, and the frames beside them."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from PIL import Image

from jobs.masks.folder import id_path
from jobs.storage import scratch
from jobs.storage.cache import localize_in
from jobs.storage.location import Location
from masking.images.arrays import Pixels
from masking.outputs.annotations.cvat import write_cvat
from masking.outputs.annotations.mot import mot_files
from masking.outputs.annotations.tracks import Clip, clip_of
from masking.outputs.annotations.yolo import yolo_lines
from masking.outputs.formats import category_of
from masking.outputs.rows import frame_stem, frames_of
from masking.video.folder import IMAGES
from masking.video.reader import Video

OF_VIDEOS = ("yolo", "cvat", "cvat-polygons", "mot")
"""Formats with files of each video."""
OTHERS = "others"
"""All formats that have no folder of their own for frames."""
FRAME_FOLDERS = {"yolo": "yolo/images/{}", "mot": "mot/{}/img1", OTHERS: "frames/{}"}
"""Folders of a video's frames below `export/`, by the format that reads them there."""
_MOT_FILES = ("gt/gt.txt", "gt/labels.txt", "seqinfo.ini")
_QUALITY = 95  # of JPEG frames


@dataclass(frozen=True)
class Labels:
    """What the objects of a video are called."""

    names: Mapping[int, str] = field(default_factory=dict)
    """Names of the video's objects by id."""
    categories: tuple[str, ...] = ()
    """Names of the classes of all videos, in order."""

    def to_json(self) -> dict[str, Any]:
        """Return the labels as values of JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Labels":
        """Return the labels that `to_json` returned."""
        names = {int(number): name for number, name in fields["names"].items()}
        return cls(names, tuple(fields["categories"]))


def plan_labels(
    records: Sequence[Mapping[str, Any]], names: Mapping[str, Mapping[int, str]]
) -> dict[str, Labels]:
    """Return the labels of each video, by its id; all have the same categories.

    Args:
        records: of the videos.
        names: names of the objects of each video, by video and object id.
    """
    found = {
        category_of(names.get(record["video_id"], {}), int(number))
        for record in records
        for number in record["objects"]
    }
    return {
        record["video_id"]: Labels(names.get(record["video_id"], {}), tuple(sorted(found)))
        for record in records
    }


def clip_of_record(record: Mapping[str, Any], table: pa.Table) -> Clip:
    """Return a video as the files of other tools describe it."""
    return clip_of(table, record["video_id"], record["uri"], record.get("rate"))


def export_annotations(
    out: Location, record: Mapping[str, Any], table: pa.Table, kind: str, labels: Labels
) -> None:
    """Write a format with files of each video.

    Args:
        out: folder of the run.
        record: of the video.
        table: masks of the video.
        kind: one of `OF_VIDEOS`.
        labels: names of its objects, and of all classes.
    """
    place, video_id = out / "export" / kind, record["video_id"]
    if kind == "yolo":
        lines = (
            (f"{frame_stem(rows[0])}.txt", yolo_lines(rows, labels.names, labels.categories))
            for _, rows in frames_of(table)
        )
        files = ((name, text.encode()) for name, text in lines)
        write_files(place / "labels" / id_path(video_id), files, (".txt",))
    elif kind == "mot":
        clip = clip_of_record(record, table)
        for name, text in mot_files(table, clip, labels.names, labels.categories).items():
            (place / id_path(video_id) / name).write_bytes(text.encode())
    else:
        with scratch.folder() as folder:
            clip = clip_of_record(record, table)
            path = folder / "annotations.xml"
            write_cvat(path, table, clip, labels.names, polygons=kind == "cvat-polygons")
            (place / id_path(video_id, ".xml")).upload(path)


def export_frames(
    out: Location, record: Mapping[str, Any], table: pa.Table, kinds: Iterable[str]
) -> None:
    """Write the frames of a video where each format has them.

    Args:
        out: folder of the run.
        record: of the video.
        table: masks of the video.
        kinds: keys of `FRAME_FOLDERS`.

    Raises:
        ValueError: the video has other frames than were masked.
    """
    video_id = record["video_id"]
    folders = {kind: _frame_folder(out / "export", kind, video_id) for kind in kinds}
    with scratch.folder() as folder:
        path = localize_in(folder / "video", Location.parse(record["uri"]))
        with Video.open(path) as video:
            masks = frames_of(table)
            for frame in video:
                _, rows = next(masks, (0, None))
                if rows is None:
                    raise ValueError("the video has more frames than were masked: mask it again")
                own = rows[0].get("frame_name") or f"{frame.index:05d}.jpg"
                content = encoded(frame.image, own)
                for kind, place in folders.items():
                    numbered = f"{frame.index + 1:06d}{PurePosixPath(own).suffix}"
                    (place / (numbered if kind == "mot" else own)).write_bytes(content)


def _frame_folder(export: Location, kind: str, video_id: str) -> Location:
    return export / FRAME_FOLDERS[kind].format(id_path(video_id))


def encoded(image: Pixels, name: str) -> bytes:
    """Return a frame (H, W, 3) uint8 RGB as a picture of the kind that its name says."""
    content = io.BytesIO()
    kind = Image.registered_extensions()[PurePosixPath(name).suffix.lower()]
    Image.fromarray(image).save(content, kind, quality=_QUALITY)
    return content.getvalue()


def write_files(
    folder: Location, files: Iterable[tuple[str, bytes]], endings: tuple[str, ...]
) -> None:
    """Write files, and delete others with these endings: those of frames of earlier masks."""
    written = set()
    for name, content in files:
        (folder / name).write_bytes(content)
        written.add(name)
    for entry in folder.list():
        is_old = entry.name.lower().endswith(endings) and entry.name not in written
        if is_old and not entry.is_folder:
            (folder / entry.name).delete()


def delete_annotations(export: Location, video_id: str) -> None:
    """Delete the files that `export_annotations` and `export_frames` wrote of a video."""
    write_files(export / "yolo/labels" / id_path(video_id), (), (".txt",))
    for kind in ("cvat", "cvat-polygons"):
        (export / kind / id_path(video_id, ".xml")).delete()
    for name in _MOT_FILES:
        (export / "mot" / id_path(video_id) / name).delete()
    for kind in FRAME_FOLDERS:
        write_files(_frame_folder(export, kind, video_id), (), IMAGES)
