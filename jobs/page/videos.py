"""Finds the videos to click on: in a folder, a file, a manifest, or a run of `jobs.mask`."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jobs.masks.plan import absolute_uri
from jobs.page.formats import read_records
from jobs.page.journal import Record
from jobs.run.config import ConfigError, parse_yaml
from jobs.storage.errors import explained
from jobs.storage.location import Location
from masking.manifest.faults import Fault, ManifestError
from masking.manifest.formats.read import FORMATS, format_of
from masking.manifest.table import identity
from masking.video.folder import IMAGES

ENDINGS = (
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
"""Endings of video files; a folder of images is a video, too."""
_KEPT, _KEPT_OF_ALL = 200, 800  # bytes kept of a name, or of a path, that is too long for an id


@dataclass(frozen=True)
class Clip:
    """A video to click on."""

    video_id: str
    """Id of the video in the manifest."""
    uri: str
    """Address of the video, as in the manifest."""
    place: Location
    """Location of the video."""


@dataclass(frozen=True)
class VideoSource:
    """The argument VIDEOS of `jobs.prompt`, resolved."""

    clips: tuple[Clip, ...]
    """The videos."""
    rows: tuple[Record, ...]
    """Rows of its manifests, if it is a manifest or a mask run."""
    run: Location | None
    """Folder of the mask run, if it is one."""


def find(videos: str, out: Path, root: str | None) -> VideoSource:
    """Find the videos that a person named.

    Args:
        videos: a folder of videos or images, a video, a manifest, or the folder of a mask run.
        out: the manifest to write; relative uris are resolved against its folder.
        root: folder that relative uris are resolved against instead.

    Raises:
        ConfigError: there is no video, or a manifest has faults.
        StorageError: a file or folder cannot be read.
    """
    place = Location.parse(videos)
    base = Location.parse(root) if root is not None else Location.parse(out.parent)
    if (place / "commits").exists() and (place / "config.yaml").exists():
        return _find_in_run(place, base)
    if format_of(place.name):
        rows = _read_manifest(place, root, base)
        return VideoSource(clips_of(rows, base), tuple(rows), None)
    found = [*_list_videos(place)]
    if not found:
        what = "holds no video" if place.exists() else "does not exist"
        raise ConfigError(
            f"{place} {what}; expected videos ({', '.join(ENDINGS)}), folders of images, a manifest"
            f" ({', '.join(FORMATS)}) or the --out of a jobs.mask run"
        )
    return VideoSource(tuple(_clips_with_ids(found, place, base)), (), None)


def _find_in_run(run: Location, base: Location) -> VideoSource:
    """Return the videos and rows of the manifests of a mask run."""
    config = parse_yaml((run / "config.yaml").read_bytes(), f"{run}/config.yaml")
    try:
        manifests, root = [str(each) for each in config["manifest"]], config["root"]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{run}/config.yaml: expected the settings of a jobs.mask run: {error}"
        ) from error
    rows = [
        row
        for manifest in manifests
        for row in _read_manifest(Location.parse(manifest), root, base)
    ]
    return VideoSource(clips_of(rows, base), tuple(rows), run)


def _read_manifest(place: Location, root: str | None, base: Location) -> list[Record]:
    """Return the rows of a manifest, with uris that are relative to `base`."""
    try:
        rows = read_records(place.name, place.read_bytes())
    except ManifestError as error:
        raise manifest_error(place, error) from error
    here = Location.parse(root) if root is not None else place.parent
    if here == base:
        return rows
    moved = []
    for row in rows:
        video_id = identity(0, row)[1]
        uri = relative_uri(Location.parse(absolute_uri(str(row["uri"]), root, place)), base)
        moved.append({**row, "uri": uri, "video_id": video_id})
    return moved


def manifest_error(manifest: object, error: ManifestError) -> ConfigError:
    """Return the error that lists all faults of a manifest."""
    lines = [
        f"{manifest} has {len(error.faults):,} faults; correct them first:",
        *map(str, error.faults),
    ]
    return ConfigError("\n".join(lines))


def clips_of(rows: Iterable[Record], base: Location) -> tuple[Clip, ...]:
    """Return the videos of rows, in order; relative uris are resolved against `base`."""
    found: dict[str, Clip] = {}
    for number, row in enumerate(rows, 1):
        video_id = identity(number, row)[1]
        if video_id not in found:
            uri = str(row["uri"])
            place = Location.parse(absolute_uri(uri, str(base), base))
            found[video_id] = Clip(video_id, uri, place)
    return tuple(found.values())


def join_clips(first: Sequence[Clip], more: Sequence[Clip]) -> list[Clip]:
    """Return the videos of two lists, each once.

    Raises:
        ManifestError: two videos have the same id.
    """
    places = {clip.place for clip in first}
    ids = {clip.video_id: clip for clip in first}
    added = [clip for clip in more if clip.place not in places]
    faults = [
        Fault(0, "video_id", repr(clip.video_id), f"another id for {clip.place}, as this is the id"
              f" of {ids[clip.video_id].place}")
        for clip in added
        if clip.video_id in ids
    ]  # fmt: skip
    if faults:
        raise ManifestError(faults)
    return [*first, *added]


def _list_videos(place: Location) -> Iterable[Location]:
    """Return the videos, and the folders of images, at or below a location."""
    seen: set[str] = set()
    for file in _list_files(place):
        path = PurePosixPath(file or place.name)
        if any(part.startswith(".") for part in path.parts):
            continue
        if path.suffix.lower() in ENDINGS:
            yield place / file if file else place
        elif path.suffix.lower() in IMAGES and file:
            folder = file.rpartition("/")[0]
            if folder not in seen:
                seen.add(folder)
                yield place / folder


def _list_files(place: Location) -> list[str]:
    """Return the paths of files below a folder, sorted; of a file itself, an empty path."""
    folder = place.local_path
    if folder is None or not folder.is_dir():
        return [entry.path for entry in place.walk()]
    return sorted(str(path.relative_to(folder)) for path in _walk(folder))


def _walk(top: Path) -> Iterator[Path]:
    """Yield the files below a local folder.

    Links are followed, but each folder is listed once: a link to a folder above it would lead on
    without end. Links come last, so that a folder has its own name.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [top], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        with explained("list", folder):
            found = folder.stat()
            if (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
            for entry in sorted(folder.iterdir()):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(entry)
                else:
                    yield entry


def _clips_with_ids(found: Sequence[Location], folder: Location, base: Location) -> Iterable[Clip]:
    """Return videos with ids: their names, without the ending unless two would be equal."""
    names = [place.path.removeprefix(folder.path).strip("/") or place.name for place in found]
    stems = [_stem(name) for name in names]
    often = Counter(stems)
    for place, name, stem in zip(found, names, stems, strict=True):
        yield Clip(_usable(stem if often[stem] == 1 else name), relative_uri(place, base), place)


def _usable(name: str) -> str:
    """Return a name as an id that a manifest may have; one that may not be is cut and hashed."""
    fault, _ = identity(0, {"uri": name, "video_id": name})
    if fault is None:
        return name
    if fault.column == "uri":
        raise ConfigError(f"{name!a}: expected a name in UTF-8; rename the file")
    parts = "/".join(_cut(part, _KEPT) for part in name.split("/"))
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return _cut(parts, _KEPT_OF_ALL).rstrip("/").replace("\\", "_") + f"-{digest}"


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in ENDINGS else name


def relative_uri(place: Location, base: Location) -> str:
    """Return a uri that `jobs.mask` resolves to a location; relative if it is below `base`."""
    if place.query:  # which a manifest must not contain
        if place.query == base.query and place.path.startswith(f"{base.path}/"):
            return place.path.removeprefix(f"{base.path}/")
        raise ConfigError(
            f"{place}: the options {place.query!r} cannot be written to a manifest; set"
            " AWS_ENDPOINT_URL and the other AWS variables, or give --root a folder above with them"
        )
    if place.is_s3 or base.is_s3 or not Path(place.path).is_relative_to(base.path):
        return str(place)
    relative = os.path.relpath(place.path, base.path)
    return f"./{relative}" if relative.startswith("~/") else relative  # no home of a person
