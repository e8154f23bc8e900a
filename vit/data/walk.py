"""Files below folders: each folder once, whatever links there are, and nothing lost silently."""

import os
import stat
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".jfif", ".jpe", ".pjpeg", ".pjp", ".jp2", ".j2k", ".gif", ".avif", ".apng", ".dib", ".pbm"),
)
"""Ends of file names that count as images: torchvision's IMG_EXTENSIONS, then others that Pillow
reads."""
_SYSTEM = frozenset(
    name.lower()
    for name in (
        *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "@tmp", "~snapshot"),
        *("$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db", "desktop.ini"),
        *("__MACOSX", "Network Trash Folder", "Temporary Items", "__pycache__"),
    )
)
"""Names, in lower case, of what file servers and systems put beside files: thumbnails, trash,
snapshots."""


def shown(path: str | PurePath) -> str:
    """Return a path as text that can be printed; bytes that are not UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_hidden(name: str) -> bool:
    """Return whether a name is hidden, or one that a file server or system uses for itself."""
    return name.startswith(".") or name.lower() in _SYSTEM


def suffixes(files: Iterable[str]) -> str:
    """Count files by the end of their names, as in `2 .txt, 1 without a suffix`."""
    counts = Counter(PurePath(file).suffix.lower() or "without a suffix" for file in files)
    listed = [f"{count:,} {shown(suffix)}" for suffix, count in counts.most_common(5)]
    more = len(counts) - 5
    return ", ".join(listed) + (f" and {more} more kinds" if more > 0 else "")


@dataclass
class Listing:
    """What lies in a folder and below it."""

    files: list[str] = field(default_factory=list)
    """Paths of all files that are not hidden, by folder and name."""
    lost: dict[str, str] = field(default_factory=dict)
    """Paths of folders that cannot be listed, and of what may be a folder or an image but cannot
    be read, such as links to what is not there; and why."""
    links: list[str] = field(default_factory=list)
    """Lines on links to folders that are used already."""
    system: list[str] = field(default_factory=list)
    """Names of folders of file servers and systems, which are not entered."""

    @property
    def images(self) -> list[str]:
        """The files whose names end as those of images do."""
        return [file for file in self.files if is_image(file)]

    @property
    def others(self) -> list[str]:
        """The files that are not images."""
        return [file for file in self.files if not is_image(file)]


def is_image(name: str) -> bool:
    """Return whether a name ends as those of images do."""
    return name.lower().endswith(EXTENSIONS)


@dataclass(frozen=True)
class Content:
    """What lies directly in a folder, without what is hidden; names are sorted."""

    folders: dict[str, bool]
    """Names of folders, and whether each is a link."""
    files: tuple[str, ...]
    lost: dict[str, str]
    """Names of what is neither but may be an image or a folder, and why it cannot be read."""
    system: tuple[str, ...]
    """Names of folders of file servers and systems."""


def content(folder: str | Path) -> Content:
    """List a folder.

    Raises:
        OSError: it cannot be listed.
    """
    folders: dict[str, bool] = {}
    files, lost, system = [], {}, []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            mode = _mode(entry)
            if is_hidden(entry.name):
                if not entry.name.startswith(".") and mode == stat.S_IFDIR:
                    system.append(entry.name)
            elif mode == stat.S_IFDIR:
                folders[entry.name] = entry.is_symlink()
            elif mode == stat.S_IFREG:
                files.append(entry.name)
            elif is_image(entry.name) or PurePath(entry.name).suffix in ("", ".parquet"):
                lost[entry.name] = mode if isinstance(mode, str) else "neither a file nor a folder"
    return Content(folders, tuple(files), lost, tuple(system))


def _mode(entry: os.DirEntry[str]) -> int | str:
    """Return the kind of what lies at an entry, as `stat` writes it, or why that is not known."""
    if not entry.is_symlink():  # known from the listing, without another call for each file
        if entry.is_dir(follow_symlinks=False):
            return stat.S_IFDIR
        return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError as error:
        target = shown(Path(entry.path).readlink())
        return f"a link to {target}, which cannot be reached ({error.strerror})"


Seen = dict[tuple[int, int], str]
"""Folders by device and inode, with their paths."""


def identity(path: str | Path) -> tuple[int, int]:
    """Return device and inode of a folder, the same by whatever path."""
    state = Path(path).stat()
    return state.st_dev, state.st_ino


def walk(roots: Mapping[str, Path], above: Iterable[Path] = ()) -> tuple[dict[str, Listing], Seen]:
    """List what lies below several folders, each folder once.

    Links to folders are followed, after everything else, so that a folder that is linked to is
    listed where it lies. A link to a folder that was listed before, or that lies above, is not
    followed.

    Args:
        roots: folders by any names.
        above: folders that contain them.

    Returns:
        The listing of each root by its name; and the folders that were listed.
    """
    listings = {name: Listing() for name in roots}
    found: dict[str, list[tuple[str, tuple[str, ...]]]] = {name: [] for name in roots}
    seen: Seen = {identity(path): str(path) for path in above}
    known = set(seen)
    waiting: deque[tuple[str, str]] = deque()
    links: deque[tuple[str, str]] = deque()
    for name, root in roots.items():
        _enter(name, str(root), listings[name], seen, waiting)
    while waiting or links:
        if not waiting:
            name, path = links.popleft()
            _enter(name, path, listings[name], seen, waiting)
            continue
        name, path = waiting.popleft()
        try:
            here = content(path)
        except OSError as error:
            listings[name].lost[path] = str(error.strerror)
            continue
        found[name].append((path, here.files))
        listings[name].lost |= {f"{path}/{lost}": why for lost, why in here.lost.items()}
        listings[name].system += here.system
        for folder, is_link in here.folders.items():
            if is_link:
                links.append((name, f"{path}/{folder}"))
            else:
                _enter(name, f"{path}/{folder}", listings[name], seen, waiting)
    for name, listing in listings.items():
        listing.files = [f"{path}/{file}" for path, files in sorted(found[name]) for file in files]
    return listings, {key: path for key, path in seen.items() if key not in known}


def _enter(
    name: str, path: str, listing: Listing, seen: Seen, waiting: deque[tuple[str, str]]
) -> None:
    """Queue a folder, unless it was queued before."""
    try:
        key = identity(path)
    except OSError as error:
        listing.lost[path] = str(error.strerror)
        return
    if key in seen:
        listing.links.append(
            f"{shown(path)}: a link to {shown(seen[key])}, which is used already; not followed"
        )
        return
    seen[key] = path
    waiting.append((name, path))
