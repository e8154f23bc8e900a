"""The simulated person of `benchmarks.effort` clicks the deepest error of the worst frame."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.effort import Masked, Person, shares
from benchmarks.masking.tracking import Clip
from masking.outputs.rows import SCHEMA


def test_a_person_clicks_the_worst_frame_or_the_one_that_the_review_names():
    truth = np.zeros((4, 30, 40), np.uint8)
    truth[:, 5:20, 5:20] = 1
    clip = Clip("clip", Path("clip"), truth, (1,))
    person = Person(clip)
    person.begin()
    assert person.rows == [
        {"object_id": 1, "frame": 0, "x": 12, "y": 12, "label": 1, "role": "init"}
    ]
    masks = (truth == 1)[None].copy()
    masks[0, 1, 5:20, 25:30] = True  # too much
    masks[0, 3] = False  # lost, but nobody knows
    rows = [
        dict.fromkeys(SCHEMA.names)
        | {"object_id": 1, "frame": t, "state": state, "quality": 0.3, "score": score}
        for t, (state, score) in enumerate(
            (("prompted", 1.0), ("uncertain", 0.3), ("uncertain", 0.6), ("tracked", 1.0))
        )
    ]
    ious = np.array([[1, 0.75, 1, 0]])
    masked = Masked(masks, ious, pa.Table.from_pylist(rows, SCHEMA))
    assert person.obeyed(masked) == [True]
    assert person.correct(masked, "review")
    last = person.rows[-1]
    assert (last["frame"], last["label"], last["role"]) == (1, 0, "correct")
    assert person.obeyed(masked) == [True, False]
    assert person.correct(masked, "worst")
    assert (person.rows[-1]["frame"], person.rows[-1]["label"]) == (3, 1)


def test_shares_of_states():
    states = Counter({"tracked, good": 8, "tracked, bad": 2, "lost, bad": 1, "uncertain, good": 2})
    found = shares(states)
    assert found["tracked that are good"] == 0.8
    assert found["bad that are flagged"] == 1 / 3
    assert found["good that are flagged"] == 0.2
