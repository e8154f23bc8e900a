"""Where the images of a COCO file are: beside it or above it, in one folder of a few layouts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FEW = (20, 2000)
"""Names that are looked for in every folder, evenly spread over all; more if none is there."""
MOST = 1000
"""Folders of a level that are looked into."""
_SHOWN = 6
"""Folders that a message lists."""


class NotFoundError(ValueError):
    """No image of a COCO file is there; the message says where they were looked for."""


@dataclass(frozen=True)
class Images:
    """The folder of the images of a COCO file, and how their names are read."""

    folder: Path
    slashes: bool
    """Whether backslashes in the names separate folders, as on Windows."""
    prefix: str
    """What all names begin with, folders that are left out."""

    def file(self, name: str) -> Path:
        """Return the file of an image from its `file_name`."""
        name = name.replace("\\", "/") if self.slashes else name
        return self.folder / name.removeprefix(self.prefix)


def find_images(path: Path, names: Sequence[str]) -> Images:
    """Find the folder that has the images of a COCO file.

    It is the one of the file, one in it, the one above, or one in that; or else a folder in one of
    these, such as `images/default` beside `annotations/`. If there are several, it is the one with
    most of the images; of equals the one whose name is in the file's name (instances_val2017.json,
    val2017), or the first. Backslashes in names count as slashes, and folders that all names begin
    with are left out, if the images are not found otherwise.

    Args:
        path: of the COCO file.
        names: `file_name` of each image, at least one.

    Raises:
        NotFoundError: none of the images that were looked for is there.
    """
    looked: dict[Path, None] = {}
    for most in FEW:
        few = names[:: max(1, len(names) // most)]
        for slashes, prefix in _readings(names):
            for folders in _levels(path.absolute().parent):
                looked |= dict.fromkeys(folders)
                found = [Images(folder, slashes, prefix) for folder in folders]

                def fit(images: Images, few: Sequence[str] = few) -> tuple[int, bool]:
                    there = sum(_is(Path.is_file, images.file(name)) for name in few)
                    return there, images.folder.name in path.stem

                best = max(found, key=fit)
                if fit(best)[0] > 0:
                    return best
    shown = ", ".join(map(str, list(looked)[:_SHOWN]))
    more = f" and {len(looked) - _SHOWN:,} more" if len(looked) > _SHOWN else ""
    raise NotFoundError(
        f"{path}: no image of it is there, such as {names[0]}. They were looked for in {shown}"
        f"{more}; expected the images beside the file or above it, at most two folders deep"
    )


def _readings(names: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """Yield whether backslashes separate folders and what is left out of names, likely ones first.

    What is left out has all folders that the names have in common, so that they still differ.
    """
    yield False, ""
    if any("\\" in name for name in names):
        yield True, ""
    plain = [name.replace("\\", "/") for name in names]
    shortest, longest = min(plain), max(plain)  # all others lie between
    same = next((i for i, c in enumerate(shortest) if longest[i : i + 1] != c), len(shortest))
    prefix = shortest[: shortest.rfind("/", 0, same) + 1]
    if prefix:
        yield True, prefix


def _levels(folder: Path) -> Iterator[list[Path]]:
    """Yield folders that may have the images, likely ones first."""
    tops = [folder] if folder == folder.parent else [folder, folder.parent]
    for top in tops:
        yield [top, *_folders(top)]
    for top in tops:
        deeper = [each for beside in _folders(top) for each in _folders(beside)][:MOST]
        if deeper:
            yield deeper


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, in order; none where permission to read is missing."""
    try:
        return sorted(path for path in folder.iterdir() if _is(Path.is_dir, path))[:MOST]
    except OSError:
        return []


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """Return `kind(path)`; False where permission is missing or the name is too long."""
    try:
        return kind(path)
    except OSError:
        return False
