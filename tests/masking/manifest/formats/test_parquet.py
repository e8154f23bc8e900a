"""Parquet of all types, and files that are larger than they look."""

import datetime
import decimal
import io
import tracemalloc
from contextlib import suppress

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from masking.images.pages import chunks, sizes
from masking.manifest.faults import ManifestError
from masking.manifest.formats.read import parse_table
from masking.manifest.table import read_manifest

ROW = {"uri": "a.mp4", "object_id": 1, "frame": 0, "x": 20.5, "y": 30}


def written(columns, **options):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def one_row(**more):
    return {name: [value] for name, value in ROW.items()} | more


def refused(content):
    with pytest.raises(ManifestError) as error:
        parse_table("m.parquet", content)
    return str(error.value)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (pa.array([decimal.Decimal("1.50")]), "1.50"),
        (pa.array([b"\xff\0"]), "b'\\xff\\x00'"),
        (pa.array([["a", "b"]]), "['a', 'b']"),
        (pa.array([{"a": 1, "b": ["x"]}]), "{'a': 1, 'b': ['x']}"),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())), "[('k', 1)]"),
        (pa.array([np.float16(1.5)]), "1.5"),
        (pa.array([2**50]).cast(pa.timestamp("s")), "<value out of range: 1125899906842624000>"),
        (pa.array([2**31 - 1], pa.int32()).cast(pa.date32()), "<value out of range: 2147483647>"),
        (pa.array([2**62]).cast(pa.duration("ms")), "4611686018427387904"),
        (pa.array([datetime.time(1, 2)]), "01:02:00"),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        (pa.array([b"0123456789abcdef"], pa.binary(16)), "b'0123456789abcdef'"),
        (pa.array([True]), "True"),
    ],
    ids=str,
)  # fmt: skip
def test_columns_of_ones_own_may_have_any_type(values, text):
    content = written(one_row(own=values))
    (video,), _, _ = read_manifest(parse_table("m.parquet", content))
    assert video.extra == {"own": text}
    assert video.rows[0].xy == (20.5, 30)


def test_text_that_is_stored_as_bytes_and_numbers_of_any_type():
    columns = one_row(
        uri=[b"a.mp4"], object_id=pa.array([1], pa.uint8()), x=pa.array([decimal.Decimal("20.5")])
    )
    (video,), _, _ = read_manifest(parse_table("M.PARQUET", written(columns)))
    assert (video.uri, video.rows[0].xy) == ("a.mp4", (20.5, 30))


@pytest.mark.parametrize("column", ["frame", "time_s", "x", "role", "uri", "video_id", "object_id"])
@pytest.mark.parametrize(
    "values",
    [
        pa.array([2**50]).cast(pa.timestamp("s")), pa.array([["a"]]), pa.array([{"a": 1}]),
        pa.array([datetime.timedelta(1)]), pa.array([b"\xff"]), pa.array([True]),
        pa.array([2**64 - 1], pa.uint64()), pa.array([float("inf")]), pa.array(["a\0b"]),
    ],
    ids=lambda values: str(values.type),
)  # fmt: skip
def test_a_column_of_a_wrong_type_is_a_fault(column, values):
    content = written(one_row(**{column: values}))
    sound, faulty, loose = read_manifest(parse_table("m.parquet", content))
    if column in ("uri", "video_id") and sound:  # of a number, or a time beyond Python's, its text
        assert sound[0].video_id in (
            "<value out of range: 1125899906842624000>",
            "inf",
            str(2**64 - 1),
        )
        return
    assert faulty or loose


def test_the_index_that_pandas_writes_is_no_column():
    file = io.BytesIO()
    pd.DataFrame([ROW, ROW], index=[5, 9]).to_parquet(file)
    assert parse_table("m.parquet", file.getvalue()).columns == [*ROW]


def test_a_column_twice():
    table = pa.table([["a.mp4"], [1], [2]], names=["uri", "x", "x"])
    assert refused(written(table)) == "column x is there 2 times; expected each column once"


def nested(levels):
    kind = pa.int8()
    for _ in range(levels):
        kind = pa.struct([("a", kind)])
    return pa.nulls(1, kind)


