"""Data sets against torchvision, scikit-learn and Pillow; splits, orders, the cache, bad input."""

import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from vit.config import DatasetConfig
from vit.data import cache as caches
from vit.data import sets as data
from vit.data.cifar import CIFAR
from vit.data.decode import DataError, Pack, decode
from vit.data.formats import find
from vit.data.walk import EXTENSIONS

CIFAR10, CIFAR100 = DatasetConfig("cifar10"), DatasetConfig("cifar100")
FOLDER = DatasetConfig("imagefolder", val_fraction=0.25)


def pixels(n, height=32, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def encoded(array, kind="png", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


# --- CIFAR's archives ----------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 did, as in the published archives."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, value):
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string


def pickled(content, style):
    if style != "python2":
        return pickle.dumps(content, style)
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def cifar_files(config, style=2, rows=20, labels=None, **changes):
    """The files of a small archive, by name, with their content before pickling."""
    layout = CIFAR[config.name]
    files = {}
    for i, name in enumerate((*layout.train, *layout.test)):
        images = pixels(rows, seed=i).transpose(0, 3, 1, 2).reshape(rows, -1)
        content = {"data": images, layout.label_key: [(i + j) % 10 for j in range(rows)]}
        files[name] = {"batch_label": name, **content, "filenames": ["x.png"] * rows}
    files[layout.meta] = {
        layout.class_key: [f"class {i}" for i in range(len(layout.classes.split()))]
    }
    files.update(changes)
    return {name: pickled(content, style) for name, content in files.items() if content}


def write_folder(root, config, files):
    folder = root / CIFAR[config.name].folder
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(root, config, files):
    """With members out of order, as in the published ones."""
    layout = CIFAR[config.name]
    with tarfile.open(root / layout.archive, "w:gz") as archive:
        for name in sorted(files, reverse=True):
            member = tarfile.TarInfo(f"{layout.folder}/{name}")
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return root / layout.archive


def torchvision_cifar(root, config, monkeypatch):
    """What torchvision reads from `root`: ((images, labels), (images, labels), classes)."""
    cls = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}
    cls = cls[config.name]
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(cls, name, [[file, None] for file, _ in getattr(cls, name)])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": None})
    sets = [cls(root, train=train) for train in (True, False)]
    return [(part.data.transpose(0, 3, 1, 2), part.targets) for part in sets], sets[0].classes


@pytest.mark.parametrize("config", [CIFAR10, CIFAR100], ids=lambda config: config.name)
@pytest.mark.parametrize("style", ["python2", 2, 5])
def test_cifar_pickles_agree_with_torchvision(tmp_path, monkeypatch, config, style):
    files = cifar_files(config, style)
    folder = write_folder(tmp_path / "a", config, files)
    archive = write_archive(tmp_path, config, files)
    (train, test), classes = torchvision_cifar(tmp_path / "a", config, monkeypatch)
    for path in (folder, folder.parent, archive, tmp_path):
        ours = data.load(config, [path], 32, tmp_path / "cache")
        np.testing.assert_array_equal(ours.train.images, train[0])
        np.testing.assert_array_equal(ours.train.labels, train[1])
        np.testing.assert_array_equal(ours.test.images, test[0])
        np.testing.assert_array_equal(ours.test.labels, test[1])
        assert list(ours.classes) == classes
        summary = data.check(config, [path])
        sizes = (len(ours.train), len(ours.val), len(ours.test))
        assert (summary.train, summary.val, summary.test) == sizes
        assert summary.classes == ours.classes


class Call:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, eval, np.save, getattr])
def test_a_pickle_calls_nothing(tmp_path, function):
    trap = tmp_path / "trap"
    args = {os.mkdir: [str(trap)], eval: [f"__import__('os').mkdir({str(trap)!r})"]}
    call = Call(function, *args.get(function, [str(trap), "x"]))
    folder = write_folder(tmp_path, CIFAR10, cifar_files(CIFAR10, data_batch_2={"data": call}))
    with pytest.raises(DataError, match=r"data_batch_2 is not a pickle of CIFAR: it names"):
        data.check(CIFAR10, [folder])
    assert not trap.exists()
    assert not trap.with_suffix(".npy").exists()


def test_class_names_without_a_meta_file(tmp_path):
    folder = write_folder(tmp_path, CIFAR100, cifar_files(CIFAR100, meta=None))
    classes = data.check(CIFAR100, [folder]).classes
    assert len(set(classes)) == 100
    assert list(classes) == sorted(classes)
    assert (classes[0], classes[51], classes[99]) == ("apple", "mushroom", "worm")


# --- Parquet -------------------------------------------------------------------------------------


