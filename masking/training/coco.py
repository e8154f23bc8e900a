"""COCO's annotations (cocodataset.org, "Format data"): polygons, run lengths, crowds.

Sizes and shapes are (H, W), the pixels of an image.
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from masking.images.decode import ImageError, exif_hint, read_image, shown
from masking.images.lfs import POINTER, is_pointer
from masking.training.coco_images import NotFoundError, find_images
from masking.training.pair import Pair, Survey, check_room
from masking.training.segmentation import brief, draw, fault_of, is_whole

_CROWD = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
"""Meanings of `iscrowd`, as text in lower case."""


class _Listed(NamedTuple):
    """What the JSON file says of an image."""

    file_name: str
    size: tuple[int, int]


class _Annotation(NamedTuple):
    """What the JSON file says of an object or a crowd."""

    segmentation: Any
    is_crowd: bool


@dataclass(frozen=True)
class _CocoImage:
    """An image of a COCO file that shows an object."""

    name: str
    path: Path
    size: tuple[int, int]
    """(H, W) that the JSON file states."""
    objects: tuple[Any, ...]
    """Segmentations: lists of polygons, or RLE."""
    crowds: tuple[Any, ...]
    """Segmentations of crowds, which are ignored."""

    def load(self, longest: int) -> Pair:
        if not self.path.is_file():
            raise ImageError(f"the image {self.path} does not exist")
        image, size, orientation = read_image(self.path, longest)
        if size != self.size:
            raise ImageError(
                f"{self.path} has {shown(size)} pixels, the JSON file says {shown(self.size)}"
                + exif_hint(orientation, size, self.size)
            )
        shape = image.shape[:2]
        check_room(len(self.objects), shape)
        masks = np.stack([draw(segmentation, size, shape) for segmentation in self.objects])
        ignore = np.zeros(shape, dtype=np.bool_)
        for segmentation in self.crowds:
            ignore |= draw(segmentation, size, shape)
        turned = orientation > 1
        return Pair(image, masks, ignore, self.name, regions=False, turned=turned)


def survey_coco(path: Path, result: Survey) -> None:
    """Add the images of a COCO file that show an object, and the faults of their annotations."""
    try:
        text = path.read_bytes()
        if is_pointer(text):
            result.faults.append(f"{path}: {POINTER}")
            return
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        result.faults.append(f"{path}: not a JSON file that can be read: {error}")
        return
    for name in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            what = f"has {brief(list(content))}" if isinstance(content, dict) else brief(content)
            result.faults.append(
                f"{path}: not COCO JSON of images and annotations: no list of {name}; it {what}"
            )
            return
    images = _images(path, content["images"], result)
    annotations = _annotations(path, content["annotations"], images, result)
    _add_entries(path, {key: x for key, x in images.items() if x}, annotations, result)


def _images(path: Path, rows: list[Any], result: Survey) -> dict[str, _Listed | None]:
    """Return the images by the keys of their ids; None for one that has a fault, which is added."""
    images: dict[str, _Listed | None] = {}
    again = 0
    for row, image in enumerate(rows):
        try:
            key, listed = _listed(image)
        except ValueError as error:
            result.faults.append(f"{path}, images[{row}]: {error}")
            if isinstance(image, dict) and (bad := _key(image.get("id"))) is not None:
                images[bad] = None
            continue
        known = images.setdefault(key, listed)
        if known is not None and known != listed:
            images[key] = None
            result.faults.append(
                f"{path}: the image id {key} is given twice, to {known.file_name} and to"
                f" {listed.file_name}, so their annotations cannot be told apart. Give every image"
                " an id of its own, and its annotations the same image_id: renumber one set"
                " before it is joined with another"
            )
        again += known is not listed and known == listed
    files = Counter(image.file_name for image in images.values() if image)
    if several := sum(count > 1 for count in files.values()):
        result.notes.append(
            f"{path}: {several:,} files have more than one id; objects of one id are background of"
            " the others"
        )
    if again:
        result.notes.append(f"{path}: {again:,} images are listed again, which changes nothing")
    return images


def _listed(image: Any) -> tuple[str, _Listed]:
    """Return the key of an image's id, and what else is known of it; raises ValueError."""
    if not isinstance(image, dict):
        raise ValueError(f"{brief(image)}; expected id, file_name, height and width")
    name = image.get("file_name")
    named = f"{brief(name)}, " if name else ""
    for field in ("id", "file_name", "height", "width"):
        if image.get(field) is None:
            raise ValueError(f"{named}id {brief(image.get('id'))}: no {field}")
    if (key := _key(image["id"])) is None:
        raise ValueError(f"{named}id {brief(image['id'])}: expected a number or text as its id")
    if not isinstance(name, str) or not _is_path(name):
        raise ValueError(f"id {key}: file_name is {brief(name)}; expected the name of a file")
    sides = []
    for field in ("height", "width"):
        side = image[field]
        if isinstance(side, str) and side.strip().isdecimal():
            side = int(side)
        if isinstance(side, bool) or not is_whole(side) or side < 1:
            raise ValueError(f"{name}, id {key}: {field} is {brief(side)}; expected pixels")
        sides.append(int(side))
    return key, _Listed(name, (sides[0], sides[1]))


