"""Reader of images in a folder for each class, with or without a folder for each set."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from vit.data.decode import DataError, Encoded
from vit.data.layout import find_sets, seen_below, subfolders
from vit.data.reader import (
    CROPS,
    EXPECTED,
    Survey,
    Tracks,
    crops_of,
    fail,
    normal,
    reading,
    some,
)
from vit.data.walk import Listing, Seen, content, shown, suffixes, walk

Listings = dict[str, Listing]
"""What lies in each class folder of a set."""


def find_folder(root: Path, training: bool) -> "Folder":
    """List an image folder; its classes are the sorted names of the folders in train.

    Args:
        root: folder with a folder for each class, or with folders of sets that hold these.
        training: whether a classifier is trained on it: this needs two classes, with images each.

    Raises:
        DataError: a folder cannot be read, or the layout is not that of an image folder.
    """
    sets, notes, faults = find_sets(root)
    classes = {name: subfolders(folder) for name, folder in sets.items()}
    if training:
        _check_number(root, sets.get("train", root / "train"), classes.get("train", []))
    listings: dict[str, Listings] = {}
    places: Seen = {}
    for name, folder in sets.items():
        roots = {label: folder / label for label in classes[name]}
        listings[name], seen = walk(roots, dict.fromkeys([root, folder]))
        notes += _shared(places, seen)
        places |= seen
    names = _class_names(listings, training)
    for name, folder in sets.items():
        needs_images = training and name == "train"
        faults += _faults(folder, listings[name], names, needs_images)
        notes += _notes(folder, listings[name], needs_images)
    fail(faults, "folders of images that cannot be used")
    images = {
        name: {label: found.images for label, found in by_class.items() if found.images}
        for name, by_class in listings.items()
    }
    return Folder(names, sets, images, tuple(notes), _crops(root))


def _crops(root: Path) -> dict[str, Any] | None:
    """Return what an export of crops wrote beside the sets; None for other image folders."""
    path = root / f"{CROPS}.json"
    if not path.is_file():
        return None
    with reading(path):
        found = crops_of(path.read_bytes())
    cutting = None if found is None else found.get("crops")
    if not isinstance(cutting, dict):
        raise DataError(
            f"{path} is not what an export of crops writes; export them again, or delete the file"
        )
    return cutting


def _check_number(root: Path, train: Path, classes: list[str]) -> None:
    """Check that there are two classes to train on; the message says where some were seen."""
    if len(classes) >= 2:
        return
    what = f"only one class folder, {shown(classes[0])}" if classes else "no class folders"
    raise DataError(
        f"{shown(train)}: {what}; dataset imagefolder expects {EXPECTED['imagefolder']}, and at"
        f" least two classes{seen_below(root)}"
    )


def _class_names(listings: dict[str, Listings], training: bool) -> tuple[str, ...]:
    """Return the classes: the folders of train; to measure, those of any set that hold an image."""
    if training:
        return tuple(sorted(listings["train"]))
    found = {
        normal(label): label
        for name in reversed(listings)  # the names in train win
        for label, listing in listings[name].items()
        if listing.images
    }
    return tuple(sorted(found.values()))


def _faults(
    folder: Path, listings: Listings, names: Iterable[str], needs_images: bool
) -> Iterator[str]:
    """Yield a line on each class folder of a set that cannot be used."""
    here, known = content(folder), {normal(name) for name in names}
    yield from (f"{shown(folder / name)}: {why}" for name, why in here.lost.items())
    alike = Counter(map(normal, listings))
    for label, listing in listings.items():
        place = shown(folder / label)
        yield from (f"{shown(path)}: {why}" for path, why in listing.lost.items())
        if not _is_text(label):
            yield f"{str(folder / label)!a}: a name that is not UTF-8; rename it"
        elif alike[normal(label)] > 1:
            yield f"{place}: another folder's name looks the same; rename one, or join them"
        elif normal(label) not in known and listing.images:
            yield f"{place}: not a class of train"
        elif needs_images and not listing.images and not listing.lost:
            others = f" ({suffixes(listing.files)})" if listing.files else ""
            yield "; ".join([f"{place}: no image in it{others}", *listing.links])


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _notes(folder: Path, listings: Listings, needs_images: bool) -> Iterator[str]:
    """Yield lines on what is not used in a set."""
    here = content(folder)
    others = list(here.files)
    system = list(here.system)
    for label, listing in listings.items():
        others += listing.others
        system += listing.system
        if not (listing.images or needs_images):
            yield f"{shown(folder / label)}: no image in it"
    if others:
        yield (
            f"{shown(folder)}: {len(others):,} files that are not images in a class folder are not"
            f" used ({suffixes(others)})"
        )
    if system:
        names = ", ".join(sorted(set(system)))
        yield (
            f"{shown(folder)}: {len(system):,} folders of file servers or systems are not used"
            f" ({names})"
        )
    yield from some([line for listing in listings.values() for line in listing.links])


def _shared(earlier: Seen, seen: Seen) -> Iterator[str]:
    """Yield lines on folders that two sets share."""
    shared = [
        f"{shown(seen[key])} is the same folder as {shown(earlier[key])}: both sets have its images"
        for key in seen
        if key in earlier
    ]
    yield from some(shared)


@dataclass(frozen=True)
class Folder:
    """Images in a folder for each class, as in torchvision's ImageFolder."""

    classes: tuple[str, ...]
    roots: dict[str, Path]
    listing: dict[str, dict[str, list[str]]]
    """Image files by set and class folder."""
    notes: tuple[str, ...] = ()
    crops: dict[str, Any] | None = None
    """How images were cut out of videos; these lie in a folder for each video and object."""

    @property
    def threads(self) -> int:
        """Number of threads that decode."""
        return os.cpu_count() or 1  # Pillow frees Python's lock; 1.7 times faster on two cores

    def files(self) -> Iterable[Path]:
        """Return the images, in order."""
        return (path for name in self.listing for path in self._paths(name))

    def survey(self) -> Survey:
        """Return the labels, which are known from the listing."""
        label = {normal(name): index for index, name in enumerate(self.classes)}
        parts = {
            name: [
                (shown(self.roots[name] / key), np.full(len(files), label[normal(key)]))
                for key, files in by_class.items()
            ]
            or [(shown(self.roots[name]), np.zeros(0, np.int64))]
            for name, by_class in self.listing.items()
        }
        tracks = None if self.crops is None else self._tracks()
        return Survey(self.classes, parts, self.notes, tracks=tracks, crops=self.crops)

    def _tracks(self) -> Tracks:
        """Number the tracks of crops, from `class/VIDEO/OBJECT/FRAME.jpg`."""
        known: dict[tuple[str, str], int] = {}
        numbers = {}
        for name in self.listing:
            names = [path.parts[-3:-1] for path in self._paths(name)]
            tracks = [(unquote(video), number) for video, number in names]
            found = [known.setdefault(track, len(known)) for track in tracks]
            numbers[name] = np.array(found, np.int64)
        return Tracks(tuple(known), numbers)

    def images(self, name: str) -> Iterator[tuple[str, Encoded]]:
        """Yield the place and the path of each image of a set."""
        return ((shown(path), path) for path in self._paths(name))

    def _paths(self, name: str) -> Iterator[Path]:
        return map(Path, itertools.chain.from_iterable(self.listing[name].values()))