def write_parquet(path, images, labels, columns=("image", "label"), kind=None, **options):
    kind = kind or pa.binary()
    if pa.types.is_struct(kind):
        images = [{"bytes": image, "path": "x.png"} for image in images]
    table = pa.table([pa.array(images, kind), pa.array(labels)], names=list(columns))
    pq.write_table(table, path, **options)


def png(n, seed=0):
    return [encoded(image) for image in pixels(n, seed=seed)]


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        (("image", "label"), pa.binary()),
        (("image", "label"), pa.large_binary()),
        (("img", "fine_label"), pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ],
)
def test_parquet_in_a_folder_or_named(tmp_path, columns, kind):
    sizes = {"train-00": 300, "train-01": 20, "test": 30, "validation-0": 10}
    for i, (name, n) in enumerate(sizes.items()):
        path = tmp_path / f"{name}.parquet"
        write_parquet(path, png(n, i), np.arange(n) % 10, columns, kind, row_group_size=70)
    (tmp_path / "other.parquet").write_bytes(b"not looked at")
    named = [tmp_path / f"{n}.parquet" for n in ("validation-0", "train-00", "test", "train-01")]
    for paths in ([tmp_path], named):
        ours = data.load(CIFAR10, paths, 32, tmp_path / "cache")
        for part, seeds in ((ours.train, (0, 1)), (ours.val, (3,)), (ours.test, (2,))):
            counts = [list(sizes.values())[seed] for seed in seeds]
            expected = [pixels(n, seed=seed) for n, seed in zip(counts, seeds, strict=True)]
            expected = np.concatenate(expected).transpose(0, 3, 1, 2)
            np.testing.assert_array_equal(part.images[part.rows], expected)
            labels = np.concatenate([np.arange(n) % 10 for n in counts])
            np.testing.assert_array_equal(part.labels[part.rows], labels)
        notes = [
            f"{tmp_path / 'other.parquet'}: neither train, val nor test by its name; it is not used"
        ]
        summary = data.check(CIFAR10, paths)
        assert summary == data.Summary(ours.classes, 320, 10, 30, tuple(notes * (paths != named)))
    assert len(list((tmp_path / "cache").glob("*.lock"))) == 1  # the same files, decoded once


def test_parquet_without_a_test_set(tmp_path):
    write_parquet(tmp_path / "train.parquet", png(30), np.arange(30) % 10)
    ours = data.load(CIFAR10, [tmp_path], 16, tmp_path / "cache")
    assert ours.test is None
    assert (len(ours.train), len(ours.val)) == (27, 3)
    assert ours.train.images is ours.val.images
    assert ours.train.images.shape == (30, 3, 16, 16)


@pytest.mark.skipif("VISION_DATA" not in os.environ, reason="VISION_DATA names no folder of data")
def test_the_real_cifar10(tmp_path):
    path = Path(os.environ["VISION_DATA"]) / "cifar10"
    if not path.is_dir():
        pytest.skip(f"{path} is not there")
    ours = data.load(CIFAR10, [path], 32, tmp_path)
    assert ours.train.images.shape == (50_000, 3, 32, 32)
    assert ours.test.images.shape == (10_000, 3, 32, 32)
    for part, each in ((ours.train, 4500), (ours.val, 500), (ours.test, 1000)):
        assert np.bincount(part.labels[part.rows]).tolist() == [each] * 10
    mean = ours.train.images.mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(mean, (0.4913, 0.4821, 0.4465), atol=1e-4)
    images = pq.read_table(path / "train-03.parquet", columns=["image"]).column(0)
    for row in (0, 255, 256, 9999):
        image = np.asarray(Image.open(io.BytesIO(images[row].as_py())))
        np.testing.assert_array_equal(ours.train.images[30_000 + row], image.transpose(2, 0, 1))


# --- Digits --------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn(tmp_path):
    ours = data.load(DatasetConfig(), [], 8, tmp_path)
    theirs = load_digits()
    sets = (ours.train, ours.val, ours.test)
    assert [len(part) for part in sets] == [1294, 144, 359]
    images = np.concatenate([part.images[part.rows] for part in sets])
    labels = np.concatenate([part.labels[part.rows] for part in sets])
    assert (images == images[:, :1]).all()  # grey
    mine = sorted(
        (image.tobytes(), label) for image, label in zip(images[:, 0], labels, strict=True)
    )
    scaled = np.rint(theirs.images * 255 / 16).astype(np.uint8)
    assert scaled.max() == 255
    assert mine == sorted((i.tobytes(), t) for i, t in zip(scaled, theirs.target, strict=True))


def test_the_test_set_of_digits_is_fixed_and_stratified(tmp_path):
    ours = [data.load(DatasetConfig(split_seed=seed), [], 8, tmp_path) for seed in (0, 1)]
    np.testing.assert_array_equal(ours[0].test.images, ours[1].test.images)
    assert not np.array_equal(ours[0].val.rows, ours[1].val.rows)
    target = load_digits().target
    _, theirs = train_test_split(target, test_size=359, stratify=target, random_state=0)
    counts = np.bincount(ours[0].test.labels)
    assert abs(counts - np.bincount(theirs)).max() <= 1  # ties of remainders are broken otherwise