def _is_path(name: str) -> bool:
    """Return whether a text may name a file on disk."""
    try:
        return bool(name) and b"\0" not in name.encode()
    except UnicodeEncodeError:
        return False


def _key(value: Any) -> str | None:
    """Return an id as text: some tools write 7, others "7" or 7.0. None: it is no id."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return str(int(value)) if is_whole(value) else str(value)


def _annotations(
    path: Path, rows: list[Any], images: dict[str, _Listed | None], result: Survey
) -> dict[str, list[_Annotation]]:
    """Return the annotations that have a segmentation by the keys of their images' ids."""
    found: defaultdict[str, list[_Annotation]] = defaultdict(list)
    faults, strays, boxes, crowds = list[str](), dict[str, Any](), 0, 0
    for row, annotation in enumerate(rows):
        if not isinstance(annotation, dict) or (key := _key(annotation.get("image_id"))) is None:
            faults.append(f"{path}, annotations[{row}]: no image_id; it is {brief(annotation)}")
        elif key not in images:
            strays[key] = annotation["image_id"]
        elif not annotation.get("segmentation"):
            boxes += 1
        elif image := images[key]:
            one, fault = _annotation(annotation, image.size)
            if fault:
                number = annotation.get("id")
                named = f"annotations[{row}]" if number is None else f"annotation {brief(number)}"
                faults.append(f"{path}, image {image.file_name}: {named} {fault}")
            found[key].append(one)
            crowds += one.is_crowd
    result.faults += [
        f"{path}: annotations of image {brief(stray)}, which is not listed"
        for _, stray in sorted(strays.items())
    ]
    result.faults += faults
    if boxes:
        result.notes.append(f"{path}: {boxes:,} annotations have no segmentation: left out")
    if crowds:
        result.notes.append(
            f"{path}: {crowds:,} of {sum(map(len, found.values())):,} segmentations are crowds"
            " (iscrowd is 1): their pixels are void, they are no objects. CVAT writes iscrowd 1 for"
            " every mask drawn with a brush; if these are single objects, set it to 0 in the file"
        )
    return found


def _annotation(annotation: dict[str, Any], size: tuple[int, int]) -> tuple[_Annotation, str]:
    """Return an annotation of an image of `size`, and what is wrong with it; "" if nothing is."""
    given = annotation.get("iscrowd")
    is_crowd = _CROWD.get(str(given or 0).strip().lower()) if _is_plain(given) else None
    segmentation = annotation["segmentation"]
    fault = fault_of(segmentation, size) or ""
    if not fault and is_crowd is None:
        fault = f"has the iscrowd {brief(given)}; expected 0 or 1"
    return _Annotation(segmentation, bool(is_crowd)), fault


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _add_entries(
    path: Path,
    images: dict[str, _Listed],
    annotations: dict[str, list[_Annotation]],
    result: Survey,
) -> None:
    """Add the images that show an object, with the files that have them."""
    objects = {
        key: some for key, some in annotations.items() if not all(one.is_crowd for one in some)
    }
    if objects:
        try:
            place = find_images(path, [images[key].file_name for key in images if key in objects])
        except NotFoundError as error:
            result.faults.append(str(error))
            return
    for key, image in images.items():
        if some := objects.get(key):
            entry = _CocoImage(
                f"{path}, image {image.file_name}",
                place.file(image.file_name),
                image.size,
                tuple(one.segmentation for one in some if not one.is_crowd),
                tuple(one.segmentation for one in some if one.is_crowd),
            )
            result.entries.append(entry)
    if empty := len(images) - len(objects):
        result.notes.append(f"{path}: {empty:,} of {len(images):,} images show no object: left out")
