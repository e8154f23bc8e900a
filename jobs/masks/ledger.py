"""What a mask run tells of its videos: videos.parquet, the ledger, and review.csv."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.masks.plan import is_accepted
from masking.manifest.rows import Row

SPAN_COLUMNS = (
    "video_id", "object_id", "first_frame", "last_frame", "reason", "click_frame", "severity",
)  # fmt: skip


def ledger(records: Iterable[Mapping[str, Any]]) -> bytes:
    """videos.parquet: what is nested in a record is JSON there."""
    names = (
        ("video_id", pa.string()), ("uri", pa.string()), ("status", pa.string()),
        ("code", pa.string()), ("error", pa.string()), ("frames", pa.int64()),
        ("height", pa.int32()), ("width", pa.int32()), ("rotation", pa.int32()),
        ("rate", pa.float64()), ("codec", pa.string()), ("corrupt_packets", pa.int64()),
        ("cut_off", pa.bool_()), ("unsorted", pa.int64()), ("notes", pa.string()),
        ("objects", pa.string()), ("extra", pa.string()), ("seconds", pa.float64()),
        ("content_sha256", pa.string()), ("masks_sha256", pa.string()), ("key", pa.string()),
    )  # fmt: skip
    rows = []
    for record in sorted(records, key=lambda each: each["video_id"]):
        row = {name: record.get(name) for name, _ in names}
        for name in ("notes", "objects", "extra"):
            row[name] = None if row[name] is None else json.dumps(row[name])
        rows.append(row)
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(names))), content)
    return content.getvalue()


def review(records: Iterable[Mapping[str, Any]], accepted: Mapping[str, Sequence[Row]]) -> str:
    """review.csv: spans of all videos, worst first, without those that a person accepted."""
    found = [
        span
        for record in records
        for span in record["review"]
        if not is_accepted(accepted.get(record["video_id"], ()), span)
    ]
    found.sort(key=lambda s: (-s["severity"], s["video_id"], s["object_id"], s["first_frame"]))
    text = io.StringIO()
    writer = csv.DictWriter(text, SPAN_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()
