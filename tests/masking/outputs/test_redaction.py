"""Objects are hidden wherever they may be, and what is not certain is listed."""

import io

import numpy as np
import pandas as pd
import pytest

from masking.images.masks import encode_rle
from masking.outputs.redaction import Redaction, Unsafe, unsafe_csv
from masking.outputs.rows import frames_of
from masking.tracking.masks import FrameMasks, Mask
from tests.masking.outputs.test_outputs import table
from tests.moving import SIZE

HERE = {3: "uncertain", 4: "lost", 5: "lost", 6: "recovered"}


def disc(t, radius=10):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return (x - 40 - 4 * t) ** 2 + (y - 40) ** 2 <= radius**2


def frame(t, states):
    """A frame of a disc that moves: masks are a pixel too small, and empty where it is lost."""
    found = []
    for state in states:
        mask = np.zeros(SIZE, bool) if state in ("lost", "absent") else disc(t, 9)
        found.append(None if state is None else Mask(state, mask, 0.9, 0.5, "forward"))
    image, logits = np.zeros((*SIZE, 3), np.uint8), np.zeros((len(states), *SIZE), np.float32)
    return FrameMasks(t, t / 10, image, tuple(range(1, len(states) + 1)), tuple(found), logits)


@pytest.fixture(scope="module")
def masks():
    return table(*[frame(t, [HERE.get(t, "tracked")]) for t in range(9)])


def test_what_is_safe_is_hidden_and_the_rest_is_listed(masks):
    redaction = Redaction(masks, "blur")
    assert redaction.unsafe == [
        Unsafe(1, 3, 3, 0.3, 0.3, "uncertain"), Unsafe(1, 4, 5, 0.4, 0.5, "lost"),
    ]  # fmt: skip
    for t, (row,) in frames_of(masks):
        hidden = redaction.region(row)
        shown = np.count_nonzero(disc(t) & ~hidden) / np.count_nonzero(disc(t))
        assert shown <= 0.01
        assert np.count_nonzero(hidden) < (0.12 if t not in (3, 4, 5) else 0.4) * hidden.size


def test_a_lost_object_is_hidden_where_it_was_and_where_it_comes_back():
    masks = table(*[frame(t, ["tracked" if t in (0, 9) else "lost"]) for t in range(10)])
    redaction = Redaction(masks, "blur")
    for t, (row,) in frames_of(masks):
        if 0 < t < 9:
            assert (redaction.region(row) >= disc(0) | disc(9)).all()
    at_the_end = table(*[frame(t, ["tracked" if t == 0 else "lost"]) for t in range(4)])
    redaction = Redaction(at_the_end, "blur")
    assert [(span.first_frame, span.last_frame) for span in redaction.unsafe] == [(1, 3)]
    for _, (row,) in frames_of(at_the_end):
        assert (redaction.region(row) >= disc(0)).all()


def test_absent_is_safe_and_untracked_is_not():
    states = ["tracked", "absent", "absent", None, None, "prompted"]
    redaction = Redaction(table(*[frame(t, [s, "tracked"]) for t, s in enumerate(states)]), "blur")
    assert [str(span) for span in redaction.unsafe] == [
        "not safe: frames 3 to 4: object 1 is untracked"
    ]


@pytest.mark.parametrize("hiding", ["blur", "pixelate"])
def test_pixels_are_replaced_only_where_an_object_is_hidden(hiding):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    stripes = (np.arange(SIZE[1]) // 2 % 2 * 255).astype(np.uint8)
    image[:, :, 0] = stripes
    masks = table(frame(2, ["tracked"]))
    redaction = Redaction(masks, hiding)
    ((_, rows),) = frames_of(masks)
    drawn, hidden = redaction.draw(image, rows), redaction.region(rows[0])
    assert np.array_equal(drawn[~hidden], image[~hidden])
    inside = drawn[..., 0][hidden].astype(float)
    assert inside.std() < 0.2 * stripes.std()
    colours = len(np.unique(drawn[hidden], axis=0))
    assert colours <= 36 if hiding == "pixelate" else colours > 36


def test_the_spans_are_a_table(masks):
    found = pd.read_csv(io.StringIO(unsafe_csv(Redaction(masks, "blur").unsafe)))
    assert found["reason"].tolist() == ["uncertain", "lost"]
    assert found["last_frame"].tolist() == [3, 5]
    assert list(found.columns)[:3] == ["object_id", "first_frame", "last_frame"]
    assert unsafe_csv([]).count("\n") == 1


def test_frames_of_another_size_are_hidden_whole(masks):
    redaction = Redaction(masks, "blur")
    rows = [row for _, (row,) in frames_of(masks)]
    small = {"height": 48, "width": 80, "rle": encode_rle(np.zeros((48, 80), bool))}
    assert redaction.region({**rows[4], **small}).all()
