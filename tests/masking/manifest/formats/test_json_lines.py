"""JSON lines: faults name the line."""

import json

import pytest

from masking.manifest.faults import ManifestError
from masking.manifest.formats.read import parse_table
from masking.manifest.table import read_manifest

ROW = {"uri": "a.mp4", "object_id": 1, "frame": 0, "x": 20, "y": 30}


def lines(*rows):
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


def refused(*rows):
    with pytest.raises(ManifestError) as error:
        parse_table("m.jsonl", lines(*rows))
    return [str(fault) for fault in error.value.faults]


def test_every_faulty_line_is_named():
    found = refused(ROW, "{broken", "", "7", '{"x": 1, "x": 2}', {"prompts": [3]}, {"prompts": 5})
    assert [message.split(";")[0] for message in found] == [
        "line 2: the line is not JSON: Expecting property name enclosed in double quotes at"
        " character 2",
        "line 4: the line is '7', not an object",
        "line 5: column x is there twice",
        "line 6: prompts is [3]",
        "line 7: prompts is 5",
    ]


def test_faults_of_rows_name_line_and_prompt():
    nested = {
        "uri": "b.mp4",
        "prompts": [{"object_id": 1, "frame": 0, "x": 1, "y": y} for y in (1, -1)],
    }
    table = parse_table("m.JSONL", lines(ROW, "", ROW | {"x": -1}, nested, {"object_id": 1}))
    sound, faulty, loose = read_manifest(table)
    assert str(faulty["a"][0]).startswith("line 3: x is -1; expected a number from 0")
    assert str(faulty["b"][0]).startswith("line 4, prompt 2: y is -1; expected a number from 0")
    assert [str(fault) for fault in loose] == [
        "line 5: uri is empty; expected a video file or a folder of frames"
    ]
    assert sound == []


@pytest.mark.parametrize("name", ["Prompts", "prompt", "Label"])
def test_a_name_nearly_right_is_refused(name):
    (message,) = refused(ROW, ROW | {name: 0})
    assert message.startswith(f"line 2: the name of a column is {name!r}; expected")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "line 1: the line is too deep; expected at most 16 levels"),
        ('{"x": ' + "9" * 5000 + "}", "line 1: the line is with a number too long to read"),
        ({"notes": eval("[" * 20 + "]" * 20)}, "line 1: notes is too deep; expected at most 16"),
        ({"notes": "a" * 140_000}, "line 1: notes is a text of 140,000 characters; expected up to"),
        ({f"c{i}": 1 for i in range(300)}, "the table is of 300 columns; expected at most 256"),
    ],
)  # fmt: skip
def test_what_is_too_large_is_refused(line, message):
    assert refused(line)[0].startswith(message)


def test_many_prompts_of_a_wide_video_are_refused_before_they_are_rows():
    wide = {f"c{i}": 0 for i in range(250)}
    with pytest.raises(ManifestError, match=r"cells in a file of .* bytes; expected at most"):
        parse_table("m.jsonl", json.dumps(wide | {"prompts": [{}] * 50_000}).encode())


def test_encodings_are_those_of_csv():
    for encoding in ("utf-8-sig", "utf-16"):
        text = lines(ROW).decode()
        assert parse_table("m.ndjson", text.encode(encoding)).records == [ROW]


def test_nan_is_an_empty_cell_and_other_odd_values_are_faults():
    odd = ["Infinity", "-1e999", "1e400", "9" * 400, "true", '"1_0"', "[1]", "{}", '"a"']
    rows = [lines(ROW | {"frame": 1}).decode().replace('"x": 20', f'"x": {value}') for value in odd]
    table = parse_table("m.jsonl", lines(*rows, ROW | {"until": float("nan")}))
    _, faulty, _ = read_manifest(table)
    assert [fault.place for fault in faulty["a"]] == [f"line {n}" for n in range(1, len(odd) + 1)]
    assert {fault.column for fault in faulty["a"]} == {"x"}
