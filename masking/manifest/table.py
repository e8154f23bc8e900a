"""A manifest: the prompts of many videos in one table.

A row is one of `masking.manifest.rows`, with the video that it belongs to:

    uri  object_id  frame | time_s  x  y  label  [video_id ...]
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from masking.manifest.columns import without_columns
from masking.manifest.faults import Fault, text_fault
from masking.manifest.records import Record, Table
from masking.manifest.rows import COLUMNS, Row, given, object_faults, parse_rows

_LONGEST_NAME = 255 - len(".parquet")  # bytes of a file name on common disks, less the ending
_LONGEST_ID = 900  # bytes: a key in S3 has up to 1,024, and the run's folder is a part of it
_LONGEST_URI = 4095  # bytes of a path that Linux takes


@dataclass(frozen=True)
class VideoPrompts:
    """The prompts of one video in a manifest."""

    video_id: str
    """Name of its results: parts of a path, separated by `/`."""
    uri: str
    """Its address as in the manifest."""
    rows: tuple[Row, ...]
    """Its rows, in order."""
    extra: Mapping[str, str]
    """Columns without a meaning here, from the video's first row."""


def read_manifest(
    table: Table, finished: bool = True
) -> tuple[list[VideoPrompts], dict[str, tuple[Fault, ...]], list[Fault]]:
    """Read the rows of many videos.

    Args:
        table: the table that `masking.manifest.formats.read.parse_table` returns.
        finished: whether every object must have a positive point or a box by now.

    Returns:
        The videos without faults, in the order of their first rows; the faults of each other
        video, by its id; and faults that belong to no video. Rows count from 1 below the header.
    """
    missing = [column for column in ("uri", "object_id") if column not in table.columns]
    if missing:
        return [], {}, [without_columns(table.columns, missing)]
    if not any(map(filled, table.records)):
        return [], {}, [Fault(0, "the table", "empty", "a row for each click below the header")]
    loose: list[Fault] = []
    by_video: dict[str, dict[int, Record]] = {}
    for number, record in enumerate(table.records, 1):
        if not filled(record):
            continue
        fault, video_id = identity(number, record)
        if fault is None:
            by_video.setdefault(video_id, {})[number] = record
        else:
            loose.append(fault)
    videos, faulty = [], {}
    for video_id, mine in by_video.items():
        video, faults = _read_video(video_id, mine, finished)
        if faults:
            faulty[video_id] = tuple(_placed(fault, table) for fault in faults)
        else:
            videos.append(video)
    return videos, faulty, [_placed(fault, table) for fault in loose]


def _placed(fault: Fault, table: Table) -> Fault:
    """Return a fault with the place of its row, if the table's rows have places."""
    if not (table.places and fault.row):
        return fault
    return replace(fault, place=table.places[fault.row - 1])


def _read_video(
    video_id: str, records: Mapping[int, Record], finished: bool
) -> tuple[VideoPrompts, list[Fault]]:
    """Read the rows of one video, given by their numbers; return its prompts and its faults."""
    number, first = next(iter(records.items()))
    others = {record["uri"]: row for row, record in reversed([*records.items()])}
    others.pop(first["uri"])
    expected = (
        f"{first['uri']}, as in the first row of video_id {video_id}; give another video another"
        " video_id in a column of that name"
    )
    faults = [
        Fault(row, "uri", repr(uri), expected)
        for uri, row in sorted(others.items(), key=lambda item: item[1])
    ]
    rows, found = parse_rows(records.values(), [*records])
    faults += found
    if finished and not found:
        faults += object_faults(rows)
    extra = {k: str(v) for k, v in first.items() if k not in COLUMNS and given(v)}
    faults += [fault for k, v in extra.items() if (fault := text_fault(number, k, v))]
    return VideoPrompts(video_id, first["uri"], tuple(rows), extra), faults


def filled(record: Mapping[str, Any]) -> bool:
    """Return whether a row holds anything; a blank line of a spreadsheet does not."""
    return any(given(value) for value in record.values())


def identity(number: int, record: Record) -> tuple[Fault | None, str]:
    """Return a fault of the `number`th row, if there is one, and the id of its video."""
    uri, video_id = record.get("uri"), record.get("video_id")
    if not given(uri):
        return Fault(number, "uri", "empty", "a video file or a folder of frames"), ""
    if not isinstance(uri, str):
        return Fault(number, "uri", repr(uri), "a text, the path of a video"), ""
    if given(video_id) and (isinstance(video_id, bool) or not isinstance(video_id, str | Real)):
        return Fault(number, "video_id", repr(video_id), "a text"), ""
    name = str(video_id) if given(video_id) else default_id(uri)
    fault = text_fault(number, "uri", uri) or text_fault(number, "video_id", name)
    return fault or _name_fault(number, uri, name), name


def _name_fault(number: int, uri: str, video_id: str) -> Fault | None:
    """Return the fault of names that no disk takes."""
    if len(uri.encode()) > _LONGEST_URI:
        value = f"of {len(uri.encode()):,} bytes"
        return Fault(number, "uri", value, f"a path of up to {_LONGEST_URI:,} bytes")
    parts = video_id.split("/")
    if max(len(part.encode()) for part in parts) > _LONGEST_NAME:
        expected = f"names of up to {_LONGEST_NAME} bytes; a column video_id can give a shorter one"
        return Fault(number, "video_id", repr(video_id), expected)
    if len(video_id.encode()) > _LONGEST_ID:
        expected = f"up to {_LONGEST_ID} bytes; a column video_id can give a shorter one"
        return Fault(number, "video_id", f"of {len(video_id.encode())} bytes", expected)
    if not all(parts) or {".", ".."} & set(parts) or "\\" in video_id:
        return Fault(number, "video_id", repr(video_id), "a name, or names with / between them")
    return None


def default_id(uri: str) -> str:
    """Return a uri without its scheme, its ending, and parts that lead out of a folder."""
    path = uri.split("://", 1)[-1].rstrip("/")
    stem, dot, ending = path.rpartition(".")
    path = stem if dot and "/" not in ending and stem else path
    return "/".join(part for part in path.split("/") if part not in ("", ".", ".."))
