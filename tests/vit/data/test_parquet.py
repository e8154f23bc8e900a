"""Parquet as the Hugging Face hub and other tools write it: folders, names, labels, cells."""

import json
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.vit.data.test_sets import PARQUET, png, write_parquet
from vit.data import sets as data
from vit.data.decode import DataError

LABELS = [0, 1] * 4


def test_the_layout_of_the_hub(tmp_path):
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data/train-00000-of-00001.parquet", png(8), LABELS)
    write_parquet(tmp_path / "data/dev-00000-of-00001.parquet", png(2), [0, 1])
    write_parquet(tmp_path / "data/extra.parquet", png(2), [0, 1])
    summary = data.check(PARQUET, [tmp_path])
    assert (summary.train, summary.val) == (8, 2)
    assert summary.notes == (
        f"{tmp_path / 'data/dev-00000-of-00001.parquet'}: read as val",
        f"{tmp_path}/data/extra.parquet: neither train, val nor test by its name; it is not used",
    )
    (tmp_path / "more").mkdir()
    write_parquet(tmp_path / "more/train.parquet", png(8), LABELS)
    with pytest.raises(DataError, match=r"several folders have Parquet files, .*/data, .*/more"):
        data.check(PARQUET, [tmp_path])


def test_a_named_class_without_images_is_noted(tmp_path):
    feature = {"label": {"names": ["r", "g", "unused"], "_type": "ClassLabel"}}
    table = pa.table({"image": png(8), "label": LABELS})
    about = {"huggingface": json.dumps({"info": {"features": feature}})}
    pq.write_table(table.replace_schema_metadata(about), tmp_path / "train.parquet")
    summary = data.check(PARQUET, [tmp_path])
    assert summary.classes == ("r", "g", "unused")
    assert summary.notes == ("classes without a training image, which are never learnt: unused",)


@pytest.mark.parametrize("labels", [[-1, -1], [None, None]])
def test_a_test_set_without_labels_is_left_aside(tmp_path, labels):
    write_parquet(tmp_path / "train.parquet", png(8), LABELS)
    write_parquet(tmp_path / "test.parquet", png(2), pa.array(labels, pa.int64()))
    summary = data.check(PARQUET, [tmp_path])
    assert summary.test is None
    assert summary.notes == (
        f"{tmp_path / 'test.parquet'}: no row has a label; the test set is not used",
    )
    write_parquet(tmp_path / "train.parquet", png(2), pa.array(labels, pa.int64()))
    with pytest.raises(DataError, match=r"files in which no row has a label \(1\)"):
        data.check(PARQUET, [tmp_path])


@pytest.mark.parametrize("kind", [pa.binary(), pa.null()])
def test_cells_with_a_path_alone_say_so(tmp_path, kind):
    cells = [{"bytes": None, "path": f"/data/{i}.jpg"} for i in range(8)]
    column = pa.array(cells, pa.struct([("bytes", kind), ("path", pa.string())]))
    pq.write_table(pa.table({"image": column, "label": LABELS}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"row 0: no image, only a path \(/data/0.jpg\)") as caught:
        data.load(PARQUET, [tmp_path], 8, tmp_path / "cache")
    assert "max_bad_images" not in str(caught.value)


def test_one_class_is_no_task(tmp_path):
    write_parquet(tmp_path / "train.parquet", png(8), ["b"] * 8)
    with pytest.raises(DataError, match="training images: b; a classifier needs at least two"):
        data.check(PARQUET, [tmp_path])


def test_names_match_however_accents_are_written(tmp_path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_parquet(tmp_path / "train.parquet", png(8), [composed, "tea"] * 4)
    write_parquet(tmp_path / "test.parquet", png(2), [apart, "tea"])
    ours = data.load(PARQUET, [tmp_path], 8, tmp_path / "cache")
    assert ours.test.labels.tolist() == [0, 1]
    write_parquet(tmp_path / "train.parquet", png(8), [composed, apart] * 4)
    with pytest.raises(DataError, match="look the same but are written differently"):
        data.check(PARQUET, [tmp_path])


def test_data_that_are_only_measured_may_have_gaps(tmp_path):
    write_parquet(tmp_path / "test.parquet", png(3), [0, 2, 2])
    ours = data.load(PARQUET, [tmp_path], 8, tmp_path / "cache", training=False)
    assert (ours.classes, ours.test.labels.tolist()) == (("0", "1", "2"), [0, 2, 2])
    assert np.array_equal(data.relabelled(ours, ("2", "1", "0")).test.labels, [2, 0, 0])
