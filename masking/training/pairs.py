"""Images with masks of their objects, from local files: Parquet, COCO JSON or DAVIS folders.

`survey` reads only the structure and finds every fault that shows in it; `pairs[i]` decodes one
image and its masks. The format of a path is recognised by what is there:

    FILE.parquet, or a folder of them   columns `image` (bytes of an image file), `masks` (bytes of
    (or of a folder `data` of them)     a PNG label map: 0 no object, 1.. one number an object),
                                        and optionally `ignore` (bytes of a PNG, not 0 where a
                                        pixel is void), `kind` ("regions": see `Pair.regions`),
                                        `key` (a name for messages); instead of bytes Hugging
                                        Face's struct of `bytes` and `path`
    FILE.json, or a folder with one     COCO (cocodataset.org, "Format data"): polygons and RLE,
                                        crowds are void; images beside the file or in a folder
                                        beside or above it
    a folder                            DAVIS (davischallenge.org), YouTube-VOS: JPEGImages and
                                        Annotations, palette PNG, void where it is 255

Shapes: K objects of an image, H x W its pixels. Images are RGB, origin top left, EXIF orientation
applied. Rows count from 0, in messages too.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from masking.images.arrays import Bools
from masking.images.decode import (
    EXIF_CURE,
    ImageError,
    nearest,
    read_image,
    read_labels,
)
from masking.images.masks import refuse_soft_edges
from masking.training.coco import survey_coco
from masking.training.pair import (
    Entry,
    NothingToLearnError,
    Pair,
    Survey,
    masks_of,
    vanished,
)
from masking.training.parquet import UNREADABLE, RowGroups, splits, survey_parquet

__all__ = [
    "ImageError",
    "Inspection",
    "NothingToLearnError",
    "Pair",
    "Pairs",
    "PairsConfig",
    "inspect",
    "survey",
]

_VOID = 255  # in a palette PNG, as in PASCAL VOC
_EXPECTED = (
    "Parquet files (columns image and masks), a COCO .json file, "
    "or a folder with JPEGImages and Annotations"
)


@dataclass(frozen=True)
class PairsConfig:
    """How images and masks on disk are shrunk and which objects are used."""

    longest: int = 512
    """Length, in pixels, of the longer side to which larger images are shrunk; 0: no image is
    shrunk."""
    smallest: float = 0.003
    """Smallest share of its image that an object may cover; smaller objects are left out."""
    largest: float = 0.95
    """Largest share of its image that an object may cover; larger objects are left out."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.longest != 0 and self.longest < 32:
            raise ValueError(f"longest is {self.longest}; expected 0 or at least 32 pixels")
        if not 0 <= self.smallest < self.largest <= 1:
            raise ValueError(
                f"smallest is {self.smallest} and largest {self.largest}; expected shares of the "
                "image with 0 <= smallest < largest <= 1"
            )


