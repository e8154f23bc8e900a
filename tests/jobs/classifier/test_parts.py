"""The input of predictions: names with wildcards in them."""

import numpy as np
import pytest
from PIL import Image

from jobs.classifier.parts import find
from jobs.storage.location import Location


@pytest.mark.parametrize("storage", ["local", "s3"])
def test_a_name_with_a_question_mark_is_not_a_pattern(tmp_path, request, storage):
    place = Location.parse(request.getfixturevalue("s3") if storage == "s3" else tmp_path)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "image.png")
    for name in ("a?.png", "ab.png", "c.png?v=2.png"):
        (place / name).write_bytes((tmp_path / "image.png").read_bytes())
    for name in ("a?.png", "c.png?v=2.png"):
        assert [Location.parse(file.uri).name for file in find([str(place / name)])] == [name]
    names = [Location.parse(file.uri).name for file in find([f"{place}/a*.png"])]
    assert names == ["a?.png", "ab.png"]