# --- Image folders -------------------------------------------------------------------------------


def write_images(root, classes, sizes=((20, 20), (31, 20), (20, 47))):
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for j, (height, width) in enumerate(sizes):
            image = pixels(1, height, width, seed=10 * i + j)[0]
            (root / name / f"{j}.png").write_bytes(encoded(image))
    return root


def folder_with_sets(root):
    for name, classes in (("train", "cab"), ("val", "bc"), ("test", "abc")):
        write_images(root / name, classes)
    return root


def test_image_folder_agrees_with_torchvision(tmp_path):
    root = folder_with_sets(tmp_path / "root")
    for i, name in enumerate(("zz", "aa", "mm/deeper", "bb", "yy", "cc")):
        (root / "train/b" / name).mkdir(parents=True)
        (root / "train/b" / name / "0.PNG").write_bytes(encoded(pixels(1, seed=i)[0]))
    (root / "train/b/notes.txt").write_text("no image")
    (root / "train/.hidden").mkdir()
    theirs = torchvision.datasets.ImageFolder(root / "train", allow_empty=True)
    geometry = v2.Compose([v2.Resize(16), v2.CenterCrop(16), v2.PILToTensor()])
    ours = data.load(FOLDER, [root], 16, tmp_path / "cache")
    assert ours.classes == ("a", "b", "c")
    names = [name for name in theirs.classes if name != ".hidden"]
    assert list(ours.classes) == names
    labels = [names.index(theirs.classes[label]) for _, label in theirs.samples]
    assert ours.train.labels.tolist() == labels
    expected = np.stack([geometry(image).numpy() for image, _ in theirs])
    np.testing.assert_allclose(ours.train.images, expected.astype(int), rtol=0, atol=1)
    assert ours.val.labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert len(ours.test) == 9


def test_one_folder_is_split(tmp_path):
    root = write_images(tmp_path / "root", ["cat", "dog"], [(9, 9)] * 8)
    ours = data.load(FOLDER, [root], 9, tmp_path / "cache")
    assert ours.classes == ("cat", "dog")
    assert ours.test is None
    assert np.bincount(ours.train.labels[ours.train.rows]).tolist() == [6, 6]
    assert np.bincount(ours.val.labels[ours.val.rows]).tolist() == [2, 2]


def test_extensions_are_torchvisions_and_more():
    assert EXTENSIONS[: len(IMG_EXTENSIONS)] == IMG_EXTENSIONS


# --- Decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 32, 50])
@pytest.mark.parametrize("shape", [(8, 8), (32, 32), (33, 50), (50, 33), (1, 40), (100, 7), (5, 4)])
def test_geometry_is_torchvisions(shape, size):
    image = Image.fromarray(pixels(1, *shape)[0])
    expected = v2.functional.resize(image, [size], v2.InterpolationMode.BILINEAR, antialias=True)
    expected = np.asarray(v2.functional.center_crop(expected, [size])).transpose(2, 0, 1)
    ours = decode(encoded(pixels(1, *shape)[0]), size)
    # What is cut off is not computed, so ties at half a level may round the other way.
    assert abs(ours - expected.astype(int)).max() <= (shape[0] != shape[1])


def test_a_needle_is_never_resized_in_full():
    needle = encoded(np.zeros((1, 60_000, 3), np.uint8))
    assert decode(needle, 224).shape == (3, 224, 224)  # 224 x 13,440,000 would be 9 GB


