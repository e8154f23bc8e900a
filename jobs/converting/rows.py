"""Makes rows of a manifest of what other tools wrote, and checks them with their videos."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.converting.videos import Videos
from jobs.page.videos import Clip
from masking.imports.items import Found, Item
from masking.manifest.faults import Fault, ManifestError
from masking.manifest.rows import LARGEST_ID, read_rows
from masking.tracking.masking import resolve_prompts
from masking.video.frame import VideoError

Row = dict[str, Any]


@dataclass
class Converted:
    """The rows of a manifest."""

    rows: list[Row] = field(default_factory=list)
    """The rows, video by video."""
    faults: list[str] = field(default_factory=list)
    """What is wrong, with its place in the annotations."""
    notes: list[str] = field(default_factory=list)
    """What a person should know."""


def convert(found: Found, videos: Videos, first_only: bool, skip_invalid: bool) -> Converted:
    """Make rows of items.

    Args:
        found: what was read.
        videos: the videos that it may be of.
        first_only: whether only the first frame of each object counts.
        skip_invalid: whether objects with faults are left out, and others kept.
    """
    result = Converted()
    _check_names(found.items, result)
    names = [item.video for item in found.items]
    by_name: defaultdict[str, list[Item]] = defaultdict(list)
    for item in found.items:
        by_name[item.video].append(item)
    by_clip: dict[str, tuple[Clip, list[Item]]] = {}
    for name, items in by_name.items():
        try:
            clip = videos.find(name, names)
        except ValueError as error:
            result.faults.append(f"{items[0].place}: {error}")
            continue
        by_clip.setdefault(clip.video_id, (clip, []))[1].extend(items)
    for clip, items in by_clip.values():
        try:
            _convert_video(clip, items, videos, first_only, skip_invalid, result)
        except VideoError as error:
            result.faults.append(f"{items[0].place}: {error}")
    return result


def _check_names(items: Sequence[Item], result: Converted) -> None:
    """Add the faults of names that some tools take for the same, and others do not."""
    spellings: defaultdict[str, dict[str, Item]] = defaultdict(dict)
    for item in items:
        spellings[" ".join(item.name.split()).casefold()].setdefault(item.name, item)
    for same in spellings.values():
        if len(same) > 1:
            first, second, *_ = same
            result.faults.append(
                f"{same[second].place}: the name {second!r} beside {first!r}, which some tools take"
                " for the same; expected one spelling"
            )


def _convert_video(
    clip: Clip,
    items: Sequence[Item],
    videos: Videos,
    first_only: bool,
    skip_invalid: bool,
    result: Converted,
) -> None:
    """Add the rows of a video; raises VideoError if it cannot be read."""
    size, ids = videos.size(clip), _ids(items, clip, result)
    rows: list[tuple[Item, Row]] = []
    for item in items:
        try:
            frame = videos.frame(clip, item)
        except ValueError as error:
            result.faults.append(f"{item.place}: {error}")
            continue
        about = {"uri": clip.uri, "video_id": clip.video_id, "object_id": ids[item.track]}
        named = {"object_name": item.name} if item.name else {}
        rows.append((item, {**about, **named, "frame": frame, **item.row(size)}))
    rows = _in_order(rows, first_only)
    while rows:
        faults = _faults(clip, [row for _, row in rows], videos)
        late = {fault.row - 1 for fault in faults if fault.column == "frame"}
        late = {place for place in late if rows[place][1].get("role") == "absent"}
        if late:  # an object that leaves with the end of the video
            rows = [pair for place, pair in enumerate(rows) if place not in late]
            continue
        if not faults:
            break
        result.faults += [f"{rows[max(0, fault.row - 1)][0].place}: {_plain(fault)}"
                          for fault in faults]  # fmt: skip
        if not skip_invalid:
            return
        wrong = {rows[max(0, fault.row - 1)][1]["object_id"] for fault in faults}
        rows = [pair for pair in rows if pair[1]["object_id"] not in wrong]
    result.rows += [row for _, row in rows]


def _plain(fault: Fault) -> str:
    """Return a fault without the number of its row: rows are not yet in a file."""
    return str(Fault(0, fault.column, fault.value, fault.expected))


def _ids(items: Sequence[Item], clip: Clip, result: Converted) -> dict[str, int]:
    """Return the number of each object: its own, if all have numbers that a manifest takes."""
    tracks = list(dict.fromkeys(item.track for item in items))
    own = [int(track) for track in tracks if track.isdecimal() and len(track) < 7]
    if len(own) == len(tracks) and all(1 <= number <= LARGEST_ID for number in own):
        return dict(zip(tracks, own, strict=True))
    if len(own) == len(tracks):
        result.notes.append(
            f"{clip.uri}: objects are numbered from 1; their own numbers begin with {min(own)}"
        )
    return {track: number for number, track in enumerate(tracks, 1)}


def _in_order(rows: list[tuple[Item, Row]], first_only: bool) -> list[tuple[Item, Row]]:
    """Return rows by object and frame; of objects that tools have from a frame on, the first row
    says so. An object that leaves before anything showed it needs no row."""
    rows = sorted(rows, key=lambda pair: (pair[1]["object_id"], pair[1]["frame"]))
    starts: dict[int, int] = {}
    for _, row in rows:
        if row.get("role") != "absent":
            starts.setdefault(row["object_id"], row["frame"])
    kept, seen = [], Counter[int]()
    for item, row in rows:
        number, first = row["object_id"], starts.get(row["object_id"])
        if first is not None and row.get("role") == "absent" and row["frame"] < first:
            continue
        if first_only and row["frame"] != first:
            continue
        if item.starts and not seen[number] and first:
            row["start_frame"] = first
        seen[number] += 1
        kept.append((item, row))
    return kept


def _faults(clip: Clip, rows: Sequence[Mapping[str, Any]], videos: Videos) -> Sequence[Fault]:
    """Return the faults of a video's rows, as a mask job would find them."""
    try:
        resolve_prompts(videos.opened(clip), read_rows(rows))
    except ManifestError as error:
        return error.faults
    return ()