@dataclass(frozen=True)
class Pairs:
    """Image-mask pairs on disk; indexing decodes, in any thread or process.

    A pickle of them holds paths, not pixels.
    """

    entries: tuple[Entry, ...]
    """A pair each."""
    config: PairsConfig
    """How they are decoded."""
    notes: tuple[str, ...] = ()
    """Lines for a person about what was left out."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Pair:
        """Decode a pair.

        Raises:
            ImageError: The image or its masks do not decode, or differ in size.
            NothingToLearnError: The image shows no object between `smallest` and `largest`.
        """
        entry = self.entries[index]
        try:
            pair = entry.load(self.config.longest)
            masks = _of_wanted_size(pair.masks, self.config)
        except ImageError as error:
            named = (f"{entry.name}: {fault}" for fault in error.faults)
            raise type(error)(*named) from error
        except UNREADABLE as error:
            reason = str(error) or type(error).__name__
            raise ImageError(f"{entry.name}: cannot be read: {reason}") from error
        return replace(pair, masks=masks, ignore=pair.ignore & ~masks.any(axis=0))

    def subset(self, rows: Iterable[int]) -> "Pairs":
        """Return the pairs at `rows`, in that order."""
        return replace(self, entries=tuple(self.entries[row] for row in rows))


@dataclass(frozen=True)
class Inspection:
    """What decoding all pairs showed."""

    faults: dict[int, ImageError]
    """Why some cannot be used, by index."""
    notes: tuple[str, ...]
    """Lines for a person about the others."""


def inspect(pairs: Pairs, threads: int = 1) -> Inspection:
    """Decode all pairs."""

    def look(row: int) -> ImageError | bool:
        try:
            return pairs[row].turned
        except ImageError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(look, range(len(pairs))))
    turned, notes = found.count(True), list[str]()
    if turned:
        notes.append(
            f"{turned:,} images were turned as their EXIF orientation says, which is how they are"
            " displayed: their masks must fit that. Tools that ignore EXIF draw masks on the stored"
            f" pixels. {EXIF_CURE}"
        )
    faults = {row: each for row, each in enumerate(found) if isinstance(each, ImageError)}
    return Inspection(faults, tuple(notes))


def _of_wanted_size(masks: Bools, config: PairsConfig) -> Bools:
    """Return the masks whose objects have a size that is wanted; raises ImageError for none."""
    areas = np.array([np.count_nonzero(mask) / mask.size for mask in masks])
    kept = (areas > 0) & (areas >= config.smallest) & (areas <= config.largest)
    if not len(masks):
        raise ImageError("no object in the masks; label it, or leave the image out")
    if not areas.any():
        raise vanished()
    if not kept.any():
        raise NothingToLearnError(
            f"none of its {len(masks)} objects covers between {config.smallest:.1%} and "
            f"{config.largest:.0%} of the image; leave it out, or change smallest and largest"
        )
    return masks[kept]


def survey(paths: Sequence[Path], config: PairsConfig) -> Pairs:
    """Index the pairs at `paths` without decoding any.

    Args:
        paths: files or folders, as the head of this file says.
        config: how they are decoded later.

    Raises:
        ImageError: All faults of the structure: paths, columns, missing values, images that are
            not there, malformed annotations.
    """
    result, groups = Survey(), RowGroups()
    for path in paths:
        _survey_path(path, result, groups)
    if not paths:
        result.faults.append(f"no path of image-mask pairs; expected {_EXPECTED}")
    elif not result.entries and not result.faults:
        result.faults.append(f"{', '.join(map(str, paths))}: no image shows an object")
        result.faults += result.notes  # they say why
    if result.faults:
        raise ImageError(*result.faults)
    return Pairs(tuple(result.entries), config, tuple(result.notes))


def _survey_path(path: Path, result: Survey, groups: RowGroups) -> None:
    """Add the pairs of a file or folder, whose format is recognised by what is there."""
    try:
        files = sorted(_visible(path.iterdir())) if path.is_dir() else [path]
        inner = path / "data"  # where Hugging Face has the files of a data set
        if not _ending(files, ".parquet") and inner.is_dir():
            files += _ending(sorted(_visible(inner.iterdir())), ".parquet")
        is_davis = (path / "JPEGImages").is_dir() and (path / "Annotations").is_dir()
        exists = path.exists()
    except OSError as error:
        result.faults.append(f"{path}: cannot be read: {error.strerror or error}")
        return
    parquet, jsons = _ending(files, ".parquet"), _ending(files, ".json")
    if not exists:
        result.faults.append(f"{path}: no such file or folder; expected {_EXPECTED}")
    elif len(several := splits(parquet)) > 1:
        result.faults.append(
            f"{path}: holds the splits {', '.join(several)}; name the files of one, such as"
            f" {parquet[0].parent}/{several[-1]}-*.parquet"
        )
    elif parquet:
        for file in parquet:
            survey_parquet(file, result, groups)
    elif is_davis:
        _survey_davis(path, result)
    elif len(jsons) == 1:
        survey_coco(jsons[0], result)
    elif jsons:
        result.faults.append(f"{path}: holds {len(jsons)} .json files; name the one to be used")
    else:
        result.faults.append(f"{path}: holds no image-mask pairs; expected {_EXPECTED}")


def _ending(files: Iterable[Path], end: str) -> list[Path]:
    return [file for file in files if file.suffix.lower() == end]


@dataclass(frozen=True)
class _DavisFrame:
    """A frame of a DAVIS folder."""

    name: str
    image: Path
    masks: Path

    def load(self, longest: int) -> Pair:
        image, size, orientation = read_image(self.image, longest)
        labels, palette = read_labels(self.masks, "the annotation", size, orientation)
        void = (labels == _VOID) & palette
        labels = np.where(void, 0, labels)
        refuse_soft_edges(labels, "the annotation")
        void = nearest(void, image.shape[:2])
        masks = masks_of(nearest(labels, image.shape[:2]))
        if not len(masks):
            raise NothingToLearnError("no object on this frame")
        return Pair(image, masks, void, self.name, regions=False, turned=orientation > 1)


def _visible(files: Iterable[Path]) -> Iterator[Path]:
    """Leave out ._x.png and the like, which macOS writes."""
    return (file for file in files if not file.name.startswith("."))


def _survey_davis(path: Path, result: Survey) -> None:
    """Add every annotation with its image; 480p, where there are several resolutions."""
    level = Path("480p") if (path / "Annotations" / "480p").is_dir() else Path()
    annotations = path / "Annotations" / level
    every = _visible(annotations.rglob("*"))
    files = sorted(file for file in every if file.suffix.lower() == ".png")
    for file in files:
        stem = path / "JPEGImages" / level / file.relative_to(annotations)
        endings = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
        images = [stem.with_suffix(ending) for ending in endings]
        there = [image for image in images if image.is_file()]
        if there:
            result.entries.append(_DavisFrame(str(file), there[0], file))
        else:
            result.faults.append(f"{file}: its image {images[0]} does not exist")
    if not files:
        result.faults.append(f"{annotations}: no .png files")
