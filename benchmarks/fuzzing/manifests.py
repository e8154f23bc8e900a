"""Manifests in CSV, JSON lines and Parquet: nearly valid ones, odd values, and changed bytes."""

import csv
import io
import json
from collections.abc import Callable
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.masks.plan import VideoWork, plan_batch
from jobs.page.formats import read_records
from jobs.run.config import ConfigError
from jobs.storage.location import StorageError
from masking.manifest.faults import ManifestError
from masking.manifest.plans import resolve
from masking.manifest.rows import COLUMNS

REFUSALS = (ManifestError, ConfigError, StorageError)
_VIDEOS = ("a.mp4", "b/c.mov", "d?.mp4", "é.mkv")
_NAMES = (
    *COLUMNS, "notes", "prompts", "Label", "labels", "startframe", "", " x", "x" * 300, "\ud800",
    "a\0b", "Unnamed: 0", "__index_level_0__", "object_id\u200b", "7", "é", "video_id.1", "'", '"',
)  # fmt: skip
_ODD: tuple[Any, ...] = (
    None, "", " ", 0, 1, -1, 2, 0.5, 1.0, 1e308, 1e400, -0.0, float("nan"), 2**31, 2**53 + 1, 2**63,
    2**64, 10**400, True, False, "1", "1.0", "-3", "1e5", "1e999", "inf", "nan", "NaN", "null",
    "1_0", "40,5", "1,234", "\u0661", "0x10", "positive", "Negative", "box", "point", "accept",
    "correct", "end", "absent", "init", "normalized", "pixel", "a\0b", "a\nb", "a\rb", "\x1b[31m",
    "\ud800", "a" * 5000, "/" * 300, "../../etc/passwd",
    "s3://b/v.mp4?endpoint_override=127.0.0.1:1", "s3://", "s3://b//v", "gs://b/v", "file:///a%00",
    "~", "~/x", "loop", "a.mp4", "b/c.mov", ".patchray-x", "p", "p.parquet/q", "uri", "object_id",
    [], [1], {}, {"a": [1, {}]}, "[]", "=cmd()", "é", "e\u0301", "😀", Decimal("1.5"),
    Decimal(10) ** 40, b"\xff", b"a.mp4", date(1, 1, 1), time(1), timedelta(1),
)  # fmt: skip
_TYPES = (
    pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.string(), pa.large_string(), pa.binary(),
    pa.bool_(), pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("ns", "UTC"),
    pa.duration("us"), pa.time64("ns"), pa.decimal128(38, 5), pa.null(), pa.list_(pa.int8()),
    pa.dictionary(pa.int8(), pa.string()), pa.struct([("a", pa.int8())]), pa.binary(4),
    pa.map_(pa.string(), pa.int8()), pa.list_(pa.dictionary(pa.int32(), pa.string())),
)  # fmt: skip
Row = dict[str, Any]


def attempt(random: Random, folder: Path) -> object:
    """Write a manifest as a person or a program may, and read it as `jobs.mask` and the page do."""
    for video in _VIDEOS:
        (folder / video).parent.mkdir(exist_ok=True)
        (folder / video).write_bytes(b"a film, which nobody opens here")
    (folder / "loop").symlink_to("loop")
    rows = _rows(random)
    name, write = random.choice(_FORMATS)
    content = write(random, rows)
    if random.random() < 0.3:
        content = _changed(random, content)
    path = folder / name
    path.write_bytes(content)
    plan = plan_batch([str(path)], random.choice([None, None, str(folder)]), "settings")
    shown = read_records(name, content)
    resolved = [_resolve(random, work) for work in plan.work]
    if plan.faults:
        raise ConfigError("\n".join(plan.faults))
    return len(shown), resolved


def _resolve(random: Random, work: VideoWork) -> object:
    """Fit the prompts to a short video, as its worker does."""
    again = VideoWork.from_json(work.to_json())
    if repr(again) != repr(work):
        raise AssertionError(f"{again} is not {work}")
    clocks: list[list[float | None]] = [[0, 0.04, 0.08], [0, 0.001, 0.002], [None, None, None]]
    times = random.choice(clocks)
    return resolve(again.rows, (48, 64), times, random.random() < 0.5)


def _rows(random: Random) -> list[Row]:
    """Return rows of which most are sound."""
    rows: list[Row] = []
    for _ in range(random.choice([0, 1, 1, 2, 2, 3, 3, 5, 20])):
        row: Row = {
            "uri": random.choice([*_VIDEOS, "a.mp4", "a.mp4"]), "object_id": random.randint(1, 3),
            "frame": random.randint(0, 2), "x": random.randint(0, 54), "y": random.randint(0, 38),
            "label": int(random.random() < 0.9),
        }  # fmt: skip
        if random.random() < 0.2:
            row |= {"x2": row["x"] + 9, "y2": row["y"] + 9, "label": 1}
        if random.random() < 0.2:
            row |= {"time_s": row.pop("frame") * 0.04}
        rows.append(row)
    for _ in range(random.choice([0, 0, 0, 1, 1, 3])):
        if rows:
            random.choice(rows)[random.choice(_NAMES)] = random.choice(_ODD)
    if random.random() < 0.1:
        name, odd = random.choice([*COLUMNS]), random.choice(_ODD)
        rows = [row | {name: odd} for row in rows]
    return rows


