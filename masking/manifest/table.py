"""A manifest: the clicks of many videos in one table, as CSV, JSON lines or Parquet.

A row is one of `masking.manifest.rows`, with the video that it belongs to:

    uri  object_id  frame | time_s  x  y  label  [video_id ...]
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd

from masking.manifest.faults import Fault, ManifestError
from masking.manifest.rows import COLUMNS, Row, given, object_faults, parse_rows

_LONGEST = 255 - len(".parquet")  # bytes of a file name that file systems allow, less the ending


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


def parse_table(name: str, content: bytes) -> pd.DataFrame:
    """Turn the bytes of a manifest into a table.

    Args:
        name: name of the file, which says by its ending what it is: .csv, .jsonl (.ndjson) or
            .parquet. A line of JSON is a row, or a video with its rows in a list `prompts`.
        content: content of the file.

    Raises:
        ManifestError: the content is not of that kind.
    """
    try:
        if name.endswith(".csv"):
            # As text: each row distinguishes a frame of 1.0 from an empty one.
            if faults := _surplus(content):
                raise ManifestError(faults)
            # Blank lines stay, so that rows have the numbers that a spreadsheet shows.
            return pd.read_csv(
                io.BytesIO(content), dtype=str, keep_default_na=False, index_col=False,
                skip_blank_lines=False,
            )  # fmt: skip
        if name.endswith((".jsonl", ".ndjson")):
            # As objects: in a column with gaps 7 would become 7.0.
            return pd.DataFrame(list(json_rows(content.decode("utf-8-sig"))), dtype=object)
        if name.endswith(".parquet"):
            return pd.read_parquet(io.BytesIO(content), dtype_backend="numpy_nullable")
    except ManifestError:
        raise
    except Exception as error:  # pandas' readers raise all kinds
        raise ManifestError([Fault(0, name, f"unreadable: {error}", "a table")]) from error
    raise ManifestError([Fault(0, name, "of an unknown kind", ".csv, .jsonl, .ndjson or .parquet")])


def _surplus(content: bytes) -> list[Fault]:
    """Return the faults of rows with more values than the header has names: what follows a surplus
    comma would be in the wrong column, and pandas drops the last value."""
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    count = len(next(rows, ()))
    expected = f"{count}, as in the header; put a value with a comma in quotes"
    return [
        Fault(number, "the row", f"of {len(row)} values", expected)
        for number, row in enumerate(rows, 1)
        if any(row[count:])
    ]


def json_rows(text: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of JSON lines as they are; raises ValueError or TypeError with the line."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(value, dict):
            raise TypeError(f"line {number}: {line[:40]!r} is not a JSON object")
        nested = value.pop("prompts", None)
        if not nested:
            yield value  # a video without prompts gives a row with faults, rather than no row
        else:
            yield from ({**value, **prompt} for prompt in nested)


def read_manifest(
    table: pd.DataFrame, finished: bool = True
) -> tuple[list[VideoPrompts], dict[str, tuple[Fault, ...]], list[Fault]]:
    """Read the rows of many videos.

    Args:
        table: the table that `parse_table` returns.
        finished: whether every object must have a positive point or a box by now.

    Returns:
        The videos without faults, in the order of their first rows; the faults of each other
        video, by its id; and faults that belong to no video. Rows count from 1 below the header.
    """
    missing = [column for column in ("uri", "object_id") if column not in table.columns]
    records = [cast(Mapping[str, Any], record) for record in table.to_dict("records")]
    if missing or not any(map(filled, records)):
        what = f"without {' and '.join(missing)}" if missing else "empty"
        expected = "a row for each click, with at least uri and object_id"
        return [], {}, [Fault(0, "the table", what, expected)]
    loose: list[Fault] = []
    by_video: dict[str, dict[int, Mapping[str, Any]]] = {}
    for number, record in enumerate(records, 1):
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
            faulty[video_id] = tuple(faults)
        else:
            videos.append(video)
    return videos, faulty, loose


def _read_video(
    video_id: str, records: Mapping[int, Mapping[str, Any]], finished: bool
) -> tuple[VideoPrompts, list[Fault]]:
    """Read the rows of one video, given by their numbers; return its prompts and its faults."""
    first = next(iter(records.values()))
    others = {str(record["uri"]): number for number, record in reversed([*records.items()])}
    others.pop(str(first["uri"]))
    faults = [
        Fault(number, "uri", repr(uri), f"one uri for video_id {video_id}")
        for uri, number in sorted(others.items(), key=lambda item: item[1])
    ]
    rows, found = parse_rows(records.values(), [*records])
    faults += found
    if finished and not found:
        faults += object_faults(rows)
    extra = {str(k): str(v) for k, v in first.items() if k not in COLUMNS and given(v)}
    return VideoPrompts(video_id, str(first["uri"]), tuple(rows), extra), faults


def filled(record: Mapping[str, Any]) -> bool:
    """Return whether a row holds anything; a blank line of a spreadsheet does not."""
    return any(given(value) for value in record.values())


def identity(number: int, record: Mapping[str, Any]) -> tuple[Fault | None, str]:
    """Return a fault of the `number`th row, if there is one, and the id of its video."""
    if not given(record["uri"]):
        return Fault(number, "uri", "empty", "a video file or a folder of frames"), ""
    uri = str(record["uri"])
    chosen = given(record.get("video_id"))
    video_id = str(record["video_id"]) if chosen else default_id(uri)
    try:
        f"{uri}{video_id}".encode()
    except UnicodeEncodeError:
        return Fault(number, "uri", ascii(uri), "text that UTF-8 can encode"), ""
    parts = video_id.split("/")
    if max(len(part.encode()) for part in parts) > _LONGEST:
        expected = f"names of up to {_LONGEST} bytes; a column video_id can give a shorter one"
        return Fault(number, "video_id", repr(video_id), expected), video_id
    if not all(parts) or {".", ".."} & set(parts) or "\\" in video_id:
        return (
            Fault(number, "video_id", repr(video_id), "a name, or names with / between them"),
            video_id,
        )
    return None, video_id


def default_id(uri: str) -> str:
    """Return a uri without its scheme, its ending, and parts that lead out of a folder."""
    path = uri.split("://", 1)[-1].rstrip("/")
    stem, dot, ending = path.rpartition(".")
    path = stem if dot and "/" not in ending and stem else path
    return "/".join(part for part in path.split("/") if part not in ("", ".", ".."))
