"""Which videos there are to click on: of a folder, a file, a manifest, or a run of `jobs.mask`."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jobs.masks.plan import absolute_uri
from jobs.page.store import FORMATS, Record, read_records
from jobs.run.config import ConfigError, parse_yaml
from jobs.storage.location import Location
from masking.manifest.rows import Fault, ManifestError
from masking.manifest.table import identity
from masking.video.reader import IMAGES

ENDINGS = (
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
"""What of a folder is a video, by the ending of its name; a folder of images is one, too."""
_KEPT = 200  # bytes of a name that is too long for an id


@dataclass(frozen=True)
class Clip:
    """A video that can be clicked on."""

    video_id: str
    uri: str
    """As the manifest has it."""
    place: Location


@dataclass(frozen=True)
class Source:
    """What a person named."""

    clips: tuple[Clip, ...]
    rows: tuple[Record, ...]
    """Of its manifests."""
    run: Location | None
    """The output of `jobs.mask`, if it is that."""


def find(videos: str, out: Path, root: str | None) -> Source:
    """Look at what a person named.

    Args:
        videos: a folder of videos or images, a video, a manifest, or the folder of a mask run.
        out: the manifest that is made: uris are meant from its folder.
        root: what uris are meant from instead.

    Raises:
        ConfigError: nothing is there to click on.
        ManifestError: a manifest with faults.
        StorageError: it cannot be read.
    """
    place = Location.parse(videos)
    base = Location.parse(root) if root is not None else Location.parse(out.parent)
    if (place / "commits").exists() and (place / "config.yaml").exists():
        return _of_run(place, base)
    if place.name.endswith(FORMATS):
        rows = _of_manifest(place, root, base)
        return Source(clips_of(rows, base), tuple(rows), None)
    found = [*_listed(place)]
    if not found:
        what = "holds no video" if place.exists() else "is not there"
        raise ConfigError(
            f"{place} {what}; expected videos ({', '.join(ENDINGS)}), folders of images, a manifest"
            f" ({', '.join(FORMATS)}) or the --out of a jobs.mask run"
        )
    return Source(tuple(_named(found, place, base)), (), None)


def _of_run(run: Location, base: Location) -> Source:
    """The videos and prompts that a mask run was told of."""
    config = parse_yaml((run / "config.yaml").read_text(), f"{run}/config.yaml")
    rows = [
        row
        for manifest in config["manifest"]
        for row in _of_manifest(Location.parse(manifest), config["root"], base)
    ]
    return Source(clips_of(rows, base), tuple(rows), run)


def _of_manifest(place: Location, root: str | None, base: Location) -> list[Record]:
    """Its rows, so that they mean the same in a manifest whose uris are meant from `base`."""
    try:
        rows = read_records(place.name, place.read_bytes())
    except ManifestError as error:
        raise faulty(place, error) from error
    here = Location.parse(root) if root is not None else place.parent
    if here == base:
        return rows
    moved = []
    for row in rows:
        video_id = identity(0, row)[1]
        uri = relative(Location.parse(absolute_uri(str(row["uri"]), root, place)), base)
        moved.append({**row, "uri": uri, "video_id": video_id})
    return moved


def faulty(manifest: object, error: ManifestError) -> ConfigError:
    """What a person is told of a manifest that cannot be gone on with."""
    lines = [
        f"{len(error.faults):,} faults in {manifest}; mend them first:",
        *map(str, error.faults),
    ]
    return ConfigError("\n".join(lines))


def clips_of(rows: Iterable[Record], base: Location) -> tuple[Clip, ...]:
    """The videos of a manifest's rows, in order."""
    found: dict[str, Clip] = {}
    for number, row in enumerate(rows, 1):
        video_id = identity(number, row)[1]
        if video_id not in found:
            uri = str(row["uri"])
            place = Location.parse(absolute_uri(uri, str(base), base))
            found[video_id] = Clip(video_id, uri, place)
    return tuple(found.values())


def joined(first: Sequence[Clip], more: Sequence[Clip]) -> list[Clip]:
    """Two lists without what is there twice; one id for two places is a fault.

    Raises:
        ManifestError: naming both.
    """
    places = {clip.place for clip in first}
    ids = {clip.video_id: clip for clip in first}
    added = [clip for clip in more if clip.place not in places]
    faults = [
        Fault(0, "video_id", repr(clip.video_id), f"another one for {clip.place}: it is that of"
              f" {ids[clip.video_id].place}")
        for clip in added
        if clip.video_id in ids
    ]  # fmt: skip
    if faults:
        raise ManifestError(faults)
    return [*first, *added]


def _listed(place: Location) -> Iterable[Location]:
    """Videos, and folders of images, at or below a place."""
    seen: set[str] = set()
    for entry in place.walk():
        path = PurePosixPath(entry.path or place.name)
        if any(part.startswith(".") for part in path.parts):
            continue
        if path.suffix.lower() in ENDINGS:
            yield place / entry.path if entry.path else place
        elif path.suffix.lower() in IMAGES and entry.path:
            folder = entry.path.rpartition("/")[0]
            if folder not in seen:
                seen.add(folder)
                yield place / folder


def _named(found: Sequence[Location], folder: Location, base: Location) -> Iterable[Clip]:
    """Videos with ids: their names without ending, unless two would have the same."""
    names = [place.path.removeprefix(folder.path).strip("/") or place.name for place in found]
    stems = [_stem(name) for name in names]
    often = Counter(stems)
    for place, name, stem in zip(found, names, stems, strict=True):
        yield Clip(_usable(stem if often[stem] == 1 else name), relative(place, base), place)


def _usable(name: str) -> str:
    """A name as an id that manifests may have: else what it can have of it, and a digest."""
    fault, _ = identity(0, {"uri": name, "video_id": name})
    if fault is None:
        return name
    if fault.column == "uri":
        raise ConfigError(f"{name!a}: a name that is no UTF-8; rename it")
    parts = [part.encode()[:_KEPT].decode(errors="ignore") for part in name.split("/")]
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return "/".join(parts).replace("\\", "_") + f"-{digest}"


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in ENDINGS else name


def relative(place: Location, base: Location) -> str:
    """A uri that `jobs.mask` reads as this place, from a base folder."""
    if place.is_s3 or base.is_s3 or not Path(place.path).is_relative_to(base.path):
        return str(place)
    return os.path.relpath(place.path, base.path)
