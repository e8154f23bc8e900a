"""`jobs.predict` without a cluster: what a part is, what a row says, and bad input."""

import csv
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.classifier import parts as parts_module
from jobs.classifier.parts import find, images_of, plan
from jobs.classifier.predictor import Predictor, encode, open_classifier, predict
from jobs.predict import main
from jobs.run.config import ConfigError
from jobs.storage.location import Location
from jobs.weights.classifier import load_weights
from tests.trained import right, rows_of, write_images, write_table

CLASSES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def model(trained):
    return open_classifier(load_weights(str(trained.out)), torch.device("cpu"))[0]


def test_the_same_accuracy_as_the_training(trained, model, digits, tmp_path):
    write_images(tmp_path / "images", digits)
    write_table(tmp_path / "digits.parquet", digits)
    images = rows_of([tmp_path / "images"], model, CLASSES)
    assert right(images, digits) == trained.correct
    tables = rows_of([tmp_path / "digits.parquet"], model, CLASSES)
    assert right(tables, digits) == trained.correct
    assert [row["row"] for row in tables] == list(range(359))
    assert {row["path"] for row in tables} == {str(tmp_path / "digits.parquet")}
    assert {row["row"] for row in images} == {None}
    for row in images:
        probabilities = [row[f"p_{name}"] for name in CLASSES]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert row["probability"] == max(probabilities) == row[f"p_{row['class']}"]


