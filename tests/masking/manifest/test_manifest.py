"""Tables of many videos: formats, names of videos, faults by row."""

import io
import json
import pickle

import pandas as pd
import pytest

from masking.manifest.faults import Fault, ManifestError
from masking.manifest.formats.read import parse_table
from masking.manifest.records import Table
from masking.manifest.table import default_id, read_manifest

ROWS = [
    {"uri": "a.mp4", "object_id": 1, "frame": 0, "x": 20, "y": 30.5, "label": 1, "camera": "north"},
    {"uri": "a.mp4", "object_id": 1, "frame": 0, "x": 25, "y": 31, "label": 0, "camera": "north"},
    {"uri": "s3://bucket/b/c.mov", "object_id": 2, "frame": 4, "x": 1, "y": 2, "label": 1},
]


def written(kind):
    table, file = pd.DataFrame(ROWS), io.BytesIO()
    if kind == "csv":
        table.to_csv(file, index=False)
    elif kind == "parquet":
        table.to_parquet(file)
    elif kind == "jsonl":
        return "\n".join(json.dumps(row) for row in ROWS).encode()
    else:
        clicks = [{k: v for k, v in row.items() if k != "uri"} for row in ROWS]
        lines = [
            {"uri": "a.mp4", "prompts": clicks[:2]},
            {"uri": ROWS[2]["uri"], "prompts": clicks[2:]},
        ]
        return "\n\n".join(json.dumps(line) for line in lines).encode()
    return file.getvalue()


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl", "nested"])
def test_every_format_says_the_same(kind):
    name = {"csv": "m.csv", "parquet": "m.parquet"}.get(kind, "m.jsonl")
    sound, faulty, loose = read_manifest(parse_table(name, written(kind)))
    assert (faulty, loose) == ({}, [])
    assert [video.video_id for video in sound] == ["a", "bucket/b/c"]
    assert [row.xy for row in sound[0].rows] == [(20, 30.5), (25, 31)]
    assert [row.label for row in sound[0].rows] == [1, 0]
    assert sound[1].rows[0].frame == 4
    assert sound[0].extra == {"camera": "north"}
    assert sound[1].extra == {}


def test_ids_that_some_rows_lack_stay_whole():
    rows = [dict(ROWS[0], video_id=7, frame=2**53 + 1), dict(ROWS[2])]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    file = io.BytesIO()
    frame = pd.DataFrame(rows).astype({"video_id": "Int64"})
    frame.to_parquet(file)
    for name, content in (("m.jsonl", lines.encode("utf-8-sig")), ("m.parquet", file.getvalue())):
        sound, faulty, loose = read_manifest(parse_table(name, content))
        assert (faulty, loose) == ({}, [])
        assert [video.video_id for video in sound] == ["7", "bucket/b/c"]


def test_text_that_resembles_the_end_of_a_line_is_none():
    line = json.dumps(dict(ROWS[0], camera="north\u2028east"), ensure_ascii=False)
    (video,), _, _ = read_manifest(parse_table("m.jsonl", line.encode()))
    assert video.extra == {"camera": "north\u2028east"}


def test_a_video_without_prompts_is_a_fault():
    lines = json.dumps({"uri": "b.mp4", "prompts": []}) + "\n" + json.dumps(ROWS[0])
    sound, faulty, _ = read_manifest(parse_table("m.jsonl", lines.encode()))
    assert [video.video_id for video in sound] == ["a"]
    assert "object_id is empty" in str(faulty["b"][0])


def test_a_trailing_comma_shifts_nothing():
    content = b"uri,object_id,frame,x,y\na.mp4,1,0,20,30,\n"
    (video,), _, _ = read_manifest(parse_table("m.csv", content))
    assert (video.uri, video.rows[0].xy) == ("a.mp4", (20, 30))


def test_an_id_that_no_disk_takes_as_a_name():
    _, _, loose = read_manifest(Table.of([ROWS[0] | {"uri": "clips/" + "長" * 83 + ".mp4"}]))
    assert "expected names of up to 247 bytes; a column video_id can give" in str(loose[0])


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("clips/a.mp4", "clips/a"), ("/data/a.b.mp4", "data/a.b"), ("s3://b/x/y.mov", "b/x/y"),
        ("../up/frames/", "up/frames"), ("no_ending", "no_ending"), ("v1.2/frames", "v1.2/frames"),
    ],
)  # fmt: skip
def test_a_video_is_called_after_its_uri(uri, name):
    assert default_id(uri) == name


def test_faults_of_a_video_do_not_touch_the_others():
    rows = [*ROWS, {"uri": "d.mp4", "object_id": 1, "frame": 0, "x": -4, "y": 2}]
    rows += [{"uri": "d.mp4", "object_id": 0, "frame": 0, "x": 4, "y": 2}]
    sound, faulty, loose = read_manifest(Table.of(rows))
    assert [video.video_id for video in sound] == ["a", "bucket/b/c"]
    assert [str(fault) for fault in faulty["d"]] == [
        "row 4: x is -4; expected a number from 0",
        "row 5: object_id is 0; expected a number from 1",
    ]
    assert loose == []


