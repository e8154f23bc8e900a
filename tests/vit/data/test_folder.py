"""Folders of images as people have them: other names of sets, wrappers, links, what is not read."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from tests.vit.data.test_sets import FOLDER, encoded, pixels, write_images
from vit.data import sets as data
from vit.data.decode import DataError
from vit.data.formats import find
from vit.data.layout import set_of

SIZES = [(9, 9)] * 4


def check(root):
    return data.check(FOLDER, [root])


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAINING", "TESTING"),
        ("training_set", "test_set"),
        ("training_set/training_set", "test_set/test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train2017", "test2017"),
        ("trainImages", "testImages"),
        ("train/train", "test"),
    ],
)
def test_sets_of_other_names_are_read_and_said(tmp_path, train, test):
    write_images(tmp_path / train, "bgr", SIZES)
    write_images(tmp_path / test, "bg", SIZES)
    summary = check(tmp_path)
    assert (summary.classes, summary.train, summary.val, summary.test) == (("b", "g", "r"), 9, 3, 8)
    assert f"{tmp_path / train}: read as train" in summary.notes


@pytest.mark.parametrize("name", ["dev", "dev-clean", "Validation", "val_images"])
def test_a_validation_set_of_another_name(tmp_path, name):
    write_images(tmp_path / "training", "bg", SIZES)
    write_images(tmp_path / name, "bg", SIZES)
    summary = check(tmp_path)
    assert (summary.train, summary.val, summary.test) == (8, 8, None)


def test_a_class_may_have_a_word_of_a_set_in_its_name(tmp_path):
    """With images of its own a folder is a class; without, its name must say nothing else."""
    write_images(tmp_path / "a", ["bullet_train", "test_pattern"], SIZES)
    assert check(tmp_path / "a").classes == ("bullet_train", "test_pattern")
    write_images(tmp_path / "b", ["bullet_train/2023", "bullet_train/2024", "bus"], SIZES)
    assert check(tmp_path / "b").classes == ("bullet_train", "bus")


def test_two_folders_may_be_the_training_set(tmp_path):
    for name in ("Training", "train_set"):
        write_images(tmp_path / name, "bg", SIZES)
    with pytest.raises(DataError, match=r"Training, .*/train_set: each may be the train set"):
        check(tmp_path)
    assert [set_of(name) for name in ("train-test", "seg_pred", "dev-00000-of-00001")] == [
        None, None, "val",
    ]  # fmt: skip


def test_classes_that_may_be_sets_are_said(tmp_path):
    for fold in ("fold1", "fold2"):
        write_images(tmp_path / fold, "bg", SIZES)
    (note,) = check(tmp_path).notes
    assert "fold1, fold2 are taken for the classes" in note
    assert "the folders b, g; if these are the classes" in note


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (
            "photos",
            r"only one class folder, photos; .*class folders \(b, g\) are in .*: give .*photos",
        ),
        ("a/photos", r"only one class folder, a; .*class folders \(b, g\) are in .*photos: give"),
        ("photos/train", r"are in .*photos/train: give .*photos$"),
        ("train/photos", r"train: only one class folder, photos; .*\(b, g\) are in .*train/photos"),
    ],
)
def test_an_archive_in_a_folder_of_its_own_name(tmp_path, inside, message):
    write_images(tmp_path / inside, "bg", SIZES)
    with pytest.raises(DataError, match=message):
        check(tmp_path)


def test_one_class_is_no_task(tmp_path):
    write_images(tmp_path, "b", SIZES)
    with pytest.raises(DataError, match=r"only one class folder, b; .*at least two classes$"):
        check(tmp_path)


def test_a_test_set_without_labels_is_left_aside(tmp_path):
    write_images(tmp_path / "train", "bg", SIZES)
    (tmp_path / "val").mkdir()
    (tmp_path / "test").mkdir()
    for i in range(3):
        (tmp_path / f"test/{i}.png").write_bytes(encoded(pixels(1)[0]))
    summary = check(tmp_path)
    assert (summary.train, summary.val, summary.test) == (6, 2, None)
    assert summary.notes == (
        f"{tmp_path / 'val'}: no class folders (empty); it is not used",
        f"{tmp_path / 'test'}: no class folders (3 .png); it is not used",
    )


def test_a_test_set_without_a_class(tmp_path):
    write_images(tmp_path / "train", "bgr", SIZES)
    write_images(tmp_path / "test", "br", SIZES)
    (tmp_path / "test/g").mkdir()
    ours = data.load(FOLDER, [tmp_path], 9, tmp_path / "cache")
    assert np.bincount(ours.test.labels).tolist() == [4, 0, 4]
    assert f"{tmp_path / 'test/g'}: no image in it" in ours.notes


def test_data_that_are_only_measured_may_lack_classes_and_sets(tmp_path):
    write_images(tmp_path / "flat", "b", SIZES)
    (tmp_path / "flat/a").mkdir()
    write_images(tmp_path / "sets/test", "bg", SIZES)
    flat = data.load(
        FOLDER, [tmp_path / "flat"], 9, tmp_path / "cache", hold_out=False, training=False
    )
    named = data.relabelled(flat, ("a", "b"))
    assert flat.classes == ("b",)
    assert (named.classes, named.train.labels.tolist()) == (("a", "b"), [1] * 4)
    sets = data.load(FOLDER, [tmp_path / "sets"], 9, tmp_path / "cache", training=False)
    assert (len(sets.train), len(sets.val), len(sets.test)) == (0, 0, 8)
    with pytest.raises(DataError, match=r"not among the 2 expected ones \(1\):\n  g"):
        data.relabelled(sets, ("a", "b"))


def test_folders_that_cannot_be_listed_are_named(tmp_path, monkeypatch):
    """As root may list all, the refusal is made here."""
    write_images(tmp_path, ["a/2023", "a/2024", "b"], SIZES)
    listed = os.scandir

    def refuse(path):
        if Path(path).name == "2024":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"\(1\):\n  .*/a/2024: Permission denied$"):
        check(tmp_path)


@pytest.mark.parametrize("name", ["c", "b/2024", "b/4.png", "train"])
def test_links_to_what_is_not_there_are_named(tmp_path, name):
    write_images(tmp_path, "ab", SIZES)
    (tmp_path / name).symlink_to("/nowhere/else")
    with pytest.raises(
        DataError, match=rf"/{name}: a link to /nowhere/else, which cannot be reached"
    ):
        check(tmp_path)


def test_what_is_no_file_is_named(tmp_path):
    write_images(tmp_path, "ab", SIZES)
    os.mkfifo(tmp_path / "a/pipe.png")
    with pytest.raises(DataError, match=r"a/pipe\.png: neither a file nor a folder"):
        check(tmp_path)


def test_each_folder_is_used_once_whatever_links_there_are(tmp_path):
    write_images(tmp_path / "root", "ab", SIZES)
    write_images(tmp_path, ["elsewhere"], SIZES)
    links = {"a/up": "..", "a/again": "..", "a/self": ".", "a/other": "../b"}
    for name, target in {**links, "b/more": "../../elsewhere"}.items():
        (tmp_path / "root" / name).symlink_to(target)
    survey = find(FOLDER, [tmp_path / "root"]).survey()
    assert [len(labels) for _, labels in survey.parts["train"]] == [4, 8]
    assert len(survey.notes) == 4
    assert f"a/other: a link to {tmp_path / 'root/b'}, which is used already" in "".join(
        survey.notes
    )


def test_sets_that_share_a_folder_are_said(tmp_path):
    write_images(tmp_path / "train", "ab", SIZES)
    (tmp_path / "val").symlink_to("train")
    notes = "\n".join(check(tmp_path).notes)
    assert f"{tmp_path / 'val/a'} is the same folder as {tmp_path / 'train/a'}" in notes


def test_folders_of_file_servers_are_not_used(tmp_path):
    write_images(tmp_path, ["a", "b", "a/@eaDir", "@eaDir", ".thumbnails", "__MACOSX/a"], SIZES)
    shutil.copy(tmp_path / "a/0.png", tmp_path / "a/._0.png")
    summary = check(tmp_path)
    assert (summary.classes, summary.train + summary.val) == (("a", "b"), 8)
    assert summary.notes == (
        f"{tmp_path}: 3 folders of file servers or systems are not used (@eaDir, __MACOSX)",
    )


def test_other_ends_of_names_are_images_or_counted(tmp_path):
    write_images(tmp_path, "ab", SIZES)
    for i, end in enumerate((".jfif", ".JPE", ".gif", ".avif", ".jp2", ".heic", ".heic", "")):
        kind = {".gif": "gif", ".avif": "avif", ".jp2": "jpeg2000"}.get(end, "jpeg")
        (tmp_path / f"a/x{i}{end}").write_bytes(encoded(pixels(1, seed=i)[0], kind))
    summary = check(tmp_path)
    assert summary.train + summary.val == 13
    assert summary.notes[0].endswith("(2 .heic, 1 without a suffix)")
    ours = data.load(FOLDER, [tmp_path], 9, tmp_path / "cache")
    assert len(ours.train) + len(ours.val) == 13
    for file in (tmp_path / "b").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(DataError, match=r"/b: no image in it \(4 \.heic\)"):
        check(tmp_path)


def test_names_of_classes_match_however_accents_are_written(tmp_path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_images(tmp_path / "train", [composed, "tea"], SIZES)
    write_images(tmp_path / "test", [apart, "tea"], SIZES)
    summary = check(tmp_path)
    assert (summary.classes, summary.test) == ((composed, "tea"), 8)
    write_images(tmp_path / "train", [apart], SIZES)
    with pytest.raises(DataError, match="another folder's name looks the same"):
        check(tmp_path)