def test_what_does_not_decode_is_a_row_with_its_error(model, digits, tmp_path):
    write_images(tmp_path / "images", digits[:3])
    (tmp_path / "images/0001.png").write_bytes(digits[1][0][:60])
    (tmp_path / "images/0002.png").write_text("no image")
    parts = plan(find([str(tmp_path / "images")]), "f")
    (tmp_path / "images/0000.png").unlink()  # between the listing and the reading
    table = pa.table(
        {"img": pa.array([{"bytes": digits[0][0]}, None, {"bytes": b""}, {"bytes": digits[1][0]}])}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    parts += plan(find([str(tmp_path / "t.parquet")]), "f")
    with ThreadPoolExecutor(2) as pool:
        tables = [predict(part, model, CLASSES, pool) for part in parts]
    files, cells = (table.to_pylist() for table in tables)
    assert [row["class"] for row in files] == [None] * 3
    assert all(row["probability"] is None and row["p_0"] is None for row in files)
    assert "No such file" in files[0]["error"]
    assert "does not decode" in files[1]["error"]
    assert "not an image" in files[2]["error"]
    assert [row["error"] is None for row in cells] == [True, False, False, True]
    assert "null" in cells[1]["error"]
    good = rows_of([tmp_path / "t.parquet"], model, CLASSES)
    assert good[3]["class"] == cells[3]["class"] is not None


def test_a_damaged_row_group_costs_its_own_rows(model, digits, tmp_path):
    path = tmp_path / "t.parquet"
    write_table(path, digits[:40], group=20)
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    rows = rows_of([path], model, CLASSES)
    assert [row["error"] is None for row in rows] == [True] * 20 + [False] * 20
    assert "cannot be read" in rows[20]["error"]


def test_csv_says_the_same(model, digits, tmp_path):
    write_images(tmp_path / "images", digits[:2])
    (tmp_path / "images/0001.png").write_text("no, image")
    (part,) = plan(find([str(tmp_path / "images")]), "f")
    with ThreadPoolExecutor(2) as pool:
        table = predict(part, model, CLASSES, pool)
    first, second = csv.DictReader(io.StringIO(encode(table, "csv").decode()))
    wanted = table.to_pylist()[0]
    assert first["class"] == wanted["class"]
    assert float(first["p_3"]) == pytest.approx(wanted["p_3"], rel=1e-6)
    assert (second["class"], second["probability"], second["row"]) == ("", "", "")
    assert second["error"]


def names(files, root):
    return [file.uri.removeprefix(f"{root}/") for file in files]


def test_folders_globs_and_files(tmp_path, capsys):
    for name in (
        "a.png",
        "b.JPG",
        "c.txt",
        ".hidden.png",
        "sub/d.jpeg",
        "sub/deep/e.png",
        "who?.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    everything = ["a.png", "b.JPG", "sub/d.jpeg", "sub/deep/e.png", "who?.png"]
    assert names(find([str(tmp_path)]), tmp_path) == everything
    assert "1 files that are not images are left out" in capsys.readouterr().out
    wild = {
        "*.png": ["a.png", "who?.png"],
        "?.*": ["a.png", "b.JPG"],
        "**/*.png": ["a.png", "sub/deep/e.png", "who?.png"],
        "s*/*": ["sub/d.jpeg"],
        "sub/**": ["sub/d.jpeg", "sub/deep/e.png"],
    }
    for pattern, expected in wild.items():
        assert names(find([f"{tmp_path}/{pattern}"]), tmp_path) == expected
    twice = [str(tmp_path / "a.png"), str(tmp_path)]
    assert names(find(twice), tmp_path) == everything


def test_links_that_lead_nowhere_or_round(model, digits, tmp_path, capsys):
    write_images(tmp_path / "in", digits[:2])
    write_images(tmp_path / "elsewhere", digits[2:3])
    links = {
        "lost.png": "/nowhere",
        "up": "..",
        "self": ".",
        "again": "../in",
        "more": "../elsewhere",
    }
    for name, target in links.items():
        (tmp_path / "in" / name).symlink_to(target)
    (tmp_path / "in/@eaDir").mkdir()
    (tmp_path / "in/@eaDir/thumb.png").write_bytes(digits[0][0])
    rows = rows_of(
        [tmp_path / "in", tmp_path / "in/../in", tmp_path / "in/0000.png"], model, CLASSES
    )
    found = [(row["path"].removeprefix(f"{tmp_path}/in/"), row["error"] is None) for row in rows]
    wanted = [("0000.png", True), ("0001.png", True), ("lost.png", False), ("more/0000.png", True)]
    assert found == wanted
    assert "No such file" in rows[2]["error"]
    assert "a link to" in capsys.readouterr().out
    only = tmp_path / "only"
    only.mkdir()
    (only / "lost.png").symlink_to("/nowhere")
    assert names(find([str(only)]), only) == ["lost.png"]
    (only / "folder").symlink_to("/nowhere")
    os.mkfifo(only / "pipe.png")
    with pytest.raises(ConfigError, match=r"(?s)folder: a link to .*pipe.png: neither a file"):
        find([str(only)])
    assert names(find([f"{only}/l*.png"]), only) == ["lost.png"]


def test_folders_that_cannot_be_listed_are_named(tmp_path, monkeypatch):
    for name in ("a/x.png", "b/c/y.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    listed = os.scandir

    def refuse(path):
        if Path(path).name == "c":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for text in ("", "/**/*.png", "/b/*/y.png"):
        with pytest.raises(ConfigError, match="/b/c: Permission denied"):
            find([f"{tmp_path}{text}"])
    assert names(find([f"{tmp_path}/*/x.png"]), tmp_path) == ["a/x.png"]


def test_tables_with_paths_alone_say_so(model, digits, tmp_path):
    cells = [{"bytes": None, "path": "x.png"}, {"bytes": digits[0][0], "path": "y.png"}, None]
    pq.write_table(pa.table({"image": cells}), tmp_path / "t.parquet")
    rows = rows_of([tmp_path / "t.parquet"], model, CLASSES)
    assert "only a path (x.png)" in rows[0]["error"]
    assert rows[1]["error"] is None
    assert "null" in rows[2]["error"]


def test_a_part_is_made_anew_only_if_its_files_changed(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "PART", 4)
    write_images(tmp_path / "images", digits[:10])
    before = plan(find([str(tmp_path)]), "f")
    assert [len(part) for part in before] == [4, 4, 2]
    (tmp_path / "images/0005.png").write_bytes(digits[20][0] + b"more")
    after = plan(find([str(tmp_path)]), "f")
    same = [a.name == b.name for a, b in zip(before, after, strict=True)]
    assert same == [True, False, True]
    assert not {part.name for part in plan(find([str(tmp_path)]), "other weights")} & {
        part.name for part in after
    }


def test_rows_of_a_long_row_group(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "PART", 7)
    write_table(tmp_path / "t.parquet", digits[:50], group=30)
    found = plan(find([str(tmp_path)]), "f")
    assert [len(part) for part in found] == [7, 7, 7, 7, 2, 7, 7, 6]
    images = [item for part in found for item in images_of(part)]
    assert [row for _, row, _ in images] == list(range(50))
    assert [read() for _, _, read in images] == [content for content, _ in digits[:50]]


def test_a_large_row_group_is_neither_held_nor_read_again_for_every_part(tmp_path, monkeypatch):
    """By default, pyarrow reads a column of a row group whole."""
    monkeypatch.setattr(parts_module, "PART", 10)
    monkeypatch.setattr(parts_module, "BUFFER", 1 << 14)
    noise = np.random.default_rng(0).bytes
    table = pa.table({"image": [noise(20_000) for _ in range(400)]})
    pq.write_table(table, tmp_path / "t.parquet", compression="none", use_dictionary=False)
    found = plan(find([str(tmp_path)]), "f")
    assert [len(part) for part in found] == [50] * 8
    size, read = (tmp_path / "t.parquet").stat().st_size, []
    plain = Location.open

    class Counted:
        def __init__(self, stream):
            self.stream = stream

        def __getattr__(self, name):
            return getattr(self.stream, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.stream.close()

        def read(self, count=-1):
            content = self.stream.read(count)
            read.append(len(content))
            return content

    monkeypatch.setattr(Location, "open", lambda self: Counted(plain(self)))
    first = list(images_of(found[0]))
    assert first[0][2]() == table["image"][0].as_py()
    assert sum(read) < 0.3 * size


def test_bad_input_ends_before_anything_starts(trained, tmp_path, capsys):
    out = tmp_path / "out"

    def refused(*flags):
        assert main(["--out", str(out), *map(str, flags)]) == 2
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_text("not Parquet")
    good = ["--weights", trained.out]
    assert "no such file or folder" in refused(
        *good, "--data", tmp_path / "nowhere", tmp_path / "empty"
    )
    assert "empty: 0 files" in refused(*good, "--data", tmp_path / "empty")
    assert "1 files, none of which is an image" in refused(*good, "--data", tmp_path / "texts")
    tables = refused(*good, "--data", tmp_path / "x.parquet", tmp_path / "y.parquet")
    assert "x.parquet: no column image or img; its columns are x" in tables
    assert "y.parquet" in tables
    assert "nowhere" in refused("--weights", tmp_path / "nowhere", "--data", tmp_path / "empty")
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes((trained.out / "export/model.safetensors").read_bytes())
    assert "no model.json" in refused("--weights", bare, "--data", tmp_path / "empty")
    assert not out.exists()


def test_a_worker_with_other_weights_refuses(trained, tmp_path):
    from jobs.classifier.predictor import PredictConfig, PredictError

    config = PredictConfig(out=str(tmp_path), weights=str(trained.out), data=("x",))
    with pytest.raises(PredictError, match="are not those that the job was"):
        Predictor(config, "another fingerprint", 1, torch.device("cpu"))
