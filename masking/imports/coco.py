"""COCO's JSON of the frames of videos and of image sequences: masks, polygons and boxes.

An image is a frame. It says which by `video_id` and `frame` (or `frame_id`, `frame_index`), as
COCO-VID and this project's own export do, or by the name of its file. Annotations are of one object
if they have the same `object_id`, `track_id` or `instance_id`, also among their `attributes`.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from masking.imports.items import Cells, Found, ImportsError, Item, box_cells, polygon_cells
from masking.manifest.shapes import MASK, mask_text
from masking.training.segmentation import brief, fault_of, is_whole

_FRAMES = ("frame", "frame_id", "frame_index")
_TRACKS = ("object_id", "track_id", "instance_id")


def is_coco(value: Any) -> bool:
    """Return whether JSON is of COCO: lists of images and annotations."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name), list) for name in ("images", "annotations")
    )


def read_coco(name: str, value: Mapping[str, Any]) -> Found:
    """Read the annotations of a COCO file.

    Args:
        name: name of the file, for messages.
        value: the content of the JSON.

    Raises:
        ImportsError: its categories or videos are no lists of objects with id and name.
    """
    found = Found()
    categories, videos = (_names(name, value, kind) for kind in ("categories", "videos"))
    frames = dict[str, Item]()
    for row, image in enumerate(value["images"]):
        where = f"{name}, images[{row}]"
        if (key := _key(image)) is None:
            found.fault(where, brief(image), "id, file_name, height and width")
        elif key in frames:
            found.fault(where, f"the id {key} is there twice", "an id of its own for each image")
        elif frame := _frame(where, image, videos, found):
            frames[key] = frame
    listed = {_key(image) for image in value["images"]}
    for row, annotation in enumerate(value["annotations"]):
        known = _key(annotation)
        where = f"{name}, annotation {row if known is None else known}"
        image_id = "" if known is None else str(annotation.get("image_id"))
        frame = frames.get(image_id)
        if known is None or image_id not in listed:
            found.fault(where, "no image of the file", "id and image_id of one of its images")
        elif frame is not None:
            _annotation(where, annotation, frame, categories, found)
    return found


def _key(image: Any) -> str | None:
    given = image.get("id") if isinstance(image, dict) else None
    return None if given is None or isinstance(given, bool) else str(given)


def _names(name: str, value: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Return the names of categories or videos by id."""
    rows = value.get(kind) or []
    names = {}
    for row in rows if isinstance(rows, list) else [rows]:
        about = row if isinstance(row, dict) else {}
        text = about.get("name", about.get("file_name"))
        if not isinstance(text, str) or "id" not in about:
            raise ImportsError(f"{name}: {kind} has {brief(row)}; expected objects of id and name")
        names[str(about["id"])] = text
    return names


def _frame(
    where: str, image: Mapping[str, Any], videos: Mapping[str, str], found: Found
) -> Item | None:
    """Return the frame that an image is, as an item without an object; None after a fault."""
    file = image.get("file_name")
    sides = [image.get("height"), image.get("width")]
    if not all(type(side) is int and side > 0 for side in sides):
        found.fault(where, f"height and width are {brief(sides)}", "pixels")
        return None
    size = (int(sides[0] or 0), int(sides[1] or 0))
    number = next((image[key] for key in _FRAMES if key in image), None)
    video = image.get("video_id")
    path = PurePosixPath(str(file or "").replace("\\", "/"))
    if number is not None and video is not None:
        if not is_whole(number) or number < 0:
            found.fault(where, f"its frame is {brief(number)}", "a whole number from 0")
            return None
        named = videos.get(str(video), str(video))
        return Item(where, named, "", "", {}, frame=int(number), size=size)
    if not isinstance(file, str) or not path.name:
        found.fault(where, f"file_name is {brief(file)}", "the name of a file")
        return None
    folder = "" if str(path.parent) == "." else str(path.parent)
    return Item(where, folder, "", "", {}, frame_name=path.name, size=size)


def _annotation(
    where: str,
    annotation: Mapping[str, Any],
    frame: Item,
    categories: Mapping[str, str],
    found: Found,
) -> None:
    """Add the items of an annotation."""
    about = annotation.get("attributes")
    of_track = {**(about if isinstance(about, dict) else {}), **annotation}
    number = next((of_track[key] for key in _TRACKS if of_track.get(key) is not None), None)
    track = f"annotation {annotation['id']}" if number is None else str(number)
    category = str(annotation.get("category_id"))
    if categories and category not in categories:
        found.fault(where, f"category_id is {category}", "the id of one of its categories")
        return
    if (
        annotation.get("iscrowd") in (1, True)
        and number is None
        and (not isinstance(annotation.get("segmentation"), dict))
    ):
        found.leave_out("crowd")
        return
    cells = _cells(where, annotation, frame.size or (0, 0), found)
    found.items += [
        Item(where, frame.video, track, categories.get(category, ""), each, frame.frame,
             frame.frame_name, frame.size)
        for each in cells
    ]  # fmt: skip


def _cells(
    where: str, annotation: Mapping[str, Any], size: tuple[int, int], found: Found
) -> list[Cells]:
    """Return the columns of an annotation, a row for each polygon; none after a fault."""
    shape = annotation.get("segmentation")
    if shape:
        fault = fault_of(shape, size)
        if fault:
            found.fault(where, fault.partition("; expected ")[0],
                        fault.partition("; expected ")[2] or "pixels of its image")  # fmt: skip
            return []
        if isinstance(shape, dict):
            try:
                return [{"prompt_type": "mask", "mask": mask_text(shape)}]
            except ValueError as error:
                found.fault(where, f"a mask {error}", MASK)
                return []
        return [polygon_cells(list(zip(p[::2], p[1::2], strict=True))) for p in shape]
    box = annotation.get("bbox")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(type(side) in (int, float) for side in box)
        or min(box[2:]) <= 0
    ):
        found.fault(where, f"bbox is {brief(box)}", "left, top, width and height in pixels")
        return []
    left, top, width, height = box
    return [box_cells(max(left, 0), max(top, 0), left + width, top + height)]