def _columns(random: Random, rows: list[Row]) -> list[str]:
    columns = [*dict.fromkeys(name for row in rows for name in row)] or [*COLUMNS][:6]
    if random.random() < 0.05:
        columns.insert(random.randrange(len(columns) + 1), random.choice(columns))
    if random.random() < 0.05:
        columns.pop(random.randrange(len(columns)))
    if random.random() < 0.02:
        columns += [f"c{i}" for i in range(random.choice([10, 1000, 20_000]))]
    return columns


def _csv(random: Random, rows: list[Row]) -> bytes:
    columns = _columns(random, rows)
    text = io.StringIO(newline="")
    writer = csv.writer(
        text,
        delimiter=random.choice(",,,;\t|"),
        lineterminator=random.choice(["\n", "\r\n", "\r"]),
        quoting=random.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    )
    writer.writerow(columns)
    comma = random.random() < 0.1
    for row in rows:
        cells = ["" if row.get(name) is None else str(row[name]) for name in columns]
        writer.writerow([cell.replace(".", ",") if comma else cell for cell in cells])
        if random.random() < 0.05:
            writer.writerow(random.choice([[], [""], columns, [*cells, "1"], cells[:2]]))
    if random.random() < 0.02:
        text.write("\n" * 50_000)
    return _encoded(random, text.getvalue())


def _json_lines(random: Random, rows: list[Row]) -> bytes:
    lines = []
    for row in rows:
        value: Any = row
        if random.random() < 0.2:
            clicks = [{k: v for k, v in row.items() if k != "uri"}] * random.choice([0, 1, 3])
            value = {"uri": row["uri"], "prompts": clicks}
        line = json.dumps(value, default=str, ensure_ascii=random.random() < 0.7)
        if random.random() < 0.05:
            line = random.choice(
                ["", "7", "[]", "null", "NaN", "{}", line[:-2], line + ",", "[" * 5000,
                 line.replace(":", "::"), line[:-1] + ', "x": 1}', '{"x": ' + "9" * 5000 + "}",
                 '{"prompts": 1}', '{"uri": "a", "prompts": [' + "{}," * 3000 + "{}]}"]
            )  # fmt: skip
        lines.append(line)
    return _encoded(random, "\n".join(lines))


def _parquet(random: Random, rows: list[Row]) -> bytes:
    columns = _columns(random, rows)[:400]
    arrays = [_array(random, [row.get(name) for row in rows]) for name in columns]
    names = [name.encode(errors="replace").decode() for name in columns]
    file = io.BytesIO()
    try:
        pq.write_table(
            pa.Table.from_arrays(arrays, names=names), file,
            compression=random.choice(["none", "snappy", "zstd", "gzip"]),
            use_dictionary=random.random() < 0.5, version=random.choice(["1.0", "2.6"]),
            row_group_size=random.choice([1, 100]),
        )  # fmt: skip
    except (pa.ArrowException, OSError):  # a type that Parquet cannot hold
        return b"PAR1"
    return file.getvalue()


def _array(random: Random, values: list[Any]) -> pa.Array:
    """Return a column of the values' own type, mostly; one of another type holds any values."""
    if random.random() < 0.03:
        kind = random.choice(_TYPES)
        try:
            if pa.types.is_temporal(kind):  # among them times that Python cannot hold
                bits = pa.int32() if kind.bit_width == 32 else pa.int64()
                most = 2 ** random.choice([20, 31 if kind.bit_width == 32 else 62])
                return pa.array([random.randrange(-most, most) for _ in values], bits).cast(kind)
            return pa.array(values, kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return pa.nulls(len(values), kind)
    if random.random() < 0.01:
        return pa.array([["a" * 500] * random.choice([1, 2000]) for _ in values])
    if random.random() < 0.01:
        texts = ["a" * random.choice([1000, 2_000_000]) for _ in values[:5]]
        return pa.array(texts + [None] * len(values[5:]), pa.string())
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.array([None if value is None else ascii(value) for value in values], pa.string())


def _encoded(random: Random, text: str) -> bytes:
    kinds = ["utf-8"] * 12 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
    errors = random.choice(["surrogatepass", "replace"])
    try:
        return text.encode(random.choice(kinds), errors)
    except UnicodeEncodeError:  # cp1252 has no surrogates
        return text.encode("utf-8", "replace")


def _changed(random: Random, content: bytes) -> bytes:
    """Return content with some bytes changed, removed, doubled or cut off."""
    data = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 5, 20])):
        if not data:
            break
        place = random.randrange(len(data))
        match random.randrange(5):
            case 0:
                data[place] ^= 1 << random.randrange(8)
            case 1:
                data[place] = random.choice([0, 10, 13, 34, 44, 59, 92, 128, 255])
            case 2:
                del data[place : place + random.choice([1, 2, 50])]
            case 3:
                data[place:place] = data[place : place + random.choice([1, 4, 200])]
            case _:
                del data[place:]
    return bytes(data)


_FORMATS: tuple[tuple[str, Callable[[Random, list[Row]], bytes]], ...] = (
    ("m.csv", _csv), ("m.CSV", _csv), ("m.jsonl", _json_lines), ("m.ndjson", _json_lines),
    ("m.parquet", _parquet), ("m.Parquet", _parquet),
)  # fmt: skip
