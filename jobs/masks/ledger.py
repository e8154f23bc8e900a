"""The tables of a mask run: videos.parquet, the ledger of its videos, and review.csv."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.masks.plan import is_accepted
from masking.manifest.rows import Row

SPAN_COLUMNS = {
    "video_id": "id of the video",
    "object_id": "id of the object",
    "first_frame": "first frame of the span",
    "last_frame": "last frame of the span",
    "reason": "state of the object in the span: uncertain or lost",
    "click_frame": "frame on which a click would help most",
    "severity": "sum over the frames of how doubtful each is, 0 to 1; rows are sorted by it",
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


def ledger_bytes(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the content of videos.parquet; nested values of a record become JSON."""
    rows = []
    for record in sorted(records, key=lambda each: each["video_id"]):
        row = {name: record.get(name) for name in LEDGER_COLUMNS}
        for name in ("notes", "objects", "extra"):
            row[name] = None if row[name] is None else json.dumps(row[name])
        rows.append(row)
    content = io.BytesIO()
    schema = pa.schema([(name, kind) for name, (kind, _) in LEDGER_COLUMNS.items()])
    pq.write_table(pa.Table.from_pylist(rows, schema), content)
    return content.getvalue()


def review_csv(records: Iterable[Mapping[str, Any]], accepted: Mapping[str, Sequence[Row]]) -> str:
    """Return the content of review.csv: the spans of all videos that no one accepted, worst first.

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
    text = io.StringIO()
    writer = csv.DictWriter(text, list(SPAN_COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()
