"""Images with masks in Parquet: read, selected, shrunk; every bad row is named."""

import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from masking.images.decode import read_image
from masking.training import parquet
from masking.training.pair import NothingToLearnError
from masking.training.pairs import ImageError, PairsConfig, inspect, survey
from tests.masking.training.pictures import ALL, H, W, encoded, image, labels


def write(path, rows, row_group_size=2, **types):
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    table = pa.table({k: pa.array(v, types.get(k)) for k, v in columns.items()})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def row(**changes):
    return {"image": encoded(image()), "masks": encoded(labels()), "ignore": None} | changes


def test_parquet(tmp_path):
    void = np.zeros((H, W), np.uint8)
    void[:, :5] = 255  # over a stripe too, which wins
    rows = [
        row(key="a", kind="instances"),
        row(key="b", kind="regions", ignore=encoded(void)),
        row(key="c", kind="single", image=encoded(image(seed=1)), masks=encoded(labels(1))),
    ]
    found = survey([write(tmp_path / "x.parquet", rows, ignore=pa.binary())], ALL)
    assert len(found) == 3
    assert [found[i].regions for i in range(3)] == [False, True, False]
    assert found[1].name == f"{tmp_path}/x.parquet, row 1 (b)"
    np.testing.assert_array_equal(found[2].image, image(seed=1))
    np.testing.assert_array_equal(found[0].masks, [labels() == k for k in (1, 2, 3)])
    assert not found[0].ignore.any()
    np.testing.assert_array_equal(found[1].ignore, (void > 0) & (labels() == 0))
    assert [len(pair.masks) for pair in (found.subset([2, 0])[0], found.subset([2, 0])[1])] == [
        1,
        3,
    ]


def test_parquet_needs_two_columns_only_and_a_folder_is_all_its_files(tmp_path):
    for name in ("b", "a"):
        rows = [{"image": encoded(image(), "JPEG"), "masks": encoded(labels())}]
        write(tmp_path / f"{name}.parquet", rows)
    found = survey([tmp_path], ALL)
    assert [entry.name for entry in found.entries] == [
        f"{tmp_path}/a.parquet, row 0",
        f"{tmp_path}/b.parquet, row 0",
    ]
    assert found[0].masks.shape == (3, H, W)


@pytest.mark.parametrize(("dtype", "first"), [(np.uint16, 254), (np.uint16, 60_000), (np.uint8, 9)])
def test_label_maps_of_8_and_16_bits_and_with_gaps(tmp_path, dtype, first):
    map_ = labels(4, dtype=dtype, first=first)
    found = survey([write(tmp_path / "x.parquet", [row(masks=encoded(map_))])], ALL)
    np.testing.assert_array_equal(found[0].masks, [map_ == first + k for k in range(4)])


def test_row_groups_come_and_go_and_threads_share_them(tmp_path, monkeypatch):
    rows = [row(image=encoded(image(seed=n))) for n in range(9)]
    found = survey([write(tmp_path / "x.parquet", rows)], ALL)
    monkeypatch.setattr(parquet, "KEPT", 1)
    elsewhere = pickle.loads(pickle.dumps(found))
    assert len(pickle.dumps(found)) < 2000
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(9), 4)).tolist()
    with ThreadPoolExecutor(4) as pool:
        for n, pair in zip(order, pool.map(elsewhere.__getitem__, order), strict=True):
            np.testing.assert_array_equal(pair.image, image(seed=n))


def test_large_images_shrink_and_small_ones_stay(tmp_path):
    big = np.zeros((100, 200, 3), np.uint8)
    map_ = np.zeros((100, 200), np.uint8)
    big[20:60, 40:160], map_[20:60, 40:160] = 255, 1
    rows = [row(image=encoded(big), masks=encoded(map_)), row()]
    found = survey([write(tmp_path / "x.parquet", rows)], PairsConfig(50, 0, 1))
    assert found[0].image.shape == (25, 50, 3)
    expected = np.zeros((25, 50), bool)
    expected[5:15, 10:40] = True
    np.testing.assert_array_equal(found[0].masks, [expected])
    np.testing.assert_array_equal(found[0].image[..., 0] > 127, expected)
    assert found[1].image.shape == (H, W, 3)


