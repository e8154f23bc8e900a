"""Odd values and names through the manifest of the page: what is accepted is read and undone."""

import json
import math
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.page.rows import LONGEST, changed_row
from jobs.page.store import Store
from jobs.page.videos import Clip, find
from jobs.storage.location import Location, StorageError
from masking.manifest.faults import ManifestError
from masking.manifest.records import LONGEST_TEXT, MOST_COLUMNS
from masking.manifest.rows import given
from tests.jobs.page.rows import add, row

ENDINGS = (".csv", ".jsonl", ".parquet", ".CSV")
TEXTS = (
    "\r", "a\rb", "a\r\nb", "\n", "a\nb", ",", '"', '""', "'", ";", "\t", " x ", "\ufeff", "\u2028",
    "\x85", "\x1b[2J", "é", "日本", "=1+1", "NaN", "None", "null", "true", "1", "01", "1e5", "{}",
    "\\", "x" * LONGEST,
)  # fmt: skip
KEPT = (0, 1, -1, 2.5, 0.1, 1e300, 2**53 + 1, 2**63 - 1, True, None)
NESTED = (
    {"a": 1}, {"$parquet": "UEFSMQ=="}, {"$$parquet": 1}, {"$parquet": {"$parquet": 0}}, [], {},
    [1, "a"], [{"$parquet": "x"}], [[1], [2]],
)  # fmt: skip
NOWHERE = ("\0", "a\0b", "\ud800", "x\udfff", "x" * (LONGEST_TEXT + 1))
NAMES = (
    "note",
    "",
    " ",
    "a,b",
    '"',
    "\r",
    "\n",
    "\ufeff",
    "prompts",
    "x.1",
    "Unnamed: 0",
    "$parquet",
)


def texts(rows):
    """Return the meaning of rows: CSV gives back the text of a number, Parquet 1.0 for 1."""
    return [{k: meaning(v) for k, v in row.items() if given(v)} for row in rows]


def meaning(value):
    try:
        return str(value if isinstance(value, bool | list) else float(value))
    except (TypeError, ValueError):
        return str(value)