@pytest.mark.parametrize(("shape", "scale"), [((300, 400), 8), ((64, 200), 2), ((63, 64), 1)])
def test_a_large_jpeg_is_decoded_small(shape, scale):
    small = pixels(1, 8, 8)[0]
    picture = Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC)
    image = encoded(np.asarray(picture), "jpeg", quality=95)
    drafted = Image.open(io.BytesIO(image))
    drafted.draft(None, (drafted.width // scale, drafted.height // scale))
    assert drafted.size == tuple(-(-side // scale) for side in picture.size)
    plain = decode(encoded(np.asarray(drafted.convert("RGB"))), 32)
    np.testing.assert_array_equal(decode(image, 32), plain)
    full = decode(encoded(np.asarray(Image.open(io.BytesIO(image)))), 32)
    assert abs(full.astype(int) - plain).mean() < 4  # levels of 255: the same picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = encoded(pixels(1, 16, 16)[0], exif=exif)
    raw = torch.frombuffer(bytearray(image), dtype=torch.uint8)
    expected = torchvision.io.decode_image(raw, apply_exif_orientation=True)
    np.testing.assert_array_equal(decode(image, 16), expected)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_modes_become_rgb(mode, tmp_path):
    picture = Image.fromarray(pixels(1, 8, 8)[0]).convert(mode)
    path = tmp_path / "image.tif"
    picture.save(path)
    expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(path, 8), expected)


def test_deep_grey_is_scaled_and_32_bits_are_refused(tmp_path):
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    np.testing.assert_array_equal(decode(encoded(grey), 8)[1], grey // 256)
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match="32 bits"):
        decode(tmp_path / "deep.tif", 8)


# --- Split ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1 / 3, 0.5])
@pytest.mark.parametrize("counts", [[5000] * 10, [3, 50, 7, 0, 91], [1, 1], [10, 1, 1], [1797]])
def test_split_is_stratified_and_exact(counts, fraction):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    left, drawn = data.split(labels, fraction, 0)
    assert len(drawn) == round(fraction * len(labels))
    assert sorted([*left, *drawn]) == list(range(len(labels)))
    assert (np.diff(left) > 0).all()
    assert (np.diff(drawn) > 0).all()
    exact = np.array(counts) * len(drawn) / len(labels)
    assert abs(np.bincount(labels[drawn], minlength=len(counts)) - exact).max() < 1
    np.testing.assert_array_equal(drawn, data.split(labels, fraction, 0)[1])


@pytest.mark.parametrize("counts", [[50, 30, 17], [100, 50, 7, 3], [13, 29, 58, 11]])
def test_split_counts_are_scikit_learns(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    size = round(0.2 * len(labels))
    _, theirs = train_test_split(labels, test_size=size, stratify=labels, random_state=0)
    ours = labels[data.split(labels, 0.2, 0)[1]]
    np.testing.assert_array_equal(np.bincount(ours), np.bincount(theirs))


def test_every_sample_is_held_out_by_some_seed():
    labels = np.arange(60) % 3
    drawn = [tuple(data.split(labels, 0.1, seed)[1]) for seed in range(100)]
    assert len(set(drawn)) == 100
    assert set().union(*drawn) == set(range(60))


# --- The cache -----------------------------------------------------------------------------------


def contents(dataset):
    sets = (dataset.train, dataset.val, dataset.test)
    return dataset.classes, [(np.array(s.images), s.labels, s.rows) for s in sets]


def test_decoded_once(tmp_path, monkeypatch):
    root, cache = folder_with_sets(tmp_path / "root"), tmp_path / "cache"
    first = data.load(FOLDER, [root], 16, cache)
    assert isinstance(first.train.images, np.memmap)
    with monkeypatch.context() as patch:
        patch.setattr(caches, "decode", None)
        patch.chdir(tmp_path)
        again = data.load(FOLDER, [Path("root")], 16, cache)
    np.testing.assert_equal(contents(again), contents(first))
    assert data.load(FOLDER, [root], 8, cache).train.images.shape[-1] == 8
    changed = pixels(1, 20, 20, seed=99)[0]
    (root / "train/a/0.png").write_bytes(encoded(changed))
    third = data.load(FOLDER, [root], 20, cache)
    np.testing.assert_array_equal(third.train.images[0], changed.transpose(2, 0, 1))


def test_a_file_of_the_same_size_and_another_time_is_decoded_again(tmp_path):
    root = folder_with_sets(tmp_path / "root")
    data.load(FOLDER, [root], 16, tmp_path / "cache")
    os.utime(root / "test/a/0.png", ns=(0, 12345))
    data.load(FOLDER, [root], 16, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.lock"))) == 2


def test_a_renamed_class_is_seen(tmp_path):
    root = write_images(tmp_path / "root", "ab", [(9, 9)] * 4)
    data.load(FOLDER, [root], 9, tmp_path / "cache")
    (root / "a").rename(root / "aa")
    ours = data.load(FOLDER, [root], 9, tmp_path / "cache")
    assert ours.classes == ("aa", "b")


def test_writing_to_the_images_reaches_nobody_else(tmp_path, recwarn):
    ours = data.load(DatasetConfig(), [], 8, tmp_path)
    tensor = torch.from_numpy(ours.train.images)
    assert not recwarn.list  # torch warns of arrays that it must not write to
    before = tensor[0].clone()
    tensor[0] = 77
    assert torch.equal(
        torch.from_numpy(data.load(DatasetConfig(), [], 8, tmp_path).train.images)[0], before
    )


PARENT = """
import os, signal, sys, time
from pathlib import Path
from vit.data import cache as caches
from vit.data import sets as data
from vit.config import DatasetConfig

root, cache, log = map(Path, sys.argv[1:])
decode = caches.decode

def start(pause):
    if child := os.fork():
        return child
    def slow(*args):
        time.sleep(pause)
        with log.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        return decode(*args)
    caches.decode = slow
    ours = data.load(DatasetConfig("imagefolder"), [root], 16, cache)
    os.write(1, f"{len(ours.train.images)} {ours.train.images.sum()}\\n".encode())
    os._exit(0)

def folders():
    return [path.suffix for path in cache.iterdir() if path.is_dir()]

killed = start(0.2)
while not (log.exists() and log.read_text().count("\\n") > 2):
    time.sleep(0.01)
os.kill(killed, signal.SIGKILL)
os.waitpid(killed, 0)
assert folders() == [".partial"], folders()
log.unlink()
assert [os.waitpid(child, 0)[1] for child in [start(0.001) for _ in range(3)]] == [0, 0, 0]
assert folders() == [""], folders()
"""


def test_three_processes_decode_once_after_one_was_killed_decoding(tmp_path):
    root = write_images(tmp_path / "root", "ab", [(9, 9)] * 200)
    cache, log = tmp_path / "cache", tmp_path / "log"
    env = {**os.environ, "PYTHONPATH": str(Path(data.__file__).parents[2])}
    command = [sys.executable, "-c", PARENT, root, cache, log]
    answers = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    pids = log.read_text().split()
    assert len(pids) == 400
    assert len(set(pids)) == 1
    total = data.load(FOLDER, [root], 16, cache).train.images.sum()
    assert answers.splitlines() == [f"400 {total}"] * 3


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(DataError, match=r"in the cache .*file.*choose another folder"):
            data.load(DatasetConfig(), [], 8, cache)


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (100_000, hard)
        )  # a write fails, as on a full disk
        with pytest.raises(DataError, match="File too large; free some space there"):
            data.load(DatasetConfig(), [], 8, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert len(data.load(DatasetConfig(), [], 8, tmp_path).test) == 359


def test_a_damaged_cache_is_named(tmp_path):
    data.load(DatasetConfig(), [], 8, tmp_path)
    (images,) = tmp_path.glob("digits-*/train.images.npy")
    os.truncate(images, 1000)
    with pytest.raises(DataError, match=rf"{images.parent} is damaged .* remove this folder"):
        data.load(DatasetConfig(), [], 8, tmp_path)


# --- Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "names", "message"),
    [
        (DatasetConfig(), ["a"], "dataset digits: got .*; expected no path"),
        (CIFAR10, [], r"dataset cifar10: got no path; expected cifar-10-python.tar.gz .*Parquet"),
        (CIFAR10, ["nowhere"], r"(?s)paths do not exist; dataset cifar10 expects .*/nowhere"),
        (CIFAR100, ["empty"], "no training images in .*/empty; dataset cifar100 expects"),
        (CIFAR10, ["a.txt", "empty"], r"(?s)files that belong to no set of dataset cifar10.*a.txt"),
        (CIFAR10, ["a.txt"], "a.txt cannot be read: "),
        (CIFAR10, ["train.parquet"], r"train.parquet cannot be read: "),
        (FOLDER, ["a.txt"], "dataset imagefolder: got .*a.txt; expected one folder"),
        (FOLDER, ["empty"], "empty: no class folders; dataset imagefolder expects one folder"),
        (FOLDER, ["no_train"], "no_train/train: no class folders"),
        (
            FOLDER,
            ["sets"],
            r"(?s)cannot be used \(2\):.*train/a: no image in it.*val/z: not a class",
        ),
    ],
)
def test_paths_that_do_not_fit(tmp_path, config, names, message):
    for folder in ("a", "empty", "no_train/val/a", "sets/train/a"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "a.txt").write_text("no archive")
    (tmp_path / "train.parquet").write_text("no Parquet")
    write_images(tmp_path / "sets/train", "b")
    write_images(tmp_path / "sets/val", "z")
    with pytest.raises(DataError, match=message):
        data.check(config, [tmp_path / name for name in names])


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
def test_a_class_whose_name_is_no_text_is_refused(tmp_path):
    """As old archives leave them: nothing that names classes could be written at the end."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    write_images(tmp_path, "b")
    shutil.copy(tmp_path / "b" / "0.png", folder / "a.png")
    with pytest.raises(DataError, match=r"caf\\udce9': a name that is not UTF-8; rename it"):
        data.check(FOLDER, [tmp_path])


ROWS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (None, r"files of cifar-10-batches-py missing \(1\):\n  data_batch_3"),
        ([1], "data_batch_3 holds list"),
        ({"labels": [1, 2]}, r"data_batch_3: data is not an array of uint8 of shape \(N, 3072\)"),
        ({"data": ROWS[0], "labels": [1]}, "data_batch_3: data is not an array"),
        ({"data": np.array(0, np.uint8), "labels": [1]}, "data_batch_3: data is not an array"),
        ({"data": ROWS * 1.0, "labels": [1, 1]}, "data_batch_3: data is not an array"),
        (
            {"data": ROWS, "fine_labels": [1, 1]},
            "labels is not a list of integers.*data, fine_labels",
        ),
        ({"data": ROWS, "labels": [1, 1.5]}, "data_batch_3: labels is not a list of integers"),
        ({"data": ROWS, "labels": [1]}, "data_batch_3: 1 labels for 2 rows"),
        (
            {"data": ROWS, "labels": [10, -1]},
            r"labels outside the 10 classes, 0 to 9 \(2\):\n.*data_batch_3, row 0: label 10\n"
            r".*data_batch_3, row 1: label -1",
        ),
    ],
)
def test_bad_batches(tmp_path, batch, message):
    files = cifar_files(CIFAR10, data_batch_3=batch)
    for write in (write_folder, write_archive):
        with pytest.raises(DataError, match=message):
            data.check(CIFAR10, [write(tmp_path, CIFAR10, files)])


def test_damaged_and_mistaken_archives(tmp_path):
    archive = write_archive(tmp_path, CIFAR10, cifar_files(CIFAR10))
    with pytest.raises(DataError, match=r"files of cifar-100-python missing \(2\)"):
        data.check(CIFAR100, [archive])
    os.truncate(archive, archive.stat().st_size // 2)
    with pytest.raises(DataError, match=rf"{archive.name}.*(cannot be read|not a pickle)"):
        data.check(CIFAR10, [archive])


@pytest.mark.parametrize(
    ("images", "labels", "columns", "message"),
    [
        (png(2), [0, 10], ("image", "label"), r"0 to 9 \(1\):\n  .*train.parquet, row 1: label 10"),
        (
            png(2),
            [0, None],
            ("image", "label"),
            r"without a label \(1\):\n  .*parquet, row 1",
        ),
        (png(2), ["cat", "dog"], ("image", "label"), "label is string; expected integers"),
        (png(2), [0, 1], ("picture", "label"), "no column image or img; .* are picture, label"),
        (png(2), [0, 1], ("image", "key"), "no column label or fine_label; .* are image, key"),
        ([1, 2], [0, 1], ("image", "label"), "image is int64; expected bytes of image files"),
        ([], [], ("image", "label"), r"without a single image \(1\):\n  train: .*train.parquet"),
        (png(2), [0, 1], ("image", "label"), r"val_fraction is 0.1; of 2 .* is less than one"),
    ],
)
def test_bad_parquet(tmp_path, images, labels, columns, message):
    kind = pa.int64() if images == [1, 2] else pa.binary()
    labels = pa.array(labels, None if labels else pa.int64())
    write_parquet(tmp_path / "train.parquet", images, labels, columns, kind)
    with pytest.raises(DataError, match=message):
        data.check(CIFAR10, [tmp_path])


def test_all_bad_files_are_named_in_one_message(tmp_path):
    for name in ("train-0", "train-1", "test"):
        write_parquet(tmp_path / f"{name}.parquet", png(1), [0], ("image", "x"))
    with pytest.raises(DataError, match=r"(?s)\(3\):.*train-0.*train-1.*test"):
        data.check(CIFAR10, [tmp_path])


def test_many_bad_labels_are_counted(tmp_path):
    write_parquet(tmp_path / "train.parquet", png(20), [0] * 11 + [100] * 9)
    with pytest.raises(DataError, match=r"(?s)\(9\):.*row 11:.*row 15:.*\.\.\. and 4 more$"):
        data.check(CIFAR10, [tmp_path])


@pytest.mark.parametrize("kind", [pa.binary(), pa.struct([("bytes", pa.binary())])])
def test_images_of_parquet_that_do_not_decode(tmp_path, kind):
    images = png(20) * 15
    images[3], images[4], images[7], images[290] = b"no image", b"", images[7][:200], None
    if pa.types.is_struct(kind):
        images = [{"bytes": image} for image in images]
    table = pa.table({"image": pa.array(images, kind), "label": np.arange(300) % 4})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=120)
    data.check(CIFAR10, [tmp_path])
    with pytest.raises(DataError) as caught:
        data.load(CIFAR10, [tmp_path], 32, tmp_path / "cache")
    *lines, remedy = str(caught.value).splitlines()
    assert lines[0] == "images cannot be used (4):"
    assert [line.split("row ")[1].split(":")[0] for line in lines[1:]] == ["3", "4", "7", "290"]
    assert remedy == "dataset.max_bad_images is 0; set it to 4 to omit them"
    assert "not an image of a format" in lines[1]
    assert "truncated" in lines[3] or "does not decode" in lines[3]
    assert lines[4].endswith("no image: the cell is null")


@pytest.mark.parametrize("cache_gb", [16.0, 0.0])
def test_bad_images_that_are_allowed_are_named_and_left_out(tmp_path, cache_gb):
    images = png(40)
    images[3], images[7], images[20] = b"no image", images[7][:200], None
    write_parquet(tmp_path / "train.parquet", images, np.arange(40) % 4)
    write_parquet(tmp_path / "test.parquet", [*png(5), b""], [0, 1, 2, 3, 4, 5])
    strict = DatasetConfig("cifar10", cache_gb=cache_gb, max_bad_images=3)
    with pytest.raises(DataError, match=r"cannot be used \(4\)"):
        data.load(strict, [tmp_path], 32, tmp_path / "cache")
    ours = data.load(replace(strict, max_bad_images=4), [tmp_path], 32, tmp_path / "cache")
    untrained, *left_out = ours.notes
    assert untrained.endswith("never learnt: deer, dog, frog, horse, ship, ... and 1 more")
    assert [note.split("parquet, ")[1].split(":")[0] for note in left_out] == [
        "row 3", "row 7", "row 20", "row 5",
    ]  # fmt: skip
    assert (len(ours.train) + len(ours.val), len(ours.test)) == (37, 5)
    good = [row for row in range(40) if row not in (3, 7, 20)]
    for part, wanted in ((ours.train, good), (ours.test, range(5))):
        expected = pixels(40 if wanted is good else 5).transpose(0, 3, 1, 2)[wanted]
        rows = part.rows if wanted is good else np.arange(5)
        base = part.rows[0] - rows[0]
        for row in rows:
            np.testing.assert_array_equal(image(part, row + base), expected[row])
            assert part.labels[row + base] == np.array(wanted)[row] % (4 if wanted is good else 10)


def image(part, row):
    return part.images.decode(row) if isinstance(part.images, Pack) else part.images[row]


def test_valid_is_val_and_what_is_no_set_is_said(tmp_path):
    for name in ("train", "valid", "test"):
        write_images(tmp_path / name, ["cat", "dog"], [(9, 9)] * 4)
    (tmp_path / "raw").mkdir()
    survey = find(FOLDER, [tmp_path]).survey()
    assert [*survey.parts] == ["train", "val", "test"]
    assert survey.notes == (f"{tmp_path / 'raw'}: neither train, val nor test; it is not used",)


def test_a_pgm_of_16_bits_has_its_upper_ones(tmp_path):
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    raw = b"P5 8 8 65535\n" + grey.astype(">u2").tobytes()
    found = decode(raw, 8)
    np.testing.assert_array_equal(found, np.repeat((grey >> 8)[None], 3, axis=0))


def test_a_mixed_folder_counts_what_it_leaves_aside(tmp_path):
    root = write_images(tmp_path / "root", ["cat", "dog"], [(9, 9)] * 8)
    (root / "cat/notes.txt").write_text("no image")
    (root / "cat/deeper").mkdir()
    (root / "cat/deeper/clip.mp4").write_text("no image")
    (root / "labels.csv").write_text("no image")
    (root / "dog/.DS_Store").write_text("nobody's")
    (root / "dog/._0.png").write_text("left by macOS")
    (root / "dog/.copies").mkdir()
    (root / "dog/.copies/0.png").write_bytes((root / "dog/0.png").read_bytes())
    kinds = "1 .csv, 1 .txt, 1 .mp4"
    note = f"{root}: 3 files that are not images in a class folder are not used ({kinds})"
    assert data.check(FOLDER, [root]).notes == (note,)
    assert data.load(FOLDER, [root], 9, tmp_path / "cache").notes == (note,)


# --- Parquet of any kind -------------------------------------------------------------------------

PARQUET = DatasetConfig("parquet", val_fraction=0.25)


@pytest.mark.parametrize("kind", ["integers", "strings", "categories", "ClassLabel"])
def test_classes_of_parquet(tmp_path, kind):
    numbers = np.arange(24) % 3
    names = np.array(["dog", "ant", "cat"])
    labels = {
        "integers": pa.array(numbers),
        "strings": pa.array(names[numbers]),
        "categories": pa.array(names[numbers]).dictionary_encode(),
        "ClassLabel": pa.array(numbers),
    }[kind]
    table = pa.table({"image": png(24), "label": labels})
    if kind == "ClassLabel":
        feature = {"label": {"names": list(names), "_type": "ClassLabel"}}
        about = json.dumps({"info": {"features": feature}})
        table = table.replace_schema_metadata({"huggingface": about})
    pq.write_table(table, tmp_path / "train-0.parquet")
    ours = data.load(PARQUET, [tmp_path], 32, tmp_path / "cache")
    if kind == "integers":
        assert ours.classes == ("0", "1", "2")
    else:
        assert set(ours.classes) == set(names)
        assert [ours.classes[label] for label in ours.train.labels] == list(names[numbers])
    assert (ours.classes == tuple(sorted(names))) == (kind in ("strings", "categories"))
    assert data.check(PARQUET, [tmp_path]) == data.Summary(ours.classes, 18, 6, None)


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ([0, 2], [0], r"without a training image; .* without a gap \(1\):\n  1"),
        ([1, 2], [1], r"without a training image; .* \(1\):\n  0"),
        ([10**9, 0], [0], r"without a training image; .* \(1\):\n  1"),
        (["a", "b"], ["b", "c"], r"without a training image \(1\):\n.*val.parquet, row 1: c"),
        ([0.5, 1.0], [1.0], "column label is double; expected integers or names"),
        ([0, 1], ["a"], r"val.parquet and .*train.parquet differ .* has integers as labels"),
    ],
)
def test_classes_of_parquet_that_do_not_fit(tmp_path, train, val, message):
    write_parquet(tmp_path / "train.parquet", png(len(train)), train)
    write_parquet(tmp_path / "val.parquet", png(len(val)), val)
    with pytest.raises(DataError, match=message):
        data.check(PARQUET, [tmp_path])


def shards(root, count=3, rows=20):
    for i in range(count):
        path = root / f"train-{i}.parquet"
        write_parquet(path, png(rows, i), np.arange(rows) % 4, row_group_size=5, compression="zstd")
    return sorted(root.glob("train*"))


def test_a_shard_without_its_end(tmp_path):
    _, damaged, _ = shards(tmp_path)
    os.truncate(damaged, 1000)
    with pytest.raises(
        DataError, match=rf"(?s)used \(20\):\n  {damaged} cannot be read.*set it to 20"
    ):
        data.check(PARQUET, [tmp_path])
    allowed = replace(PARQUET, max_bad_images=20)
    (note,) = data.check(allowed, [tmp_path]).notes
    assert note.startswith(f"left out: {damaged} cannot be read")
    ours = data.load(allowed, [tmp_path], 32, tmp_path / "cache")
    expected = np.concatenate([pixels(20, seed=seed) for seed in (0, 2)]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(ours.train.images, expected)


@pytest.mark.parametrize("cache_gb", [16.0, 0.0])
def test_a_shard_that_is_damaged_inside(tmp_path, cache_gb):
    path = shards(tmp_path)[1]
    column = pq.read_metadata(path).row_group(2).column(0)
    with path.open("r+b") as file:
        file.seek(column.data_page_offset or column.dictionary_page_offset)
        file.write(b"\xff" * 2000)
    config = replace(PARQUET, cache_gb=cache_gb, max_bad_images=4)
    data.check(config, [tmp_path])
    with pytest.raises(DataError, match=rf"(?s)used \(5\):\n  {path}, row 10: its row group 2 "):
        data.load(config, [tmp_path], 32, tmp_path / "cache")
    ours = data.load(replace(config, max_bad_images=5), [tmp_path], 32, tmp_path / "cache")
    assert len(ours.train) + len(ours.val) == 55
    labels = np.delete(np.tile(np.arange(20) % 4, 3), np.arange(30, 35))
    np.testing.assert_array_equal(ours.train.labels, labels)


def test_files_that_do_not_decode(tmp_path):
    root = write_images(tmp_path / "root", "ab", [(9, 9)] * 9)
    for i in range(7):
        (root / "b" / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)\(7\):\n  .*root/b/0.png: .*and 2 more"):
        data.load(FOLDER, [root], 9, tmp_path / "cache")


def test_a_link_to_nothing_is_named(tmp_path):
    root = write_images(tmp_path / "root", "ab")
    (root / "a/broken.png").symlink_to("nothing.png")
    with pytest.raises(DataError, match=r"a/broken\.png: a link to nothing\.png, which"):
        data.load(FOLDER, [root], 9, tmp_path / "cache")


def test_a_class_that_validation_would_use_up(tmp_path):
    write_images(tmp_path / "root", "a", [(9, 9)] * 4)
    write_images(tmp_path / "root", "b", [(9, 9)])
    config = DatasetConfig("imagefolder", val_fraction=0.8)
    with pytest.raises(DataError, match=r"at dataset.val_fraction 0.8; lower it \(1\):\n  b"):
        data.check(config, [tmp_path / "root"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_fraction": 0.0}, "dataset.val_fraction is 0.0"),
        ({"val_fraction": 1.0}, "dataset.val_fraction is 1.0"),
        ({"val_fraction": float("nan")}, "dataset.val_fraction is nan"),
        ({"mean": (0.5, 0.5, 125.0)}, r"dataset.mean is \(0.5, 0.5, 125.0\)"),
        ({"std": (0.5, 0.0, 0.5)}, r"dataset.std is \(0.5, 0.0, 0.5\)"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        DatasetConfig(**settings)
