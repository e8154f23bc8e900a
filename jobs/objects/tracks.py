"""Classes of tracks: votes of an object's frames, and their table, which goes back into exports."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from jobs.classifier.predictor import encode
from jobs.objects.plan import VideoPart
from jobs.storage.errors import explained
from jobs.storage.location import Location

SCHEMA = pa.schema(
    [
        ("video_id", pa.string()), ("object_id", pa.int32()), ("class", pa.string()),
        ("probability", pa.float64()), ("frames", pa.int64()), ("agree", pa.int64()),
        ("error", pa.string()),
    ]
)  # fmt: skip
_THREADS = 16  # reading parts at the same time
_NONE = "its state is prompted or tracked on no frame that was classified"


def tracks_of(table: pa.Table, part: VideoPart, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each object of a video: the class that most of its frames have.

    Where several classes have as many frames, the one with the highest mean probability counts.

    Args:
        table: the predictions of the video (`jobs.objects.classify`).
        part: the video.
        classes: names of the classes.
    """
    found = []
    for number in part.objects:
        mine = table.filter(pc.equal(table["object_id"], number))
        good = mine.filter(pc.is_null(mine["error"]))
        row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
        row |= {"video_id": part.video_id, "object_id": number, "frames": len(good), "agree": 0}
        if len(good):
            shares = np.stack([np.asarray(good[f"p_{name}"], np.float64) for name in classes], 1)
            votes = np.bincount(shares.argmax(axis=1), minlength=len(classes))
            means = shares.mean(axis=0)
            best = int((votes + means / 2).argmax())  # half a vote at most: between equal numbers
            row |= {"class": classes[best], "probability": float(means[best])}
            row["agree"] = int(votes[best])
        else:
            row["error"] = mine["error"][0].as_py() if len(mine) else _NONE
        found.append(row)
    return found


def read_part(place: Location) -> pa.Table:
    """Return the predictions in a file, Parquet or CSV."""
    with place.open() as stream, explained("read", place):
        if place.name.endswith(".parquet"):
            return pq.read_table(stream)
        kept = pyarrow.csv.ConvertOptions(
            column_types={"error": pa.string(), "class": pa.string()}, strings_can_be_null=True
        )
        return pyarrow.csv.read_csv(stream, convert_options=kept)


def write_tracks(
    out: Location, parts: Sequence[VideoPart], form: str, classes: Sequence[str]
) -> Mapping[str, int]:
    """Write `tracks.parquet` or `tracks.csv` from the predictions of all videos.

    Args:
        out: folder of the run of `jobs.predict`.
        parts: all videos.
        form: parquet or csv.
        classes: names of the classes.

    Returns:
        Numbers of `n` rows of predictions and `errors` among them, of `tracks` and of `unknown`
        ones, which have no class.
    """

    def read(part: VideoPart) -> tuple[int, int, list[dict[str, Any]]]:
        table = read_part(out / "predictions" / f"{part.name}.{form}")
        errors = len(table) - table["error"].null_count
        return len(table), errors, tracks_of(table, part, classes)

    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(read, parts))
    rows = [row for _, _, mine in found for row in mine]
    table = pa.Table.from_pylist(rows, SCHEMA)
    (out / f"tracks.{form}").write_bytes(encode(table, form))
    return {
        "n": sum(n for n, _, _ in found),
        "errors": sum(errors for _, errors, _ in found),
        "tracks": len(rows),
        "unknown": table["class"].null_count,
    }
