"""Masks as files of other tools: DAVIS, PNG, COCO, YouTube-VOS. Values and bytes only."""

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
from masking.outputs.rows import frames_of

DAVIS_IDS = 255
"""The largest object id that an indexed PNG holds."""


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
    return png_bytes(picture)


def mask_png(mask: Bools) -> bytes:
    """A mask as a grey PNG, 255 where the object is."""
    return png_bytes(Image.fromarray(mask.astype(np.uint8) * 255))


def png_bytes(picture: Image.Image, optimize: bool = False) -> bytes:
    """Return a picture as PNG; `optimize` takes longer and makes it smaller."""
    content = io.BytesIO()
    picture.save(content, "png", optimize=optimize)
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