def with_exif(orientation, kind="PNG"):
    picture = Image.fromarray(image())
    exif = picture.getexif()
    exif[0x0112] = orientation
    return encoded(image(), kind, exif=exif)


def test_exif_orientation_is_applied(tmp_path):
    turned = labels(height=W, width=H)
    rows = [row(image=with_exif(6), masks=encoded(turned))]
    found = survey([write(tmp_path / "x.parquet", rows)], ALL)
    np.testing.assert_array_equal(found[0].image, np.rot90(image(), -1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP", "TIFF"])
@pytest.mark.parametrize("orientation", [*range(1, 9), 77])
def test_every_exif_orientation_is_applied_as_pillow_does(orientation, kind):
    content = with_exif(orientation, kind)
    for longest in (0, 20):
        with Image.open(io.BytesIO(content)) as picture:
            expected = ImageOps.exif_transpose(picture)
        found = read_image(content, longest)
        assert found.size == expected.size[::-1]
        if longest:
            expected.thumbnail((longest, longest))
            assert found.pixels.shape[:2] == expected.size[::-1]
        else:
            np.testing.assert_array_equal(found.pixels, np.array(expected))


@pytest.mark.parametrize("kind", ["PNG", "WebP", "JPEG"])
def test_damaged_exif_costs_no_image(kind):
    content = encoded(image(), kind, exif=b"Exif\0\0II*\0\xff\xff\xff\xffnonsense")
    assert read_image(content, 0).size == (H, W)


def test_eps_is_refused_because_ghostscript_would_be_started(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(image()).save(path, "EPS")
    for source in (path, path.read_bytes()):
        with pytest.raises(ImageError, match="none of the formats that are read"):
            read_image(source, 0)


def test_png_with_exif_behind_its_pixels():
    content = with_exif(6)
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    last = content.index(b"IEND") - 4
    moved = content[:start] + content[end:last] + content[start:end] + content[last:]
    found = read_image(moved, 0)
    assert found.size == found.pixels.shape[:2] == (W, H)


def test_masks_on_stored_pixels_of_a_turned_image_are_refused_with_the_cause(tmp_path):
    found = survey([write(tmp_path / "x.parquet", [row(image=with_exif(8))])], ALL)
    with pytest.raises(ImageError, match=r"has 30x40\. The image's EXIF .*\(8\).*exiftool"):
        found[0]


def test_large_images_of_16_bits_are_shrunk(tmp_path):
    grey = np.repeat(np.arange(256, dtype=np.uint16) * 256, 4)[None].repeat(900, axis=0)
    pgm = b"P5 1024 900 65535\n" + grey.astype(">u2").tobytes()
    rows = [row(image=content, masks=encoded(np.ones((900, 1024), np.uint8)))
            for content in (encoded(grey), pgm)]  # fmt: skip
    found = survey([write(tmp_path / "x.parquet", rows)], PairsConfig(128, 0, 1))
    for pair in (found[0], found[1]):
        assert pair.image.shape == (113, 128, 3)
        np.testing.assert_allclose(pair.image[50, :, 0], np.linspace(0, 255, 128), atol=3)


def test_grey_and_16_bit_images(tmp_path):
    grey = image()[..., 0]
    rows = [row(image=encoded(grey)), row(image=encoded(grey.astype(np.uint16) * 256 + 9))]
    found = survey([write(tmp_path / "x.parquet", rows)], ALL)
    for pair in (found[0], found[1]):
        np.testing.assert_array_equal(pair.image, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("smallest", "largest", "kept"), [(0, 1, 3), (0.01, 0.9, 1), (0.01, 1, 2), (0, 0.5, 2)]
)
def test_selection_by_size(tmp_path, smallest, largest, kept):
    map_ = np.full((20, 20), 3, np.uint8)
    map_[0, 0], map_[10:, 18:] = 1, 2  # 1, 20 and 379 of 400 pixels
    rows = [row(image=encoded(image(20, 20)), masks=encoded(map_))]
    found = survey([write(tmp_path / "x.parquet", rows)], PairsConfig(0, smallest, largest))
    assert len(found[0].masks) == kept


BAD_ROWS = {
    "does not decode": (row(image=b"no image"), "the image does not decode"),
    "truncated": (row(image=encoded(image(200, 200), "JPEG")[:-2000]), "the image does not decode"),
    "bad masks": (row(masks=b"\x89PNG"), "column masks does not decode"),
    "colours": (row(masks=encoded(image())), "column masks has mode RGB; expected one channel"),
    "lossy": (row(masks=encoded(labels(), "JPEG")), "column masks is a JPEG, which blurs its"),
    "negative": (
        row(masks=encoded(labels(dtype=np.int32) - 9, "TIFF")),
        "column masks has labels from -9 to -6; expected 0 to 65535",
    ),
    "no object": (row(masks=encoded(np.zeros((H, W), np.uint8))), "no object in the masks"),
    "size": (
        row(masks=encoded(labels(2, 20, 10))),
        "masks has 10x20 pixels, but its image has 40x30",
    ),
    "ignore": (
        row(ignore=encoded(labels(2, 20, 10))),
        "ignore has 10x20 pixels, but its image has 40x30",
    ),
    "small": (row(masks=encoded(np.eye(H, W, dtype=np.uint8))), "none of its 1 objects covers"),
}


def test_objects_that_vanish_as_the_image_shrinks_are_no_fault(tmp_path):
    map_ = np.zeros((400, 400), np.uint8)
    map_[101, 101] = 1
    rows = [row(image=encoded(image(400, 400)), masks=encoded(map_))]
    small = survey([write(tmp_path / "x.parquet", rows)], PairsConfig(40, 0, 1))
    with pytest.raises(NothingToLearnError, match="its objects have no pixels left at this size"):
        small[0]
    assert len(survey([tmp_path / "x.parquet"], ALL)[0].masks) == 1


def test_every_bad_row_is_named(tmp_path):
    rows = [row(), *(bad for bad, _ in BAD_ROWS.values()), row()]
    path = write(tmp_path / "x.parquet", rows, ignore=pa.binary())
    found = survey([path], PairsConfig(0, 0.1, 1))
    bad = inspect(found).faults
    assert list(bad) == list(range(1, len(rows) - 1))
    for number, (_, message) in enumerate(BAD_ROWS.values(), start=1):
        assert str(bad[number]).startswith(f"{path}, row {number}: ")
        assert message in str(bad[number])
    assert str(pickle.loads(pickle.dumps(bad[1]))) == str(bad[1])


def test_survey_lists_every_fault_of_every_file(tmp_path):
    rows = [row(), row(masks=None), row(), row(image=None, masks=None)]
    nulls = write(tmp_path / "nulls.parquet", rows)
    wrong = write(tmp_path / "wrong.parquet", [{"image": "text", "mask": b"", "kind": 3}])
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(nulls.read_bytes()[:-100])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError) as error:
        survey([nulls, wrong, torn, tmp_path / "absent", tmp_path / "empty"], ALL)
    expected = [
        f"{nulls}, row 1: column masks is null",
        f"{nulls}, row 3: column image is null",
        f"{nulls}, row 3: column masks is null",
        f"{wrong}: column image holds string; expected bytes of image files",
        f"{wrong}: no column masks (bytes of image files); it has image, mask, kind",
        f"{wrong}: column kind holds int64; expected strings",
        f"{torn}: not a Parquet file that can be read",
        f"{tmp_path / 'absent'}: no such file or folder",
        f"{tmp_path / 'empty'}: holds no image-mask pairs",
    ]
    assert len(error.value.faults) == len(expected)
    for fault, start in zip(error.value.faults, expected, strict=True):
        assert fault.startswith(start)
    assert all(fault in str(error.value) for fault in error.value.faults)


def test_a_nested_column_in_front_hides_no_null(tmp_path):
    rows = [{"about": {"a": 1, "b": 2}} | row(), {"about": None} | row(masks=None)]
    with pytest.raises(ImageError, match="row 1: column masks is null"):
        survey([write(tmp_path / "x.parquet", rows)], ALL)


def test_a_long_list_of_faults_is_cut_in_the_message_only(tmp_path):
    path = write(tmp_path / "x.parquet", [row(masks=None)] * 30, masks=pa.binary())
    with pytest.raises(ImageError, match=r"and 10 more$") as error:
        survey([path], ALL)
    assert len(error.value.faults) == 30


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_colours_shrink_alike_whatever_the_kind_of_image(tmp_path, mode):
    """Alpha does not darken what is clear, nor do indices of a palette lose pixels."""
    stripes = np.zeros((H, W), np.uint8)
    stripes[:, ::2] = 200
    picture = Image.fromarray(stripes).convert(mode)
    if mode != "P":
        picture.putalpha(Image.fromarray(stripes.T.copy()).resize((W, H)))
    content = io.BytesIO()
    picture.save(content, "PNG")
    found = [read_image(content.getvalue(), longest)[0] for longest in (0, W // 2)]
    assert np.abs(found[1].astype(int) - 100).max() < 30
    assert sorted(np.unique(found[0])) == [0, 200]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"longest": -1}, "longest is -1; expected 0 or"),
        ({"longest": 8}, "longest is 8"),
        ({"smallest": 0.9, "largest": 0.1}, "smallest is 0.9 and largest 0.1"),
        ({"largest": 2.0}, "largest 2.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        PairsConfig(**settings)


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""The type of images in Hugging Face's data sets."""


def cell(content, path=None):
    return {"bytes": content, "path": path}


def hugging_face(folder, name="x.parquet", **changes):
    given = row(image=cell(encoded(image()), "a.png"), masks=cell(encoded(labels())))
    (folder / name).parent.mkdir(exist_ok=True)
    return write(folder / name, [given, given | changes], image=STRUCT, masks=STRUCT)


@pytest.mark.parametrize("ignore", [None, cell(None), cell(encoded(labels(1)))])
def test_hugging_faces_structs_are_read(tmp_path, ignore):
    path = tmp_path / "x.parquet"
    given = row(image=cell(encoded(image()), "a.png"), masks=cell(encoded(labels())), ignore=ignore)
    write(path, [given], image=STRUCT, masks=STRUCT, ignore=STRUCT)
    pair = survey([path], ALL)[0]
    np.testing.assert_array_equal(pair.image, image())
    np.testing.assert_array_equal(pair.masks, [labels() == k for k in (1, 2, 3)])
    expected = labels(1) > 0 if ignore and ignore["bytes"] else np.zeros((H, W), bool)
    np.testing.assert_array_equal(pair.ignore, expected & (labels() == 0))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "column image is null"),
        (cell(None), "column image is null"),
        (
            cell(None, "photos/a.png"),
            "column image has no bytes, only the path photos/a.png;",
        ),
    ],
)
def test_hugging_faces_structs_without_bytes_are_named(tmp_path, image, message):
    path = hugging_face(tmp_path, image=image)
    with pytest.raises(ImageError) as error:
        survey([path], ALL)
    [fault] = error.value.faults
    assert fault.startswith(f"{path}, row 1: {message}")


