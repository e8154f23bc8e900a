"""The review: spans ranked by what a click on their best frame would gain."""

import numpy as np
import pyarrow as pa
import pytest

from masking.images.masks import encode_rle
from masking.outputs import review
from masking.outputs.review import HEALED, missing_of, outlook, spans
from masking.outputs.rows import SCHEMA

SIZE = (20, 30)


def table(states, scores=None, quality=0.2, number=3):
    """A mask file of one object whose mask is a square of 5 pixels, empty where it is lost."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[8:13, 20:25] = True
    rows = []
    for frame, state in enumerate(states):
        row = dict.fromkeys(SCHEMA.names) | {"frame": frame, "object_id": number, "state": state}
        visible = state not in (None, "lost", "absent")
        row |= {"height": SIZE[0], "width": SIZE[1], "area": 25 * visible}
        row |= {"rle": encode_rle(mask if visible else mask & False)}
        row |= {"score": 1.0 if scores is None else scores[frame], "quality": quality}
        rows.append(row)
    return pa.Table.from_pylist(rows, SCHEMA)


def test_what_is_missing_follows_from_score_and_of_empty_masks_from_quality():
    states = ["prompted", "tracked", "uncertain", "lost", "absent", None]
    found = missing_of(table(states, [0.1, 0.9, 0.4, 0.0, 0.0, 0.0]))
    assert found == pytest.approx([0, 0.1, 0.6, 0.8, 0, 0], abs=1e-6)


def test_a_long_span_comes_before_a_short_one_and_is_clicked_where_a_click_reaches_most():
    states = ["tracked"] * 40 + ["uncertain"] * 21 + ["tracked"] * 99 + ["lost"] * 3
    scores = [0.999] * 40 + [0.4] * 21 + [0.999] * 102
    long, short = spans("v", table(states, scores))
    assert (long.first_frame, long.last_frame, long.reason) == (40, 60, "uncertain")
    assert long.click_frame == 50
    far = np.abs(np.arange(40, 61) - 50)
    expected = HEALED * (0.6 * 0.5 ** (far / review.REACH)).sum()
    assert long.severity == pytest.approx(expected, abs=0.1)
    assert (short.reason, short.first_frame, short.last_frame) == ("lost", 160, 162)


def test_a_click_heals_nothing_beyond_the_next_prompt():
    between = table(["uncertain"] * 5 + ["prompted"] + ["uncertain"] * 5, [0.5] * 11)
    alone = table(["uncertain"] * 5, [0.5] * 5)
    assert [one.severity for one in spans("v", between)] == pytest.approx(
        [spans("v", alone)[0].severity] * 2
    )


def test_spans_of_an_object_share_what_there_is_to_gain():
    states = ["lost", "uncertain", "lost", "uncertain"]
    found = spans("v", table(states, [0.0, 0.3, 0.0, 0.3]))
    assert len(found) == 4
    assert sum(one.severity for one in found) <= 0.8 + 0.7 + 0.8 + 0.7
    assert [one.severity for one in found] == sorted((s.severity for s in found), reverse=True)


def test_many_masks_that_are_each_a_little_wrong_are_listed_few_are_not():
    (many,) = spans("v", table(["tracked"] * 60, [0.9] * 60))
    assert (many.reason, many.first_frame, many.last_frame) == ("tracked", 0, 59)
    assert all(one.reason == "check" for one in spans("v", table(["tracked"] * 5, [0.9] * 5)))


def test_a_share_of_good_objects_is_drawn_for_a_check():
    good = table(["prompted", *["tracked"] * 9], [0.99] * 10)
    found = [one for n in range(2000) for one in spans(f"video {n}", good)]
    assert {one.reason for one in found} == {"check"}
    assert 0.03 < len(found) / 2000 < 0.07
    assert {one.click_frame for one in found} == set(range(1, 10))
    assert all(one.first_frame == one.last_frame == one.click_frame for one in found)
    assert found == [one for n in range(2000) for one in spans(f"video {n}", good)]


def test_the_place_is_the_middle_of_the_nearest_mask():
    (span,) = spans("v", table(["tracked", "lost", "lost"], [1.0, 0.0, 0.0]))
    assert (span.click_x, span.click_y) == (22.0, 10.0)
    (nowhere,) = spans("v", table(["lost"], [0.0]))
    assert (nowhere.click_x, nowhere.click_y) == (None, None)


def test_the_outlook_falls_by_what_the_first_clicks_gain():
    found = outlook([{"severity": 3.0}, {"severity": 2.0}], missing=10.0, frames=100)
    assert found["iou"] == pytest.approx(0.9)
    assert found["iou_after"] == pytest.approx({"1": 0.93, "2": 0.95})
    assert outlook([], 0.0, 0) == {"frames": 0, "iou": 1.0, "iou_after": {}}
