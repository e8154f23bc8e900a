"""COCO's annotations (cocodataset.org, "Format data"): polygons, run lengths, crowds.

Sizes and shapes are (H, W), the pixels of an image.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from masking.images.arrays import Bools
from masking.images.decode import ImageError, nearest, read_image, shown
from masking.images.masks import decode_rle
from masking.training.pair import Pair, Survey

_FINE = 4
"""Factor by which polygons are drawn larger: fillPoly fills every pixel that an edge touches."""


class _Listed(NamedTuple):
    """What the JSON file says of an image."""

    file_name: str
    height: int
    width: int


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
        image, size, _ = read_image(self.path, longest)
        if size != self.size:
            raise ImageError(
                f"{self.path} has {shown(size)} pixels, the JSON file says {shown(self.size)}"
            )
        shape = image.shape[:2]
        masks = [_draw(segmentation, size, shape) for segmentation in self.objects]
        crowds = [_draw(segmentation, size, shape) for segmentation in self.crowds]
        ignore = np.any(crowds, axis=0) if crowds else np.zeros(shape, dtype=np.bool_)
        return Pair(image, np.stack(masks), ignore, self.name, regions=False)


def _draw(segmentation: Any, size: tuple[int, int], shape: tuple[int, int]) -> Bools:
    """Draw the polygons or RLE of an image of `size` as a mask of `shape`."""
    if isinstance(segmentation, dict):
        return nearest(decode_rle(segmentation["counts"], size), shape)
    scale = np.array([shape[1] / size[1], shape[0] / size[0]])
    polygons = [np.asarray(p, dtype=np.float64).reshape(-1, 2) * scale for p in segmentation]
    corners = np.concatenate(polygons)
    left, top = np.clip(np.floor(corners.min(axis=0)), 0, shape[::-1]).astype(int).tolist()
    right, bottom = np.clip(np.ceil(corners.max(axis=0)), 0, shape[::-1]).astype(int).tolist()
    mask = np.zeros(shape, dtype=np.bool_)
    if left < right and top < bottom:
        fine = np.zeros(((bottom - top) * _FINE, (right - left) * _FINE), dtype=np.uint8)
        for polygon in polygons:  # one at a time: fillPoly leaves out where two overlap
            places = np.rint((polygon - (left, top)) * _FINE - 0.5).astype(np.int32)
            cv2.fillPoly(fine, [places], 255)
        share = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
        mask[top:bottom, left:right] = share > 127
    return mask


def survey_coco(path: Path, result: Survey) -> None:
    """Add the images of a COCO file that show an object, and the faults of their annotations."""
    try:
        content = json.loads(path.read_bytes())
        images = {
            image["id"]: _Listed(
                str(image["file_name"] or image["id"]), int(image["height"]), int(image["width"])
            )
            for image in content["images"]
        }
        annotations: defaultdict[Any, list[Any]] = defaultdict(list)
        for annotation in content["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
    except (ValueError, KeyError, TypeError) as error:
        result.faults.append(f"{path}: not COCO JSON of images and annotations ({error!r})")
        return
    strays = sorted(annotations.keys() - images.keys(), key=str)
    result.faults += [f"{path}: annotations of image {i}, which is not listed" for i in strays]
    folder = _images_folder(path, [image.file_name for image in images.values()])
    boxes = sum(not one.get("segmentation") for some in annotations.values() for one in some)
    if boxes:
        result.notes.append(f"{path}: {boxes:,} annotations have no segmentation: left out")
    before = len(result.entries)
    for number, image in images.items():
        _survey_image(path, folder, image, annotations[number], result)
    empty = len(images) + before - len(result.entries)
    if empty:
        result.notes.append(f"{path}: {empty:,} of {len(images):,} images show no object: left out")


def _survey_image(
    path: Path, folder: Path, image: _Listed, annotations: list[Any], result: Survey
) -> None:
    name, file = f"{path}, image {image.file_name}", folder / image.file_name
    size = (image.height, image.width)
    annotations = [one for one in annotations if one.get("segmentation")]  # others are boxes
    for annotation in annotations:
        if fault := _fault(annotation["segmentation"], size):
            result.faults.append(f"{name}: annotation {annotation.get('id')} {fault}")
    objects, crowds = (
        tuple(a["segmentation"] for a in annotations if bool(a.get("iscrowd")) == crowd)
        for crowd in (False, True)
    )
    if objects:
        result.entries.append(_CocoImage(name, file, size, objects, crowds))


def _fault(segmentation: Any, size: tuple[int, int]) -> str | None:
    """Return what is wrong with a segmentation, if anything is."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != list(size) or "counts" not in segmentation:
            return f"is an RLE of size {segmentation.get('size')}; expected {list(size)}"
    elif not isinstance(segmentation, list):
        return f"has the segmentation {segmentation!r}; expected polygons or RLE"
    elif not all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in segmentation):
        return "has a polygon that is not a list of x and y of at least three corners"
    return None


def _images_folder(path: Path, names: Sequence[str]) -> Path:
    """Find the folder that has the images of a COCO file: beside it, or else beside its folder.

    If there are several, it is the one with most of the images; of equals the one whose name is in
    the file's name (instances_val2017.json, val2017), or the first.
    """
    few = names[:: max(1, len(names) // 20)]

    def fit(folder: Path) -> tuple[int, bool]:
        return sum(_is(Path.is_file, folder / name) for name in few), folder.name in path.stem

    for top in (path.parent, path.parent.parent):
        try:
            beside = sorted(p for p in top.iterdir() if _is(Path.is_dir, p))
        except PermissionError:
            beside = []
        best = max([top, *beside], key=fit)
        if fit(best)[0] > 0:
            return best
    return path.parent


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """Return `kind(path)`; False where permission to read is missing."""
    try:
        return kind(path)
    except PermissionError:
        return False
