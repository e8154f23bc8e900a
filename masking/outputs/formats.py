"""Masks in the formats of other tools: DAVIS, PNG, COCO, YouTube-VOS."""

import io
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from masking.images.arrays import Bools
from masking.images.outlines import edge_parts, one_ring
from masking.outputs.rows import frame_stem, frames_of, mask_of

DAVIS_IDS = 255
"""The largest object id that an indexed PNG holds."""


def palette() -> list[int]:
    """Return the palette of DAVIS' and PASCAL VOC's indexed images: 256 times R, G, B."""
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
    """Return a label map (H, W) as DAVIS stores it: an indexed PNG, 0 the background.

    Raises:
        ValueError: an object id is above 255, the largest that such an image holds.
    """
    if labels.max(initial=0) > DAVIS_IDS:
        raise ValueError(f"object {labels.max()}: an indexed PNG holds ids up to {DAVIS_IDS}")
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(palette())
    return png_bytes(picture)


def mask_png(mask: Bools) -> bytes:
    """Return a mask (H, W) as a grey PNG, 255 where the object is."""
    return png_bytes(Image.fromarray(mask.astype(np.uint8) * 255))


def png_bytes(picture: Image.Image, optimize: bool = False) -> bytes:
    """Return a picture as PNG; `optimize` takes longer and makes it smaller."""
    content = io.BytesIO()
    picture.save(content, "png", optimize=optimize)
    return content.getvalue()


def category_of(names: Mapping[int, str], object_id: int) -> str:
    """Return the category of an object: its name, or "object N" with its id N."""
    return names.get(object_id, f"object {object_id}")


def write_coco(
    path: Path,
    videos: Iterable[tuple[str, pa.Table]],
    names: Mapping[str, Mapping[int, str]],
    polygons: bool = False,
) -> None:
    """Write COCO's JSON of masked videos: an image for each frame, an annotation for each mask.

    The `file_name` of an image is the id of the video and the name of the frame's file; the frames
    of a video file, which have no names, are named by their index. Empty masks are left out. The
    file is written video by video, so that a batch may be larger than memory; a second file beside
    `path` holds the annotations until the images are written.

    Args:
        path: the local file to write.
        videos: id and mask table (`masking.outputs.rows`) of each video.
        names: names of each video's objects, by video id and object id; each is a category.
        polygons: whether masks are polygons, one for each of their parts, instead of run lengths. A
            seam of no width leads to each hole.
    """
    categories: dict[str, int] = {}
    with path.open("w") as file, TemporaryFile("w+", dir=path.parent) as later:
        images, annotations = _Array(file), _Array(later)
        file.write('{"images": [')
        for video_id, table in videos:
            named = names.get(video_id, {})
            for frame, rows in frames_of(table):
                images.add(_coco_image(images.count + 1, video_id, frame, rows[0]))
                for row in rows:
                    name = category_of(named, row["object_id"])
                    category = categories.setdefault(name, len(categories) + 1)
                    if row["area"]:
                        number = annotations.count + 1
                        shape = _polygons(row) if polygons else _run_lengths(row)
                        annotations.add(
                            _coco_annotation(number, images.count, category, row, shape)
                        )
        file.write('],\n"annotations": [')
        later.seek(0)
        shutil.copyfileobj(later, file)
        listed = [{"id": number, "name": name} for name, number in categories.items()]
        file.write(f'],\n"categories": {json.dumps(listed)}}}')


def _coco_image(number: int, video_id: str, frame: int, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": number,
        "file_name": f"{video_id}/{row.get('frame_name') or f'{frame:05d}.jpg'}",
        "height": row["height"],
        "width": row["width"],
        "video_id": video_id,
        "frame": frame,
    }


def _run_lengths(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": [row["height"], row["width"]], "counts": row["rle"].decode()}


def _polygons(row: Mapping[str, Any]) -> list[list[float]]:
    return [one_ring(part).ravel().tolist() for part in edge_parts(mask_of(row))]


def _coco_annotation(
    number: int, image: int, category: int, row: Mapping[str, Any], segmentation: object
) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "object_id": row["object_id"],
        "segmentation": segmentation,
        "area": row["area"],
        "bbox": row["box"],
        "iscrowd": 0,
        "score": row["score"],
        "state": row["state"],
    }


class _Array:
    """Writes the members of a JSON array, one on each line."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.count = file, 0

    def add(self, member: Mapping[str, Any]) -> None:
        self.file.write(f"{',' if self.count else ''}\n{json.dumps(member)}")
        self.count += 1


def write_youtube_vos(
    path: Path, videos: Iterable[tuple[str, pa.Table]], names: Mapping[str, Mapping[int, str]]
) -> None:
    """Write YouTube-VOS' `meta.json`: for each video its objects and the frames that show each.

    Arguments are those of `write_coco`.
    """
    with path.open("w") as file:
        file.write('{"videos": {')
        for number, (video_id, table) in enumerate(videos):
            objects: dict[str, dict[str, Any]] = {}
            for _, rows in frames_of(table):
                for row in rows:
                    name = names.get(video_id, {}).get(row["object_id"], "object")
                    entry = objects.setdefault(
                        str(row["object_id"]), {"category": name, "frames": []}
                    )
                    if row["area"]:
                        entry["frames"].append(frame_stem(row))
            member = f"{json.dumps(video_id)}: {json.dumps({'objects': objects})}"
            file.write(f"{',' if number else ''}\n{member}")
        file.write("}}")
