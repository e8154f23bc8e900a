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
    ("time_s", "frame"),
    [(0, 0), (0.039, 0), (0.0396, 1), (0.04, 1), (0.29, 1), (0.2994, 1), (0.3, 2), (0.35, 3)],
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


@pytest.mark.parametrize("rate", [23.976, 24, 25, 29.97, 30, 48, 50, 59.94, 60, 120, 240, 480])
def test_times_rounded_to_milliseconds_mean_their_own_frame(rate):
    times = [frame / rate for frame in range(500)]
    rows = [{"object_id": 1, "time_s": round(time, 3), "x": 1, "y": 1} for time in times]
    (plan,) = plans(*rows, times=times)
    assert list(plan.prompts) == [*range(500)]


@pytest.mark.parametrize("rate", [1000, 2000, 10_000])
def test_exact_times_of_very_many_frames_a_second_mean_their_own_frame(rate):
    times = [frame / rate for frame in range(500)]
    (plan,) = plans(
        *({"object_id": 1, "time_s": time, "x": 1, "y": 1} for time in times), times=times
    )
    assert list(plan.prompts) == [*range(500)]


@pytest.mark.parametrize(
    ("frame", "time_s"),
    [(0, 0), (0, 0.03), (1, 0.04), (1, 0.0396), (1, 0.03), (1, 0.29), (2, 0.3), (3, 0.36)],
)
def test_a_frame_and_its_time_agree(frame, time_s):
    (plan,) = plans(point(frame=frame, time_s=time_s))
    assert list(plan.prompts) == [frame]


@pytest.mark.parametrize(("frame", "time_s"), [(0, 0.04), (1, 0), (1, 0.3), (2, 0.1), (3, 5)])
def test_a_frame_and_the_time_of_another_are_a_fault(frame, time_s):
    (message,) = faults(point(frame=frame, time_s=time_s))
    assert message == (
        f"row 1: time_s is {time_s:g}, not the time of frame {frame}; expected {TIMES[frame]:g};"
        " or leave frame or time_s empty"
    )
    assert list(plans(point(frame=frame, time_s=time_s), times=[None] * 4)[0].prompts) == [frame]


def test_clicks_that_contradict_each_other_are_refused_with_both_rows():
    rows = [point(), point(x=90), point(x=20.9, y=30.2, label=0), point(x=20.9, frame=1, label=0)]
    assert faults(*rows) == [
        "row 3: label of object 1 is negative on a pixel of the frame that row 1 calls positive;"
        " expected one of the two; delete the other"
    ]
    assert faults(point(frame=None, time_s=0.3), point(frame=None, time_s=0.3, label=0))
    plans(point(), point(x=21, label=0), point(object_id=2), point(object_id=2, x=5, label=0))


@pytest.mark.parametrize(
    "other",
    [
        {"coords": "normalized", "x": 0.1, "y": 0.3}, {"x": 10, "y": 15, "ref_width": 100,
        "ref_height": 50}, {"frame": None, "time_s": 0},
    ],
)  # fmt: skip
def test_clicks_that_only_the_video_shows_to_contradict_each_other(other):
    (message,) = faults(point(), point(label=0, **other))
    assert message.startswith("row 2: label of object 1 is negative on a pixel of the frame that")


def test_a_correction_of_what_was_never_placed():
    never = [point(object_id=3, role="correct"), point(object_id=3, role="correct", label=0, x=9)]
    assert faults(point(), *never) == [
        "row 2: role of object 3 is correct; expected init for the prompts that place the object;"
        " no row does yet"
    ]
    assert len(plans(point(frame=2), point(role="correct", x=40))[0].prompts) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"x": 10**400}, "row 1: x is 1000"),
        (
            {"frame": 10**30},
            "row 1: frame is 1000000000000000000000000000000; expected a number from",
        ),
        (
            {"frame": 2**63},
            "row 1: frame is 9223372036854775808; expected a number from 0 to 9.22337",
        ),
        ({"x": float("inf")}, "row 1: x is inf; expected a number from 0 to 9.22337e+18"),
        ({"x": "1_0"}, "row 1: x is '1_0'; expected a number from 0"),
        (
            {"x": "40,5"},
            "row 1: x is '40,5'; expected a number from 0, with a point as the decimal",
        ),
        ({"x": [1]}, "row 1: x is [1]; expected a number from 0"),
        ({"object_id": True}, "row 1: object_id is True; expected a number from 1"),
        (
            {"object_name": "a\0b"},
            "row 1: object_name is 'a\\x00b'; expected text without the char",
        ),
        (
            {"object_name": "\ud800"},
            "row 1: object_name is '\\ud800'; expected text that UTF-8 can",
        ),
        ({"x": 1e30}, "row 1: x is 1e+30; expected a number from 0 to 9.22337e+18"),
        ({"x": 1e18}, "row 1: x, y is (1e+18, 30); expected a place in the frame of 200 x 100"),
    ],
)
def test_values_that_no_video_has(row, message):
    assert faults(point(**row))[0].startswith(message)


def test_a_long_value_is_shown_in_part():
    (message,) = faults(point(x="a" * 100_000))
    assert len(message) < 400