def test_names_that_collide_or_lead_out():
    rows = [
        {"uri": "a.mp4", "object_id": 1, "frame": 0, "x": 1, "y": 1},
        {"uri": "a.mov", "object_id": 1, "frame": 0, "x": 1, "y": 1},
        {"uri": "a.mp4", "object_id": 1, "frame": 0, "x": 2, "y": 1},
        {"uri": "b.mp4", "object_id": 1, "frame": 0, "x": 1, "y": 1, "video_id": "../b"},
        {"uri": "", "object_id": 1, "frame": 0, "x": 1, "y": 1},
    ]
    sound, faulty, loose = read_manifest(Table.of(rows))
    assert sound == []
    assert [str(fault) for fault in faulty["a"]] == [
        "row 2: uri is 'a.mov'; expected a.mp4, as in the first row of video_id a; give another"
        " video another video_id in a column of that name"
    ]
    assert [fault.row for fault in loose] == [4, 5]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "m.jsonl",
            b'{"uri": "a"}\n{broken',
            "line 2: the line is not JSON: Expecting property name",
        ),
        ("m.jsonl", b"[1, 2]", "line 1: the line is '.1, 2.', not an object; expected a"),
        ("m.parquet", b"PAR1", "m.parquet is unreadable"),
        ("m.csv", b"", "the table is empty; expected a row for each click, with"),
        ("m.xlsx", b"", "m.xlsx is of an unknown kind"),
    ],
)
def test_a_table_that_does_not_read(name, content, message):
    with pytest.raises(ManifestError, match=message):
        parse_table(name, content)


def test_a_column_of_lists_travels_along():
    file = io.BytesIO()
    pd.DataFrame([ROWS[0]]).assign(tags=[["a", "b"]]).to_parquet(file)
    sound, _, _ = read_manifest(parse_table("m.parquet", file.getvalue()))
    assert sound[0].extra["tags"] == "['a', 'b']"


def test_a_table_without_its_columns():
    _, _, loose = read_manifest(Table.of([{"x": 1}]))
    assert str(loose[0]).startswith(
        "the table is without uri and object_id; its columns are 'x'; expected a row for"
    )


def test_a_row_with_a_comma_too_many_is_named():
    content = b"uri,object_id,frame,x,y\na.mp4,1,0,10,20\n\na.mp4,1,0,10,5,20\n"
    with pytest.raises(ManifestError) as error:
        parse_table("m.csv", content)
    (fault,) = error.value.faults
    assert str(fault).startswith("row 3: the row is of 6 values; expected 5, as in the header")


def test_rows_count_as_a_spreadsheet_counts_them():
    content = b"uri,object_id,frame,x,y\n\na.mp4,1,0,10,20\n,,,,\na.mp4,0,0,1,1\n\n"
    sound, faulty, loose = read_manifest(parse_table("m.csv", content))
    assert (sound, loose) == ([], [])
    assert [str(fault) for fault in faulty["a"]] == [
        "row 4: object_id is '0'; expected a number from 1"
    ]


def test_text_that_utf8_cannot_hold_is_a_fault_of_its_row():
    line = json.dumps(dict(ROWS[0], uri="\ud800.mp4"))
    _, _, (fault,) = read_manifest(parse_table("m.jsonl", line.encode()))
    assert str(fault) == "line 1: uri is '\\ud800.mp4'; expected text that UTF-8 can encode"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"uri": "a\0b.mp4"},
            "row 1: uri is 'a\\x00b.mp4'; expected text without the character NUL",
        ),
        ({"video_id": "a\0b"}, "row 1: video_id is 'a\\x00b'; expected text without the character"),
        (
            {"uri": "a/" * 2500 + "b.mp4"},
            "row 1: uri is of 5,005 bytes; expected a path of up to 4,0",
        ),
        ({"video_id": "/".join(["name"] * 200)}, "row 1: video_id is of 999 bytes; expected up to"),
        ({"uri": 7}, "row 1: uri is 7; expected a text, the path of a video"),
        ({"uri": ["a.mp4"]}, "row 1: uri is ['a.mp4']; expected a text"),
        ({"video_id": {"a": 1}}, "row 1: video_id is {'a': 1}; expected a text"),
    ],
)
def test_names_that_no_video_has(changes, message):
    sound, faulty, (fault,) = read_manifest(Table.of([ROWS[0] | changes, ROWS[2]]))
    assert str(fault).startswith(message)
    assert [video.video_id for video in sound] == ["bucket/b/c"]
    assert faulty == {}


def test_text_of_ones_own_that_no_table_takes():
    _, faulty, _ = read_manifest(Table.of([ROWS[0] | {"camera": "\ud800"}]))
    assert str(faulty["a"][0]) == "row 1: camera is '\\ud800'; expected text that UTF-8 can encode"


def test_faults_travel_between_processes_and_do_not_move_a_cursor():
    error = ManifestError([Fault(1, "\x1b[2J", "\ud800", "a"), Fault(2, "x", "Straße\n", "b")])
    assert (
        str(pickle.loads(pickle.dumps(error)))
        == str(error)
        == ("row 1: \\x1b[2J is \\ud800; expected a\nrow 2: x is Straße\\n; expected b")
    )