def reopened(store):
    store.close()
    return Store(store.path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_value_comes_back_in_every_format(tmp_path, ending):
    store = Store(tmp_path / f"m{ending}", [row(note="n")])
    columns = {f"note {number}": value for number, value in enumerate([*TEXTS, *KEPT])}
    add(store, "a", row(**columns), *(row(object_name=value) for value in [*TEXTS, *KEPT]))
    expected = store.rows("a")
    store = reopened(store)
    assert texts(store.rows("a")) == texts(expected)
    found = store.rows("a")[1]
    assert {name: str(found.get(name)) for name in columns} == {
        k: str(v) for k, v in columns.items()
    }
    store.undo("a", store.revision("a"))
    store = reopened(store)
    assert texts(store.rows("a")) == texts(expected[:1])


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_value_that_no_format_can_hold_is_refused_at_once(tmp_path, ending):
    store = Store(tmp_path / f"m{ending}", [row()])
    for value in NOWHERE:
        for column in ("object_name", "note"):
            with pytest.raises(ManifestError, match=r"object_name|note|a value"):
                add(store, "a", row(**{column: value}))
    assert len(reopened(store).rows("a")) == 1


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_objects_that_look_like_those_of_the_journal_are_only_values(tmp_path, ending):
    store = Store(tmp_path / f"m{ending}", [row(note={"$parquet": "UEFSMQ=="})])
    store.replace("a", store.revision("a"), [row()])
    store = reopened(store)
    store.undo("a", store.revision("a"))
    assert reopened(store).rows("a")[0]["note"] == {"$parquet": "UEFSMQ=="}


@pytest.mark.parametrize("number", range(25))
def test_any_rows_that_are_accepted_are_read_again_and_undone(tmp_path, number):
    """Random names of columns and values, in random order, three changes, then all undone."""
    random = Random(number)
    odd = (*TEXTS, *KEPT, *NESTED, *NOWHERE[:3], math.nan, math.inf, 2**63, 2**70, b"x", Decimal(2))

    def some(uri):
        found = row(uri=uri, video_id="a")
        for _ in range(random.choice([0, 1, 2])):
            found[random.choice([*NAMES, *row(), "object_name", "role"])] = random.choice(odd)
        return found | {"uri": uri, "video_id": "a"}

    uri = random.choice(["a.mp4", "a\rb.mp4", '\n,".mp4', "é\u2028.mp4"])
    path = tmp_path / f"m{random.choice(ENDINGS)}"
    try:
        store = Store(path, [some(uri)])
    except ManifestError:
        store = Store(path)
    states = [store.rows("a")]
    for _ in range(3):
        rows = [*store.rows("a"), some(uri)]
        random.shuffle(rows)
        with suppress(ManifestError):
            store.replace("a", store.revision("a"), rows)
            states.append(store.rows("a"))
    for expected in reversed(states):
        store = reopened(store)
        assert texts(store.rows("a")) == texts(expected)
        store.undo("a", store.revision("a"))


def test_columns_of_parquet_keep_their_types_and_their_place(tmp_path):
    when = datetime(2026, 1, 2, tzinfo=UTC)
    columns = {
        "uri": pa.array(["a.mp4"] * 2), "object_id": pa.array([1, 1], pa.int16()),
        "empty": pa.nulls(2), "frame": pa.array([0, 1], pa.int32()),
        "x": pa.array([1, 2], pa.float32()), "y": pa.array([1, 2]),
        "when": pa.array([None, when], pa.timestamp("ms", "UTC")),
        "price": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
        "kind": pa.array(["a", None]).dictionary_encode(),
        "tags": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        "blob": pa.array([b"\0\xff", None]),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    before = pq.read_table(tmp_path / "m.parquet")
    store = Store(tmp_path / "m.parquet")
    add(store, "a", {"uri": "a.mp4", "object_id": 1, "frame": 3, "x": 5, "y": 6})
    after = pq.read_table(tmp_path / "m.parquet")
    assert after.schema.types == before.schema.types
    assert after.column_names == before.column_names
    assert after.slice(0, 2).to_pylist() == before.to_pylist()
    add(store, "a", {"uri": "a.mp4", "object_id": 1, "frame": 3, "x": 0.1, "y": 6})
    assert pq.read_table(tmp_path / "m.parquet")["x"].to_pylist()[-1] == 0.1
    store.close()


def test_columns_that_are_empty_stay_in_a_csv(tmp_path):
    (tmp_path / "m.csv").write_text("uri,note,object_id,frame,x,y\na.mp4,,1,0,3,4\n")
    store = Store(tmp_path / "m.csv")
    add(store, "a", {"uri": "a.mp4", "object_id": 1, "frame": 1, "x": 3, "y": 4})
    assert (tmp_path / "m.csv").read_text().splitlines()[0] == "uri,note,object_id,frame,x,y"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_manifest_whose_last_click_is_deleted_is_read_again(tmp_path, ending):
    store = Store(tmp_path / f"m{ending}", [row()])
    store.replace("a", store.revision("a"), [])
    store = reopened(store)
    assert store.rows("a") == []
    store.undo("a", store.revision("a"))
    assert len(reopened(store).rows("a")) == 1


@pytest.mark.parametrize("ending", ENDINGS)
def test_more_columns_than_a_manifest_may_have_are_refused(tmp_path, ending):
    own = {f"own {number}": "x" for number in range(MOST_COLUMNS - len(row()))}
    store = Store(tmp_path / f"m{ending}", [row(**own)])
    with pytest.raises(ManifestError, match=f"of {MOST_COLUMNS + 1} columns"):
        add(store, "a", row(object_name="disc"))
    assert len(reopened(store).rows("a")) == 1


@pytest.mark.parametrize("ending", ENDINGS)
def test_videos_of_any_name_can_be_clicked(tmp_path, ending):
    names = ["a\rb", "\r", 'a"b', "a,b", "a\nb", " a ", "a;b", "=a", "\ufeffa", "~"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.mp4").touch()
    path = tmp_path / f"m{ending}"
    clips = find(str(tmp_path), path, None).clips
    assert {clip.place.local_path for clip in clips} == {
        tmp_path / name / f"{name}.mp4" for name in names
    }
    store = Store(path)
    for clip in clips:
        click = changed_row([], {"object_id": 1, "frame": 0, "x": 1, "y": 2}, clip)
        store.replace(clip.video_id, store.revision(clip.video_id), [click])
    store.close()
    assert find(str(path), path, None).clips == clips


@pytest.mark.parametrize(
    "value",
    [*NOWHERE, "x" * (LONGEST + 1), 2**63, -(2**70), math.inf, math.nan, True, [], {}, ["a"]],
    ids=lambda value: ascii(value)[:20],
)
def test_the_page_gives_cells_only_what_all_formats_hold(value):
    clip = Clip("a", "a.mp4", Location.parse("/a.mp4"))
    with pytest.raises(ValueError, match=r"object_name is .*expected a finite number of 64 bits"):
        changed_row([], {"object_id": 1, "frame": 0, "object_name": value}, clip)


ENTRY = {
    "kind": "edit", "video_id": "a", "at": 0, "removed": [], "added": [row()], "before": "",
    "after": "x",
}  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON", b"[]", b"7", b"{}", b"\xff", b'{"kind": "edit"}', b'{"$parquet": "x"}',
        b"[" * 9999,
        *(json.dumps(ENTRY | change).encode() for change in (
            {"at": -1}, {"at": "0"}, {"kind": 1}, {"kind": "x"}, {"added": [1]}, {"removed": {}},
            {"video_id": None}, {"more": 1}, {"added": [{"$parquet": "!"}]},
            {"added": [{"uri": {"$parquet": "UEFSMQ=="}}]}, {"added": [{"uri": {"$parquet": 3}}]},
            {"added": [{}]}, {"added": [row(x=-1)]}, {"added": [row(uri="b.mp4")]},
            {"added": [row(object_name="\0")]}, {"added": [row(object_name="\ud800")]},
        )),
    ],
    ids=lambda line: ascii(line)[:60],
)  # fmt: skip
def test_a_line_of_the_journal_that_is_unsound_is_said(tmp_path, line):
    (tmp_path / "m.csv.journal").write_bytes(line + b"\n")
    with pytest.raises(StorageError, match=r"m\.csv\.journal: line 1 .* Move this file away"):
        Store(tmp_path / "m.csv")
    (tmp_path / "m.csv.journal").unlink()
    Store(tmp_path / "m.csv").close()


def test_a_journal_that_is_no_file_is_said(tmp_path):
    (tmp_path / "m.csv.journal").mkdir()
    with pytest.raises(StorageError, match=r"cannot open .*m\.csv\.journal"):
        Store(tmp_path / "m.csv")
    (tmp_path / "n.csv").mkdir()
    with pytest.raises(StorageError, match=r"cannot read .*n\.csv"):
        Store(tmp_path / "n.csv")
    with pytest.raises(StorageError, match=r"cannot open .*File name too long"):
        Store(tmp_path / f"{'n' * 300}.csv")