TAGS = pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int32()), ["a" * 9_000])
BOMBS = {
    "cell": (lambda: one_row(notes=["a" * 75_000_000]), "MB, uncompressed"),
    "rows": (lambda: {"uri": pa.nulls(3_000_000)}, "of 3,000,000 cells"),
    "list": (lambda: one_row(own=pa.array([[1] * 3_000_000])), "cells in a file of"),
    "columns": (lambda: one_row(**{f"c{i}": [1] for i in range(300)}), "of 305 columns"),
    "tags": (lambda: one_row(own=pa.ListArray.from_arrays([0, 50_000], TAGS)), "MB, uncompressed"),
    "nested": (lambda: one_row(own=nested(40)), "nested in 40 levels"),
    "text": (lambda: one_row(notes=["a" * 200_000]), "a text of 200,000 bytes"),
}
"""Columns of small files that become large, and what their refusal says."""


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_do_not_become_large(name):
    columns, message = BOMBS[name]
    content = written(columns(), compression="zstd", write_statistics=False)
    assert len(content) < 200_000
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        assert message in refused(content)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert pa.total_allocated_bytes() - before < 20e6


def test_text_that_is_repeated_is_in_memory_once():
    indices = pa.array([0] * 100_000, pa.int32())
    notes = pa.DictionaryArray.from_arrays(indices, ["a" * 20_000])
    content = written({name: [value] * 100_000 for name, value in ROW.items()} | {"notes": notes})
    records = parse_table("m.parquet", content).records
    assert len({id(record["notes"]) for record in records}) == 1


def test_a_file_that_is_cut_off_or_garbled():
    content = written(one_row())
    assert "m.parquet is unreadable" in refused(content[:-9])
    assert "m.parquet is unreadable" in refused(content[: len(content) // 2] + content[-8:])


def varint(number):
    """A whole number as Thrift writes it."""
    number, found = number << 1, []
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def test_a_description_that_says_less_than_the_pages_hold():
    notes = ["a" * 75_000_000]
    content = written(one_row(notes=notes), compression="zstd", use_dictionary=False,
                      write_statistics=False)  # fmt: skip
    column = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).column(5)
    true = varint(column.total_uncompressed_size)
    assert content.count(true) >= 1
    untrue = bytes([130, *[128] * (len(true) - 2), 0])
    content = content.replace(true, untrue)
    column = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).column(5)
    assert column.total_uncompressed_size == 1
    before = pa.total_allocated_bytes()
    assert "MB, uncompressed" in refused(content)
    assert pa.total_allocated_bytes() - before < 20e6


@pytest.mark.parametrize("compression", ["none", "zstd", "snappy"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_pages_of_sound_files_are_counted(compression, version, dictionary):
    columns = {
        "a": [f"x{i % 7}" for i in range(5000)], "b": range(5000), "c": [[1, 2, None]] * 5000,
        "d": [None] * 5000, "e": [{"x": 1.5}] * 5000,
    }  # fmt: skip
    content = written(
        {name: pa.array(values) for name, values in columns.items()}, compression=compression,
        data_page_version=version, use_dictionary=dictionary, data_page_size=1000,
        write_page_index=dictionary, write_page_checksum=dictionary, row_group_size=3000,
    )  # fmt: skip
    file = io.BytesIO(content)
    meta, found = pq.ParquetFile(io.BytesIO(content)).metadata, chunks(file)
    assert len(found) == meta.num_row_groups
    for group in range(meta.num_row_groups):
        for number in range(meta.num_columns):
            chunk, expected = found[group][number], meta.row_group(group).column(number)
            assert chunk.path == expected.path_in_schema
            assert chunk.is_text == (expected.physical_type == "BYTE_ARRAY")
            assert chunk.values == expected.num_values
            assert chunk.size == expected.total_uncompressed_size
            if expected.statistics is not None:
                assert chunk.nulls == expected.statistics.null_count
            size, values = sizes(file, chunk)
            assert chunk.values <= values <= 2 * chunk.values
            assert 0 < chunk.size - size < 10_000  # the headers


def test_a_description_by_which_pyarrow_ends_the_process():
    content = written({"uri": ["a"], "s": [{"a": [1]}]}, use_dictionary=False)
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for place in range(begin, begin + 100):  # the schema, which levels of values are counted by
        changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        with suppress(ManifestError):
            parse_table("m.parquet", changed)