def test_hugging_faces_folder_data_is_read(tmp_path):
    hugging_face(tmp_path, "data/train-00000-of-00002.parquet")
    hugging_face(tmp_path, "data/train-00001-of-00002-0a1b2c.parquet")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert len(survey([tmp_path], ALL)) == 4
    hugging_face(tmp_path, "data/test-00000-of-00001.parquet")
    with pytest.raises(ImageError, match=r"holds the splits test, train; .*/train-\*.parquet"):
        survey([tmp_path], ALL)


@pytest.mark.parametrize("kind", [pa.binary(), STRUCT])
def test_a_cell_that_all_rows_have_is_in_memory_once(tmp_path, kind):
    content = encoded(image()) + bytes(1 << 18)
    given = row(image=content if kind == pa.binary() else cell(content))
    table = pa.table({
        "image": pa.array([given["image"]] * 100, kind),
        "masks": pa.array([given["masks"]] * 100),
        "key": pa.array(["k" * (1 << 18)] * 100),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "x.parquet", dictionary_pagesize_limit=1 << 30)
    found = survey([tmp_path / "x.parquet"], ALL)
    assert len(found.entries[99].name) < 1000
    assert len(found[99].masks) == 3
    assert found.entries[0].groups.read(tmp_path / "x.parquet", 0).nbytes < 1 << 20


def test_cells_of_gigabytes_in_a_small_file_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_LARGEST", 1 << 20)
    path = write(tmp_path / "x.parquet", [row(image=bytes(4 << 20))])
    with pytest.raises(ImageError, match=r"row group 0 has a column of 4,194,\d+ bytes, in"):
        survey([path], ALL)


def footer_of(content):
    """Where the description at the end of a file begins, and where it ends."""
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little"), len(content) - 8


def test_a_description_by_which_pyarrow_ends_the_process(tmp_path):
    path = tmp_path / "x.parquet"
    content = hugging_face(tmp_path).read_bytes()
    begin, end = footer_of(content)
    for place in range(begin, min(end, begin + 500)):
        path.write_bytes(content[:place] + bytes([0]) + content[place + 1 :])
        with suppress(ImageError):
            survey([path], ALL)


def test_pages_that_hold_more_than_the_description_says(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", [row(image=bytes(4 << 20))])
    content = path.read_bytes()
    begin, _ = footer_of(content)
    size = pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
    said = bytes([size << 1 & 127 | 128, size >> 6 & 127 | 128, size >> 13 & 127 | 128, size >> 20])
    assert content[begin:].count(said) == 1
    untrue = bytes([130, 128, 128, 0])
    path.write_bytes(content[:begin] + content[begin:].replace(said, untrue))
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size == 1
    monkeypatch.setattr(parquet, "_LARGEST", 1 << 20)
    pairs, before = survey([path], ALL), pa.total_allocated_bytes()
    with pytest.raises(
        ImageError, match=r"pages of 4,194,\d+ bytes and \d values in column image, in"
    ):
        pairs[0]
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_more_rows_than_there_can_be_images_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_ROWS", 1000)
    path = write(tmp_path / "x.parquet", [row()] * 3000, row_group_size=3000)
    with pytest.raises(ImageError, match=r"3,000 rows in [\d,]+ bytes, too many to have an image"):
        survey([path], ALL)


def test_odd_columns_are_named(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([b"a"])] * 3, ["image", "image", "masks"]), path)
    with pytest.raises(ImageError, match="there are 2 columns image; expected one"):
        survey([path], ALL)
    for odd in ([[b"a"]], [{"path": "a"}], [1.5]):
        pq.write_table(pa.table({"image": odd, "masks": [b"a"]}), path)
        with pytest.raises(ImageError, match=r"column image holds .*; expected bytes of image"):
            survey([path], ALL)


