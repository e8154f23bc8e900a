"""The table of clicks: what rows mean, and every fault by row."""

import numpy as np
import pandas as pd
import pytest

from masking.manifest.faults import ManifestError
from masking.manifest.plans import resolve
from masking.manifest.rows import read_rows

SIZE = (100, 200)
TIMES = [0.0, 0.04, 0.3, 0.34]


def plans(*rows, size=SIZE, times=TIMES, complete=True):
    return resolve(read_rows(rows), size, times, complete)


def point(**changes):
    return {"object_id": 1, "frame": 0, "x": 20, "y": 30, "label": 1} | changes


def faults(*rows, **more):
    with pytest.raises(ManifestError) as error:
        plans(*rows, **more)
    return [str(fault) for fault in error.value.faults]


def test_points_of_objects_by_frame():
    two = plans(point(), point(x=40, label="negative"), point(object_id=2, frame=3, label="1"))
    assert [plan.object_id for plan in two] == [1, 2]
    assert two[0].prompts[0].points.tolist() == [[20, 30], [40, 30]]
    assert two[0].prompts[0].labels.tolist() == [1, 0]
    assert list(two[1].prompts) == [3]
    assert two[0].prompts[0].role == "init"


def test_a_table_with_empty_cells_reads_as_one_without():
    table = pd.DataFrame([point(object_name="dog", role=None, end_frame=np.nan), point(x=50)])
    (plan,) = resolve(read_rows(table), SIZE, TIMES, True)
    assert (plan.name, plan.start, plan.end) == ("dog", 0, None)
    assert plan.prompts[0].points.tolist() == [[20, 30], [50, 30]]


def test_boxes_spans_and_words():
    box = point(prompt_type="box", x2=60, y2=80, label=None, start_frame=0, end_frame=2)
    (plan,) = plans(box, {"object_id": 1, "frame": 2, "role": "absent"})
    assert plan.prompts[0].box.tolist() == [20, 30, 60, 80]
    assert plan.prompts[0].points.shape == (0, 2)
    assert plan.prompts[2].role == "absent"
    assert (plan.start, plan.end) == (0, 2)


@pytest.mark.parametrize(
    ("time_s", "frame"), [(0, 0), (0.039, 0), (0.04, 1), (0.29, 1), (0.3, 2), (0.35, 3)]
)
def test_a_time_means_the_frame_that_is_shown_then(time_s, frame):
    (plan,) = plans({"object_id": 1, "time_s": time_s, "x": 1, "y": 1})
    assert list(plan.prompts) == [frame]


def test_coordinates_of_other_sizes():
    share = point(coords="normalized", x=0.5, y=1)
    small = point(frame=1, x=10, y=10, ref_width=100, ref_height=50)
    (plan,) = plans(share, small)
    assert plan.prompts[0].points.tolist() == [[100, 99]]
    assert plan.prompts[1].points.tolist() == [[20, 20]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"object_id": 0}, "row 1: object_id is 0; expected a number from 1"),
        ({"object_id": 1.5}, "row 1: object_id is 1.5; expected a whole number from 1"),
        ({"object_id": None}, "row 1: object_id is empty; expected a number from 1"),
        ({"frame": -1}, "row 1: frame is -1; expected a number from 0"),
        ({"frame": None}, "row 1: frame is empty; expected a frame from 0, or time_s in seconds"),
        ({"role": "accept", "frame": None, "time_s": 1}, "row 1: frame is empty; expected the fra"),
        ({"x": "left"}, "row 1: x is 'left'; expected a number from 0"),
        ({"y": float("nan")}, "row 1: y is empty; expected a number from 0"),
        ({"label": 2}, "row 1: label is 2; expected 1 or positive, 0 or negative"),
        ({"role": "start"}, "row 1: role is 'start'; expected init or correct or accept or end"),
        ({"coords": "normalized"}, "row 1: x, y is (20, 30); expected 0 to 1 with normalized"),
        ({"prompt_type": "box", "x2": 10, "y2": 40}, "row 1: x2, y2 is (10, 40); expected below"),
        ({"prompt_type": "box"}, "row 1: x2 is empty; expected a number from 0"),
        ({"x2": 50}, "row 1: y2 is empty; expected a number from 0"),
        ({"x2": 50, "y2": 60, "label": 0}, "row 1: label is 0; expected 1 for a box"),
        ({"x2": 50, "y2": 60, "label": "maybe"}, "row 1: label is 'maybe'; expected 1 or positive"),
        ({"x2": 202, "y2": 60}, "row 1: x2, y2 is (202, 60); expected a place in the frame of 200"),
        ({"label": 0}, "row 1: label of object 1 is only negative points; expected at least a"),
        ({"x": 200}, "row 1: x, y is (200, 30); expected a place in the frame of 200 x 100 pix"),
        ({"frame": 4}, "row 1: frame is 4; expected 0 to 3, the last frame"),
        ({"frame": None, "time_s": 9}, "row 1: time_s is 9; expected 0 to 0.38, the end of the v"),
        ({"start_frame": 2}, "row 1: frame is 0; expected 2 to the end, where the object"),
        ({"end_frame": 0, "frame": 2}, "row 1: frame is 2; expected 0 to 0, where the object is"),
        ({"frame": None, "time_s": 0.3, "end_frame": 1}, "row 1: frame is 2; expected 0 to 1, whe"),
        ({"object_id": 70000}, "row 1: object_id is 70000; expected a whole number from 1 to 6553"),
        ({"prompt_type": "box", "x": 300, "x2": 400, "y2": 80}, "row 1: x, y is (300, 30); expec"),
        ({"start_frame": 3, "end_frame": 2, "frame": 3}, "row 1: end_frame of object 1 is 2; exp"),
    ],
)  # fmt: skip
def test_faults_name_row_value_and_what_was_expected(row, message):
    assert faults(point(**row))[0].startswith(message)


def test_every_fault_is_listed():
    rows = [point(x=-1, y="high"), point(), point(label="maybe"), point(object_id=2, label=0)]
    assert [fault.split(" is ")[0] for fault in faults(*rows)] == [
        "row 1: x",
        "row 1: y",
        "row 3: label",
    ]
    many = faults(*[point(x=-1)] * 30)
    assert len(many) == 30
    with pytest.raises(ManifestError, match=r"\.\.\. and 10 more"):
        plans(*[point(x=-1)] * 30)


def test_an_empty_table_and_a_negative_first():
    assert faults() == ["the table is empty; expected a row for each click"]
    only = faults(point(label=0), point(frame=2))
    assert only == [
        "row 1: label of object 1 is only negative on frame 0, without a mask to correct; expected"
        " a positive point or a box"
    ]


def test_times_need_time_stamps():
    row = {"object_id": 1, "time_s": 1, "x": 1, "y": 1}
    assert faults(row, times=[None] * 4)[0].endswith("as this video has no timestamps")


def test_frames_beyond_the_known_ones_are_not_checked():
    (plan,) = plans(point(frame=2), times=TIMES[:3], complete=False)
    assert list(plan.prompts) == [2]
