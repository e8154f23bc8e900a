"""The command `patchray`, which `pip install .` installs."""

import importlib
import sys
import tomllib
from pathlib import Path

import pytest

from jobs.__main__ import commands, main
from jobs.storage.lease import exclusive
from jobs.storage.location import Location
from tests import sweeps, tasks
from tests.squares import write_squares
from tests.trained import write_images

NAMES = ["click", "convert", "finetune", "mask", "predict", "prompt", "prune", "train", "tune"]


def test_pip_installs_it():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["patchray"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_it_lists_the_jobs_with_a_line_each(argv, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["patchray", *argv])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == NAMES == list(commands())
    assert all(line.endswith(".") or ":" in line for line in lines)


def test_a_job_gets_the_other_words_and_keeps_its_name(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    assert "usage: jobs.train " in capsys.readouterr().out
    flags = ["--image", "none.png", "--points", "1", "2", "--out", "none/a.txt"]
    with pytest.raises(SystemExit) as stop:
        main(["click", *flags])
    assert stop.value.code == 2


def test_a_word_that_is_no_command_is_refused(capsys):
    assert main(["trian"]) == 2
    assert "patchray: trian is not a command; perhaps you meant train; " in capsys.readouterr().err
    assert main(["__main__"]) == 2


@pytest.mark.parametrize("job", ["train", "tune", "finetune", "predict"])
def test_a_second_job_on_the_same_folder_is_refused(job, request, tmp_path, capsys):
    """`jobs.mask`: tests/jobs/masks/test_mask.py."""
    out = tmp_path / "run"
    flags = {
        "train": tasks.SMALL,
        "tune": sweeps.SMALL,
        "finetune": ["--init-weights", "scratch", "--data", tmp_path / "a.parquet"],
        "predict": [],
    }[job]
    if job == "finetune":
        write_squares(tmp_path / "a.parquet")
    if job == "predict":
        trained = request.getfixturevalue("trained")
        write_images(tmp_path / "images", request.getfixturevalue("digits")[:1])
        flags = ["--data", tmp_path / "images", "--weights", trained.out]
    with exclusive(Location.parse(out), "jobs.tune"):
        before = sorted(out.iterdir())
        assert main([job, *map(str, flags), "--out", str(out)]) == 2
        assert sorted(out.iterdir()) == before
    assert f"--out {out} is in use by jobs.tune (process " in capsys.readouterr().err