def test_keys_that_are_no_text(tmp_path):
    path = tmp_path / "x.parquet"
    raw = pa.array([b"\xff\xfe", None], pa.binary()).view(pa.string())
    for keys, shown in ((raw, [r" (\xff\xfe)", ""]), (pa.array([7, 8]), [" (7)", " (8)"])):
        table = pa.table({"image": [b"a", b"b"], "masks": [b"a", b"b"], "key": keys})
        pq.write_table(table, path)
        names = [entry.name for entry in survey([path], ALL).entries]
        assert names == [f"{path}, row {n}{text}" for n, text in enumerate(shown)]


@pytest.mark.parametrize("paths", [[], [Path("nowhere")]])
def test_no_path(paths):
    with pytest.raises(ImageError, match="expected Parquet files"):
        survey(paths, ALL)


@pytest.mark.skipif("VISION_DATA" not in os.environ, reason="VISION_DATA names no folder of data")
def test_the_validation_sets():
    folder = Path(os.environ["VISION_DATA"])
    found = survey([folder / "sam_val"], ALL)
    assert len(found) == 397
    some = [found[i] for i in range(0, 397, 8)]
    assert all(pair.masks.shape[1:] == pair.image.shape[:2] == pair.ignore.shape for pair in some)
    assert not any((pair.masks & pair.ignore).any() for pair in some)
    horses = [pair for pair in some if "horses" in pair.name]
    assert {len(pair.masks) for pair in horses} == {1}
    frames = survey([folder / "vos"], ALL)
    assert len(frames) == 913
    dogs = next(i for i, entry in enumerate(frames.entries) if "dogs-jump" in entry.name)
    assert frames[dogs].masks.shape == (3, 240, 432)
