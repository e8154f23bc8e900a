"""CSV as spreadsheets of all countries write it."""

import pytest

from masking.manifest.faults import ManifestError
from masking.manifest.formats.read import parse_table

HEADER = "uri,object_id,frame,x,y,label"
ROW = {"uri": "a.mp4", "object_id": "1", "frame": "0", "x": "40.5", "y": "52.25", "label": "1"}


def read(content, name="clicks.csv"):
    return [*parse_table(name, content if isinstance(content, bytes) else content.encode()).records]


def refused(content, name="clicks.csv"):
    with pytest.raises(ManifestError) as error:
        read(content, name)
    return str(error.value)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_what_parts_the_columns_and_how_it_is_encoded_is_seen(delimiter, encoding, newline):
    lines = [HEADER + ",notes", "a.mp4,1,0,40.5,52.25,1,Straße"]
    text = newline.join(lines).replace(",", delimiter) + newline
    assert read(text.encode(encoding)) == [ROW | {"notes": "Straße"}]


@pytest.mark.parametrize("name", ["CLICKS.CSV", "a.Csv"])
def test_endings_in_capitals(name):
    assert read(f"{HEADER}\na.mp4,1,0,40.5,52.25,1\n", name) == [ROW]


def test_a_first_line_for_excel_is_none_of_the_table():
    assert read(f"sep=;\r\n{HEADER}\r\na.mp4,1,0,40.5,52.25,1".replace(",", ";")) == [ROW]


@pytest.mark.parametrize(
    "line", ["a.mp4;1;0;40,5;52,25;1", "a.mp4;1;0;40,5;52,25;1,0", "a.mp4\t1\t0\t40,5\t52,25\t1",
             'a.mp4,1,0,"40,5","52,25",1'],
)  # fmt: skip
def test_decimal_commas(line):
    header = HEADER if '"' in line else HEADER.replace(",", line[5])
    (row,) = read(f"{header}\n{line}\n")
    assert (row["x"], row["y"]) == ("40.5", "52.25")


@pytest.mark.parametrize("line", ["a.mp4;1;0;1,234;52;1", "a.mp4;1;0;1.5;52,5;1"])
def test_commas_that_may_mean_thousands_stay(line):
    (row,) = read(f"{HEADER.replace(',', ';')}\n{line}\n")
    assert [row["x"], row["y"]] == line.split(";")[3:5]


def test_commas_in_text_stay():
    (row,) = read(f"{HEADER};object_name\n".replace(",", ";") + "a,b.mp4;1;0;1,5;2;1;dog, big\n")
    assert (row["uri"], row["object_name"], row["x"]) == ("a,b.mp4", "dog, big", "1.5")


def test_another_encoding_is_named_with_the_line():
    content = f"{HEADER},object_name\na.mp4,1,0,1,1,1,dog\na.mp4,2,0,1,1,1,Straße\n".encode(
        "cp1252"
    )
    message = refused(content)
    assert message.startswith("clicks.csv is not in UTF-8: line 3 has the byte 0xdf (in Windows-12")
    assert "Straße" in message
    assert message.endswith("expected UTF-8; in Excel, save it as CSV UTF-8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04rest", "clicks.csv is an Excel workbook or another ZIP archive; exp"),
        (b"PAR1rest", "clicks.csv is a Parquet file"),
        ("\ufeffuri;object_id".encode("utf-16-le")[:-1], "clicks.csv is damaged: it begins as U"),
        (f"{HEADER},label\n", "column label is there 2 times; expected each column once"),
        ("uri;Object_ID;frame\na;1;0\n", "the name of a column is 'Object_ID'; expected object_id"),
        (f"{HEADER}\n\"a.mp4,1,0,1,1,1\nb.mp4,1,0,1,1,1\n", "line 2: a value is broken: unexp"),
        (f"{HEADER}\na.mp4,1,0,1,1,1,5\n", "row 1: the row is of 7 values; expected 6"),
        (f"{HEADER}\na.mp4,1,0,1,1,1\n{HEADER}\n", "row 2: the row is a second header"),
        ("uri,object_id,frame,y,x\na,1,0,1\nuri,frame,object_id,x,y\n", "row 2: the row is a sec"),
        ("\n\n", "the table is empty"),
        (",,\na,b,c\n", "the table is without names in its first line"),
        (f"{HEADER}," + ",".join(f"c{i}" for i in range(300)), "the table is of 306 columns"),
        (f"{HEADER}\n{'a' * 140_000},1,0,1,1,1\n", "line 2: a value is broken: field larger than"),
    ],
)  # fmt: skip
def test_what_is_no_such_table_is_named(content, message):
    assert refused(content).startswith(message)


def test_columns_of_ones_own_that_are_there_twice_are_kept():
    (row,) = read(f"{HEADER},notes,notes,\na.mp4,1,0,40.5,52.25,1,a,b,c\n")
    assert row == ROW | {"notes": "a", "notes.1": "b", "Unnamed: 8": "c"}


def test_blank_lines_are_one_row_in_memory():
    records = read(HEADER + "\n" * 100_000)
    assert len(records) == 99_999
    assert len({id(record) for record in records}) == 1
