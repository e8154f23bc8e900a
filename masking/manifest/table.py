"""A manifest: the clicks of many videos in one table, as CSV, JSON lines or Parquet.

One row is one of `masking.manifest.rows`, with the video that it is of:

    uri  object_id  frame | time_s  x  y  label  [video_id ...]
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd

from masking.manifest.rows import (
    COLUMNS,
    Fault,
    ManifestError,
    Row,
    given,
    object_faults,
    parse_rows,
)

_LONGEST = 255 - len(".parquet")  # bytes of a file's name that disks take, less its ending


@dataclass(frozen=True)
class VideoPrompts:
    """What a manifest asks of one video."""

    video_id: str
    """Names its results: parts of a path, with `/` between them."""
    uri: str
    """As the manifest has it."""
    rows: tuple[Row, ...]
    extra: Mapping[str, str]
    """Columns that have no meaning here, from the video's first row."""


def parse_table(name: str, content: bytes) -> pd.DataFrame:
    """A manifest's bytes to a table.

    Args:
        name: says by its ending what it is: .csv, .jsonl (.ndjson) or .parquet. A line of JSON is a
            row, or a video with its rows in a list `prompts`.
        content: of the file.

    Raises:
        ManifestError: it does not read as that.
    """
    try:
        if name.endswith(".csv"):
            # As text: a frame of 1.0 and an empty one are told apart row by row.
            if faults := _surplus(content):
                raise ManifestError(faults)
            # Blank lines stay, so that rows count as a spreadsheet counts them.
            return pd.read_csv(
                io.BytesIO(content), dtype=str, keep_default_na=False, index_col=False,
                skip_blank_lines=False,
            )  # fmt: skip
        if name.endswith((".jsonl", ".ndjson")):
            # As objects: numbers of a column with gaps would become floats, 7 "7.0".
            return pd.DataFrame(list(json_rows(content.decode("utf-8-sig"))), dtype=object)
        if name.endswith(".parquet"):
            return pd.read_parquet(io.BytesIO(content), dtype_backend="numpy_nullable")
    except ManifestError:
        raise
    except Exception as error:  # pandas' readers raise all kinds
        raise ManifestError([Fault(0, name, f"unreadable: {error}", "a table")]) from error
    raise ManifestError([Fault(0, name, "of no known kind", ".csv, .jsonl, .ndjson or .parquet")])


def _surplus(content: bytes) -> list[Fault]:
    """Rows of a CSV file with more in them than the header has names for: all that follows a comma
    too many would be in the wrong column, and pandas drops the last."""
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    count = len(next(rows, ()))
    expected = f"{count}, as the header has; what has a comma in it wants quotes"
    return [
        Fault(number, "the row", f"of {len(row)} values", expected)
        for number, row in enumerate(rows, 1)
        if any(row[count:])
    ]


def json_rows(text: str) -> Iterator[dict[str, Any]]:
    """Rows of JSON lines, as they are; raises ValueError or TypeError with the line."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(value, dict):
            raise TypeError(f"line {number}: {line[:40]!r} is no object")
        nested = value.pop("prompts", None)
        if not nested:
            yield value  # a video without prompts is a row with faults, not none at all
        else:
            yield from ({**value, **prompt} for prompt in nested)


def read_manifest(
    table: pd.DataFrame, finished: bool = True
) -> tuple[list[VideoPrompts], dict[str, tuple[Fault, ...]], list[Fault]]:
    """Read the rows of many videos.

    Args:
        table: of `parse_table`.
        finished: whether every object must have a positive point or a box by now.

    Returns:
        Sound videos, in the order of their first rows; of each other video, by its id, its faults;
        and faults that belong to no video. Rows count from 1 below the header.
    """
    missing = [column for column in ("uri", "object_id") if column not in table.columns]
    records = [cast(Mapping[str, Any], record) for record in table.to_dict("records")]
    if missing or not any(map(filled, records)):
        what = f"without {' and '.join(missing)}" if missing else "empty"
        return (
            [],
            {},
            [Fault(0, "the table", what, "a row for each click, at least uri, object_id")],
        )
    loose: list[Fault] = []
    groups: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for number, record in enumerate(records, 1):
        if not filled(record):
            continue
        fault, video_id = identity(number, record)
        if fault is None:
            groups.setdefault(video_id, []).append((number, record))
        else:
            loose.append(fault)
    sound, faulty = [], {}
    for video_id, mine in groups.items():
        first = mine[0][1]
        others = {str(record["uri"]): number for number, record in reversed(mine)}
        others.pop(str(first["uri"]))
        faults = [
            Fault(number, "uri", repr(uri), f"one uri for video_id {video_id}")
            for uri, number in sorted(others.items(), key=lambda item: item[1])
        ]
        table_of, numbers = [record for _, record in mine], [number for number, _ in mine]
        rows, found = parse_rows(table_of, numbers)
        faults += found
        if finished and not found:
            faults += object_faults(rows)
        if faults:
            faulty[video_id] = tuple(faults)
            continue
        extra = {str(k): str(v) for k, v in first.items() if k not in COLUMNS and given(v)}
        sound.append(VideoPrompts(video_id, str(first["uri"]), tuple(rows), extra))
    return sound, faulty, loose


def filled(record: Mapping[str, Any]) -> bool:
    """Whether a row holds anything: a blank line of a spreadsheet does not."""
    return any(given(value) for value in record.values())


def identity(number: int, record: Mapping[str, Any]) -> tuple[Fault | None, str]:
    """The video that a row, the `number`th, belongs to: a fault if there is one, and its id."""
    if not given(record["uri"]):
        return Fault(number, "uri", "empty", "a video file or a folder of frames"), ""
    uri = str(record["uri"])
    chosen = given(record.get("video_id"))
    video_id = str(record["video_id"]) if chosen else default_id(uri)
    try:
        f"{uri}{video_id}".encode()
    except UnicodeEncodeError:
        return Fault(number, "uri", ascii(uri), "text that UTF-8 can hold"), ""
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
    """A uri without scheme, ending, and what leads out of a folder."""
    path = uri.split("://", 1)[-1].rstrip("/")
    stem, dot, ending = path.rpartition(".")
    path = stem if dot and "/" not in ending and stem else path
    return "/".join(part for part in path.split("/") if part not in ("", ".", ".."))
