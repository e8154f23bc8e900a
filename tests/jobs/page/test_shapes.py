"""Masks and polygons in the page: it shows them, keeps them, and tracks from them."""

import numpy as np
import pytest

from masking.images.masks import decode_rle
from masking.manifest.faults import ManifestError
from masking.manifest.shapes import text_of_mask
from masking.outputs.formats import mask_png
from tests.jobs.page.rows import add, row, saved
from tests.jobs.page.test_session import finish
from tests.moving import SIZE


def square(left):
    mask = np.zeros(SIZE, bool)
    mask[20:50, left : left + 30] = True
    return mask


def preview(session, video_id, index, *objects):
    version = session.state(video_id)["version"]
    found = session.preview(video_id, index, version, objects)
    return {
        one["object_id"]: decode_rle(one["rle"], (one["height"], one["width"])) for one in found
    }


def test_shapes_are_shown_kept_and_tracked(session):
    video_id = session.videos()[0]["id"]
    (session.store.path.parent / "m.png").write_bytes(mask_png(square(100)))
    add(
        session.store,
        video_id,
        row(object_id=1, frame=0, prompt_type="mask", mask=text_of_mask(square(10))),
        row(object_id=2, frame=0, prompt_type="polygon", polygon="60,20 90,20 90,50 60,50"),
        row(object_id=3, frame=1, prompt_type="mask", mask="m.png"),
    )
    shown = session.rows(video_id)
    assert [one["shape"] for one in shown["rows"]] == ["mask", "polygon", "mask"]
    masks = preview(session, video_id, 0, *[{"object_id": n, "clicks": []} for n in (1, 2, 3)])
    assert np.array_equal(masks[1], square(10))
    assert np.array_equal(masks[2], square(60))
    assert 3 not in masks
    third = preview(session, video_id, 1, {"object_id": 3, "clicks": []})
    assert np.array_equal(third[3], square(100))
    click = {"x": 15, "y": 25, "label": 0}
    cut = preview(session, video_id, 0, {"object_id": 1, "clicks": [click]})[1]
    assert not cut[25, 15]
    assert np.count_nonzero(cut) > 0.9 * np.count_nonzero(square(10))
    # A click is added, and the shapes stay in the manifest as they are.
    before = saved(session.store.path)
    kept = [{"row": one["row"]} for one in shown["rows"]]
    more = {"object_id": 1, "frame": 0, "x": 15, "y": 25, "label": 0}
    session.change(video_id, shown["revision"], [*kept, more])
    after = saved(session.store.path)
    assert len(after) == 4
    for name in ("prompt_type", "mask", "polygon"):
        assert [one[name] for one in after[:3]] == [one[name] for one in before]
    session.track(video_id, 0, 2)
    tracked = finish(session, video_id)
    first = {one["object_id"]: one for one in tracked["frames"][0]["objects"]}
    assert np.array_equal(decode_rle(first[2]["rle"], SIZE), square(60))


def test_a_picture_that_is_missing_is_named(session):
    video_id = session.videos()[0]["id"]
    add(session.store, video_id, row(object_id=1, frame=0, prompt_type="mask", mask="gone.png"))
    with pytest.raises(ManifestError, match=r"mask is 'gone\.png'"):
        preview(session, video_id, 0, {"object_id": 1, "clicks": []})
