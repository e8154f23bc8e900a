"""Which folders of an image folder are sets, by their names and by what lies in them."""

import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from vit.data.decode import DataError
from vit.data.reader import SPLITS, some
from vit.data.walk import Content, content, is_image, shown, suffixes

_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Words that name a set, and which."""
_PLAIN = ("set", "sets", "data", "images", "imgs", "split", "of")
"""Words that may stand beside or behind a set's word: `training_set`, `trainset`, `dev-0-of-1`."""
_USUAL = ("valid", "validation")
"""Names of the validation set that need no note."""
_DEEP = 3
"""Levels below the given folder that are searched for class folders, for a message."""
_MOST = 500
"""Folders that this search lists."""


def set_of(name: str) -> str | None:
    """Return the set that a name stands for; None if it names none, or several."""
    words = {_WORDS[word] for word in _words(name) if word in _WORDS}
    return words.pop() if len(words) == 1 else None


def _is_plain(name: str) -> bool:
    """Return whether a name says only which set it is, as `training_set` does, not `seg_train`."""
    return all(word in _WORDS or word in _PLAIN for word in _words(name))


def _words(name: str) -> list[str]:
    """Split a name into words of lower-case letters, without `set` and the like behind them."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return [re.sub(rf"(?<=.)({'|'.join(_PLAIN)})$", "", word) for word in words]


def list_folder(folder: Path) -> Content:
    """List a folder; raises DataError if it cannot be read."""
    try:
        return content(folder)
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be read: {error.strerror}") from error


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted; raises DataError."""
    return list(list_folder(folder).folders)


def find_sets(root: Path) -> tuple[dict[str, Path], list[str], list[str]]:
    """Find the folders of the sets; `root` itself is train if it holds none.

    A set may have another name than train, val or test if it holds class folders and no images of
    its own, as a folder of class folders does and a class folder does not.

    Returns:
        Folders by set; lines on what is read and not used; and lines on what cannot be read.

    Raises:
        DataError: a folder cannot be read, or several may be the same set.
    """
    here = list_folder(root)
    faults = [f"{shown(root / name)}: {why}" for name, why in here.lost.items()]
    names = {name: name for name in SPLITS if name in here.folders}
    names |= _named_otherwise(root, [name for name in here.folders if name not in names], names)
    if not names:
        return {"train": root}, _alike(root, here), []  # the set's own faults name what is lost
    sets, notes = {}, []
    for name in SPLITS:
        if name not in names:
            continue
        sets[name] = _unwrapped(root / names[name])
        if sets[name].name not in (name, *_USUAL) or sets[name].parent != root:
            notes.append(f"{shown(sets[name])}: read as {name}")
    for name in ("val", "test"):  # images whose labels are not known, as competitions give them
        if name in sets and len(sets) > 1 and not subfolders(sets[name]):
            inside = suffixes(list_folder(sets[name]).files) or "empty"
            notes.append(f"{shown(sets[name])}: no class folders ({inside}); it is not used")
            del sets[name]
    notes += [
        f"{shown(root / name)}: neither train, val nor test; it is not used"
        for name in here.folders
        if name not in names.values()
    ]
    return sets, notes, faults


def _named_otherwise(root: Path, folders: list[str], exact: dict[str, str]) -> dict[str, str]:
    """Find sets with other names than those of `exact`; none if they may be classes."""
    candidates: dict[str, list[str]] = {}
    for name in folders:
        if (found := set_of(name)) and found not in exact:
            candidates.setdefault(found, []).append(name)
    if exact:  # another folder beside a set is one if its name says only that
        candidates = {key: list(filter(_is_plain, names)) for key, names in candidates.items()}
    elif train := [name for name in candidates.pop("train", []) if _holds_classes(root / name)]:
        if not candidates and not any(map(_is_plain, train)):
            return {}  # one class of the root may be `train_station`
        candidates["train"] = train
    elif not all(
        set_of(name) and _is_plain(name) and _holds_classes(root / name) for name in folders
    ):
        return {}
    chosen = {}
    for key, names in candidates.items():
        usual = [name for name in _USUAL if name in names]
        if usual or len(names) == 1:
            chosen[key] = (usual or names)[0]
        elif names and not exact:
            listed = ", ".join(shown(root / name) for name in names)
            raise DataError(f"{listed}: each may be the {key} set; rename the right one to {key}")
    return chosen


def _holds_classes(folder: Path) -> bool:
    """Return whether there are folders and no images directly in a folder."""
    here = list_folder(folder)
    return bool(here.folders) and not any(map(is_image, here.files))


def _unwrapped(folder: Path) -> Path:
    """Return the folder inside a set's folder that has its name, as archives are unpacked."""
    here = list_folder(folder)
    inner = next(iter(here.folders), "")
    if len(here.folders) > 1 or any(map(is_image, here.files)) or set_of(inner) is None:
        return folder
    return _unwrapped(folder / inner) if set_of(inner) == set_of(folder.name) else folder


def _alike(root: Path, here: Content) -> list[str]:
    """Return a note if all class folders hold no images but folders of the same names."""
    if len(here.folders) < 2 or not all(_holds_classes(root / name) for name in here.folders):
        return []
    inside = [set(subfolders(root / name)) for name in here.folders]
    if len(shared := sorted(set.intersection(*inside))) < 2:
        return []
    return [
        f"{shown(root)}: {_joined(here.folders)} are taken for the classes, but each has no images"
        f" of its own and the folders {_joined(shared)}; if these are the classes, give one of the"
        " folders, or rename them to train, val and test"
    ]


def seen_below(root: Path) -> str:
    """Say where below `root` class folders are, for a message; empty if nowhere near."""
    waiting = deque([(root, 0)])
    for _ in range(_MOST):
        if not waiting:
            break
        folder, depth = waiting.popleft()
        try:
            here = content(folder)
            classes = [
                name for name in here.folders if any(map(is_image, content(folder / name).files))
            ]
        except OSError:
            continue  # this only adds to the message of another fault
        if len(classes) >= 2:
            place = folder.parent if depth > 1 and set_of(folder.name) else folder
            return f"; class folders ({_joined(classes)}) are in {shown(folder)}" + (
                f": give {shown(place)}" if depth else ""
            )
        if depth < _DEEP:
            waiting.extend((folder / name, depth + 1) for name in here.folders)
    return ""


def _joined(names: Iterable[str]) -> str:
    """Join the first few names."""
    return ", ".join(some([shown(name) for name in names]))
