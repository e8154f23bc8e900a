"""Columns that are nearly right are refused; a person's own are not."""

import pandas as pd
import pytest

from masking.manifest.columns import column_faults
from masking.manifest.faults import ManifestError
from masking.manifest.rows import parse_rows, read_rows


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Label", "label"), ("LABEL", "label"), ("label ", "label"), (" label", "label"),
        ("labels", "label"), ("lable", "label"), ("labl", "label"), ("labbel", "label"),
        ("label\u200b", "label"), ("\uff4cabel", "label"), ("Labels ", "label"),
        ("startframe", "start_frame"), ("Start Frame", "start_frame"), ("end-frame", "end_frame"),
        ("end_frames", "end_frame"), ("objectID", "object_id"), ("object_ids", "object_id"),
        ("obejct_id", "object_id"), ("object name", "object_name"), ("X", "x"), ("Y2", "y2"),
        ("times", "time_s"), ("Time_S", "time_s"), ("coord", "coords"), ("roles", "role"),
        ("refwidth", "ref_width"), ("prompt type", "prompt_type"), ("URI", "uri"),
        ("video-id", "video_id"), ("frames", "frame"), ("Until", "until"),
        ("label.1", "label"), ("time (s)", "time_s"),
    ],
)  # fmt: skip
def test_a_column_nearly_right_is_refused_with_the_right_one(name, meant):
    (fault,) = column_faults([name])
    expected = f"{meant} (perhaps you meant that), or a name that differs more from it"
    assert str(fault) == f"the name of a column is {name!r}; expected {expected}"


@pytest.mark.parametrize(
    "name",
    [
        "notes", "annotator", "camera", "name", "fname", "flame", "time", "timer", "x1", "z",
        "rule", "labeler", "label_2", "frame_count", "fps", "id", "class", "split", "score",
        "height", "word", "unit", "tags", "", "Unnamed: 0", "sources", "url", "comment", "video",
    ],
)  # fmt: skip
def test_a_column_of_ones_own_is_not(name):
    assert column_faults([name]) == []


def test_rows_and_tables_of_one_video_are_refused_for_their_columns_too():
    row = {"object_id": 1, "frame": 0, "x": 20, "y": 30}
    for table in ([row, row | {"Label": 0}], pd.DataFrame([row | {"Label": 0}])):
        with pytest.raises(ManifestError, match=r"'Label'; expected label .perhaps you meant"):
            read_rows(table)
    assert len(read_rows([row | {"notes": "dusk", 7: None}])) == 1


def test_a_data_frame_with_a_column_twice():
    table = pd.DataFrame([[1, 0, 20, 30, 1, 0]])
    table.columns = ["object_id", "frame", "x", "y", "label", "label"]
    _, (fault,) = parse_rows(table)
    assert str(fault) == "column label is there 2 times; expected each column once"
