"""`jobs.click` refuses to write over its own image, and to write one file twice."""

import os

import numpy as np
import pytest
from PIL import Image

from jobs import click


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (16, 12), (90, 0, 0)).save(tmp_path / "photo.png")
    (tmp_path / "link.png").symlink_to("photo.png")
    os.link(tmp_path / "photo.png", tmp_path / "hard.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize(
    ("out", "mask", "flags"),
    [
        ("photo.png", None, ("--image", "--out")),
        ("sub/../photo.png", None, ("--image", "--out")),
        ("link.png", None, ("--image", "--out")),
        ("hard.png", None, ("--image", "--out")),
        ("out.png", "photo.png", ("--image", "--mask")),
        ("out.png", "out.png", ("--out", "--mask")),
        ("out.png", "./sub/../out.png", ("--out", "--mask")),
    ],
)
def test_files_that_would_be_overwritten_are_refused(photo, capsys, out, mask, flags):
    before, folder = photo.read_bytes(), photo.parent
    (folder / "sub").mkdir()
    argv = ["--image", str(photo), "--points", "3", "4", "--out", f"{folder}/{out}"]
    argv += [] if mask is None else ["--mask", f"{folder}/{mask}"]
    assert click.main(argv) == 2
    said = capsys.readouterr().err
    first, second = flags
    assert f"{first} {folder}" in said
    assert "are the same file, which would be overwritten; give" in said
    assert f"give {second} another name" in said
    assert photo.read_bytes() == before
    assert not (folder / "out.png").exists()


def test_the_same_file_in_s3_is_refused(capsys):
    argv = ["--image", "flower", "--points", "3", "4", "--out", "s3://b/x.png"]
    assert click.main([*argv, "--mask", "s3://b/x.png?region=eu-west-1"]) == 2
    assert "are the same file" in capsys.readouterr().err


def test_all_clicks_are_obeyed(tmp_path):
    Image.new("RGB", (64, 48), (90, 60, 0)).save(tmp_path / "photo.png")
    argv = ["--image", f"{tmp_path}/photo.png", "--out", f"{tmp_path}/out.png"]
    argv += [
        "--points",
        "10",
        "10",
        "13",
        "10",
        "50",
        "40",
        "52",
        "40",
        "--labels",
        "1",
        "0",
        "1",
        "0",
    ]
    assert click.main([*argv, "--mask", f"{tmp_path}/mask.png"]) == 0
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert [int(mask[y, x]) for x, y in ((10, 10), (13, 10), (50, 40), (52, 40))] == [
        255,
        0,
        255,
        0,
    ]
