"""The command `patchray`, which `pip install .` installs."""

import importlib
import sys
import tomllib
from pathlib import Path

import pytest

from jobs.__main__ import commands, main

NAMES = ["click", "finetune", "mask", "predict", "prompt", "train", "tune"]


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
