"""Data of videos: which images are of one object, and validation by whole videos."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.vit.data.test_sets import FOLDER, PARQUET, encoded, pixels, png
from vit.data import sets as data
from vit.data.decode import DataError
from vit.data.reader import CROPS, split_groups

CUTTING = {"margin": 0.1, "shape": "square"}


def write(path, videos, label, numbers=None, **more):
    """A shard with a row for each id of a video, whose label is a function of it."""
    columns = {"image": png(len(videos)), "label": [label(video) for video in videos]}
    columns |= {"video_id": videos} | ({} if numbers is None else {"object_id": numbers}) | more
    table = pa.table(columns).replace_schema_metadata({CROPS: json.dumps(CUTTING)})
    pq.write_table(table, path)


def kind(video):
    return "cat" if int(video[1:]) % 2 else "dog"


def names_of(dataset, images):
    """The tracks of a set in the order of its images."""
    return [dataset.tracks[number] for number in images.tracks[images.rows]]


@pytest.mark.parametrize("gigabytes", [1.0, 0.0], ids=["decoded", "packed"])
def test_validation_is_held_out_by_video(tmp_path, gigabytes):
    videos = [f"v{n // 6}" for n in range(60)]
    write(tmp_path / "train.parquet", videos, kind, [n // 3 for n in range(60)])
    write(tmp_path / "test.parquet", ["v3", "t1", "t1"], kind, [9, 1, 2])
    config = replace(PARQUET, cache_gb=gigabytes, val_fraction=0.2)
    found = data.load(config, [tmp_path], 8, tmp_path / "cache")
    assert found.crops == CUTTING
    train, val = names_of(found, found.train), names_of(found, found.val)
    assert len(train) + len(val) == 60
    assert not {video for video, _ in train} & {video for video, _ in val}
    assert Counter(kind(video) for video, _ in val) == {"cat": 6, "dog": 6}  # a video of each
    every = Counter(zip(videos, map(str, [n // 3 for n in range(60)]), strict=True))
    assert Counter(train + val) == every
    assert names_of(found, found.test) == [("v3", "9"), ("t1", "1"), ("t1", "2")]
    summary = data.check(config, [tmp_path])
    assert (summary.train, summary.val) == (len(train), len(val))


def test_a_bad_image_is_left_out_of_the_tracks(tmp_path):
    images = png(8)
    images[3] = b"no image"
    videos = ["v0", "v0", "v1", "v1", "v2", "v2", "v3", "v3"]
    write(tmp_path / "train.parquet", videos, kind, image=images)
    config = replace(PARQUET, max_bad_images=1, val_fraction=0.4)
    found = data.load(config, [tmp_path], 8, tmp_path / "cache")
    whole = names_of(found, found.train) + names_of(found, found.val)
    assert sorted(whole) == [(video, "") for number, video in enumerate(videos) if number != 3]


def test_too_few_videos_are_refused(tmp_path):
    write(tmp_path / "train.parquet", ["v1"] * 10 + ["v2"] * 10, kind)
    with pytest.raises(DataError, match=r"no video of the 2 in the training images can be held"):
        data.check(PARQUET, [tmp_path])


@pytest.mark.parametrize("ids", [pa.array([None] + ["v1"] * 7), pa.array([0.5] * 8)])
def test_columns_that_are_no_ids_are_named(tmp_path, ids):
    write(tmp_path / "train-0.parquet", ["v0", "v1"] * 4, kind, [1] * 8)
    pq.write_table(
        pa.table({"image": png(8), "label": ["cat", "dog"] * 4, "video_id": ids}),
        tmp_path / "train-1.parquet",
    )
    summary = data.check(PARQUET, [tmp_path])
    assert summary.notes == (
        f"{tmp_path / 'train-1.parquet'}: no usable column video_id; that of others is not used",
    )
    found = data.load(PARQUET, [tmp_path], 8, tmp_path / "cache")
    assert found.tracks == ()
    assert found.train.tracks is None


def test_ids_may_be_integers_and_categories(tmp_path):
    videos = pa.array(["v0", "v1", "v2", "v3"] * 2).dictionary_encode()
    write(tmp_path / "train.parquet", ["v0", "v1", "v2", "v3"] * 2, kind, video_id=videos)
    config = replace(PARQUET, val_fraction=0.4)
    found = data.load(config, [tmp_path], 8, tmp_path / "cache")
    assert sorted(found.tracks) == [(f"v{n}", "") for n in range(4)]
    write(
        tmp_path / "train.parquet", ["v0", "v1", "v2", "v3"] * 2, kind, video_id=[7, 8, 9, 10] * 2
    )
    found = data.load(config, [tmp_path], 8, tmp_path / "cache2")
    assert sorted(found.tracks) == sorted((str(n), "") for n in (7, 8, 9, 10))


def test_an_image_folder_of_crops(tmp_path):
    """`train/NAME/VIDEO/OBJECT/FRAME.jpg`, told by the file beside the sets."""
    for video in range(6):
        for frame in range(3):
            place = tmp_path / "train" / kind(f"v{video}") / f"a%2Fv{video}" / "7"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{frame:05d}.png").write_bytes(encoded(pixels(1)[0]))
    plain = data.load(FOLDER, [tmp_path], 8, tmp_path / "cache")
    assert plain.tracks == ()
    (tmp_path / f"{CROPS}.json").write_text(json.dumps({"crops": CUTTING}))
    found = data.load(FOLDER, [tmp_path], 8, tmp_path / "cache2")
    assert found.crops == CUTTING
    assert sorted(found.tracks) == [(f"a/v{video}", "7") for video in range(6)]
    assert not {*names_of(found, found.train)} & {*names_of(found, found.val)}
    (tmp_path / f"{CROPS}.json").write_text("[]")
    with pytest.raises(DataError, match="is not what an export of crops writes"):
        data.check(FOLDER, [tmp_path])


def test_groups_keep_a_video_of_each_class():
    draw = np.random.default_rng(0)
    for trial in range(50):
        groups = {
            f"v{n}": {
                int(c): int(draw.integers(1, 50)) for c in draw.choice(5, draw.integers(1, 4))
            }
            for n in range(draw.integers(1, 30))
        }
        drawn = split_groups(groups, 0.2, trial)
        assert drawn == split_groups(dict(reversed(groups.items())), 0.2, trial)
        totals = Counter()
        for each in range(5):
            having = [name for name, counts in groups.items() if each in counts]
            totals[each] = len(having)
            assert not having or set(having) - drawn  # one is left
        alone = all(any(totals[c] == 1 for c in groups[name]) for name in groups)
        assert bool(drawn) or alone or max(totals.values()) < 2
    assert split_groups(groups, 0.0, 1) == set()


def test_shares_of_groups():
    groups = {f"v{n}": {"a" if n % 2 else "b": 10} for n in range(100)}
    drawn = split_groups(groups, 0.1, 0)
    assert Counter(next(iter(groups[name])) for name in drawn) == {"a": 5, "b": 5}
    more = split_groups(groups | {"new": {"a": 10}}, 0.1, 0)
    assert len(drawn & more) >= 9  # one more video changes little
    long = {"long": {"a": 1000}, **{f"v{n}": {"a": 10} for n in range(20)}}
    assert "long" not in split_groups(long, 0.1, 0)
