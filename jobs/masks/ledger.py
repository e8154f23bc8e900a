"""The tables of a mask run: videos.parquet, the ledger of its videos, and review.csv.

Both are made from the records of videos, which their markers in `commits/` hold as JSON.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.masks.plan import is_accepted
from masking.manifest.rows import Row
from masking.outputs.review import outlook

SPAN_COLUMNS = {
    "video_id": "id of the video",
    "object_id": "id of the object",
    "first_frame": "first frame of the span",
    "last_frame": "last frame of the span",
    "reason": "why: lost, uncertain, tracked or check, as listed below",
    "click_frame": "frame on which a click would help most",
    "severity": "what a click there is expected to add to the IoU of the object's frames, in"
    " frames; rows are sorted by it",
    "click_x": "column of the middle of the mask there, or on the nearest frame that has one",
    "click_y": "row of that place",
    "click_name": "name of the file of click_frame, if the video is a folder of images",
}
"""Columns of review.csv, and their meaning."""
LEDGER_COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "video_id": (pa.string(), "id of the video"),
    "uri": (pa.string(), "where the video is"),
    "status": (pa.string(), "ok, partial (some of the file does not decode) or failed"),
    "code": (pa.string(), "kind of failure, as listed below; null if there was none"),
    "error": (pa.string(), "what failed, in words"),
    "frames": (pa.int64(), "number of frames"),
    "height": (pa.int32(), "height of the frames in pixels, as displayed"),
    "width": (pa.int32(), "width of the frames in pixels, as displayed"),
    "rotation": (pa.int32(), "degrees by which the stored frames are rotated for display"),
    "rate": (pa.float64(), "average frames per second"),
    "codec": (pa.string(), "video codec of the file"),
    "corrupt_packets": (pa.int64(), "number of packets that did not decode"),
    "cut_off": (pa.bool_(), "whether the file is shorter than its header says"),
    "unsorted": (pa.int64(), "number of frames whose timestamp is not later than the one before"),
    "notes": (pa.string(), "JSON list of other findings about the file"),
    "objects": (pa.string(), "JSON: for each object, the number of frames in each state"),
    "extra": (pa.string(), "JSON: columns of your own, from the video's first row"),
    "seconds": (pa.float64(), "seconds that masking took"),
    "content_sha256": (pa.string(), "SHA-256 of the video file"),
    "masks_sha256": (pa.string(), "SHA-256 of the file of masks"),
    "key": (pa.string(), "hash of the file's state, clicks, weights and settings"),
}
"""Columns of videos.parquet, with type and meaning."""


_NEEDED = {
    "video_id": str, "uri": str, "key": str, "status": str, "frames": int, "seconds": float,
}  # fmt: skip
_NEEDED_FAILED = {"code": str, "error": str}
_NEEDED_MASKED = {"masks_sha256": str, "review": list, "objects": dict, "notes": list}
_EXPECTED = {"frames": int, "missing": float}
_SPAN = {
    "video_id": str, "object_id": int, "first_frame": int, "last_frame": int, "reason": str,
    "click_frame": int, "severity": float,
}  # fmt: skip


def as_marker(content: bytes) -> dict[str, Any] | None:
    """Return the record in the content of a marker; None if it is not one that a job wrote whole.

    A file that was cut off, or put there by something else, says nothing about any video.
    """
    try:
        record = json.loads(content)
        if not isinstance(record, dict) or not _has(record, _NEEDED):
            return None
        failed = record["status"] == "failed"
        if not failed and record["status"] not in ("ok", "partial"):
            return None
        if not _has(record, _NEEDED_FAILED if failed else _NEEDED_MASKED):
            return None
        if not isinstance(record.get("masks_bytes", 0), int):  # earlier versions wrote none
            return None
        expected = record.get(
            "expected", {"frames": 0, "missing": 0}
        )  # earlier versions wrote none
        if not isinstance(expected, dict) or not _has(expected, _EXPECTED):
            return None
        spans = [] if failed else record["review"]
        if not all(isinstance(span, dict) and _has(span, _SPAN) for span in spans):
            return None
        _ledger_table([record])
    except (ValueError, TypeError, OverflowError, RecursionError, pa.ArrowException):
        return None
    return record


def _has(record: Mapping[str, Any], kinds: Mapping[str, type]) -> bool:
    """Return whether a record has values of these types; a whole number is a float, too."""
    return all(
        isinstance(record.get(name), (int, float) if kind is float else kind)
        for name, kind in kinds.items()
    )


def _ledger_table(records: Iterable[Mapping[str, Any]]) -> pa.Table:
    rows = []
    for record in records:
        row = {name: record.get(name) for name in LEDGER_COLUMNS}
        for name in ("notes", "objects", "extra"):
            row[name] = None if row[name] is None else json.dumps(row[name])
        rows.append(row)
    schema = pa.schema([(name, kind) for name, (kind, _) in LEDGER_COLUMNS.items()])
    return pa.Table.from_pylist(rows, schema)


def ledger_bytes(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the content of videos.parquet; nested values of a record become JSON."""
    content = io.BytesIO()
    ordered = sorted(records, key=lambda each: each["video_id"])
    pq.write_table(_ledger_table(ordered), content)
    return content.getvalue()


def review_of(
    records: Iterable[Mapping[str, Any]], accepted: Mapping[str, Sequence[Row]]
) -> list[Mapping[str, Any]]:
    """Return the spans of all videos that no one accepted, the greatest gain first.

    Spans for a check gain little; they are put between the others, so that they are seen: one after
    each nine.

    Args:
        records: of the masked videos.
        accepted: rows of role `accept` of each video, by its id.
    """
    found = [
        span
        for record in records
        for span in record["review"]
        if not is_accepted(accepted.get(record["video_id"], ()), span)
    ]
    found.sort(key=lambda s: (-s["severity"], s["video_id"], s["object_id"], s["first_frame"]))
    checks = [span for span in found if span["reason"] == "check"]
    others = [span for span in found if span["reason"] != "check"]
    for number, check in enumerate(checks):
        others.insert(min(len(others), 10 * number + 9), check)
    return others


def outlook_of(
    records: Sequence[Mapping[str, Any]], review: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what is to be expected of all masks, as `masking.outputs.review.outlook`.

    Args:
        records: of the masked videos; those of earlier versions say nothing.
        review: the result of `review_of`.
    """
    expected = [record["expected"] for record in records if "expected" in record]
    missing, frames = (sum(one[name] for one in expected) for name in ("missing", "frames"))
    return outlook(review, missing, frames)


def review_csv(review: Iterable[Mapping[str, Any]]) -> str:
    """Return the content of review.csv from the result of `review_of`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(SPAN_COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(review)
    return text.getvalue()
