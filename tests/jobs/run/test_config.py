"""Flags and YAML to one config: what wins, what is refused, and in which words."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from jobs.classifier.task import TrainConfig
from jobs.run.config import RECIPES, ConfigError, as_settings, as_yaml, changed, parse, parse_yaml
from jobs.segmenter.config import FinetuneConfig
from jobs.storage.location import Location
from jobs.sweep.config import TuneConfig


def read(*argv, of=TrainConfig):
    return parse(of, ["--out", "x", *argv], "jobs.train", "Train.")


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        read(*argv)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_flags_win_over_yaml(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "epochs: 7\nmodel: {depth: 3, qk_norm: true, init_values: 1.0e-5}\n"
        "optim: {lr: 3e-4, betas: [0.8, 0.9]}\ndata: [a, b]\n"
    )
    config = read("--config", str(path), "--model.depth", "5")
    assert (config.epochs, config.model.depth, config.model.qk_norm) == (7, 5, True)
    assert (config.optim.lr, config.optim.betas, config.data) == (3e-4, (0.8, 0.9), ("a", "b"))
    assert config.model.init_values == 1e-5
    assert read(f"--config={path}").model.depth == 3


ROOT = Path(__file__).parents[3]
OF_MINI = ROOT / "masking/weights/recipes"


def config_of(recipe, name):
    """The config class of the command in a recipe's head, which says hardware and result, too."""
    head = "\n".join(line for line in recipe.read_text().splitlines() if line.startswith("#"))
    assert "Hardware:" in head
    assert "Result:" in head
    job = re.search(rf"python -m jobs\.(\w+) --config {name}", head).group(1)
    return {"train": TrainConfig, "finetune": FinetuneConfig, "tune": TuneConfig}[job]


@pytest.mark.parametrize("recipe", sorted(OF_MINI.glob("*.yaml")), ids=lambda p: p.name)
def test_recipes_of_mini_are_used_by_their_path(recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    name = str(recipe.relative_to(ROOT))
    assert read("--config", name, "--data", "d", of=config_of(recipe, name)).config == name


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.name)
def test_recipes(recipe):
    """Every recipe parses, by its name too."""
    of = config_of(recipe, recipe.name)
    by_name = read("--config", recipe.name, "--data", "d", of=of)
    again = read("--config", recipe.stem, "--config", recipe.name, "--data", "d", of=of)
    assert by_name == again


def test_a_config_comes_back_from_its_yaml(tmp_path):
    config = read("--model.init-values", "1e-5", "--data", "a", "b", "--model.qk-norm")
    path = tmp_path / "config.yaml"
    path.write_text(as_yaml(config))
    again = parse(TrainConfig, ["--config", str(path)], "jobs.train", "")
    assert as_settings(again) | {"config": None} == as_settings(config)


def test_bad_settings_name_both_values_and_the_flag(capsys, tmp_path):
    for argv, words in {
        ("--model.num-heads", "5"): "model.num_heads 5 does not divide model.embed_dim 192",
        ("--model.patch-size", "5"): "model.patch_size 5 does not divide model.image_size 32",
        ("--workers", "0"): "--workers is 0; at least 1",
        ("--workers", "9", "--batch-size", "8"): "--workers 9 is more than --batch-size 8",
        ("--model.dept", "3"): "--model.depth INT",
        ("--model.depth", "few"): "--model.depth",
        ("--epochs", "3"): "--optim.warmup-epochs is 5.0; it must be less than --epochs 3",
        ("--config", "nope"): "--config nope: no such file or recipe; the recipes are: ",
        ("--config",): "--config",
        ("--precision", "float16"): "--precision",
        ("--optim.lr", "-1"): "optim.lr is -1.0; it must be above 0",
        ("--augment.hflip", "2"): "augment.hflip is 2.0",
        ("--batch-size", "0"): "--batch-size is 0; at least 1 is needed",
    }.items():
        assert words in refused(capsys, *argv)


def test_bad_yaml_names_the_file(capsys, tmp_path):
    path = tmp_path / "bad.yaml"
    for text, words in {
        "model: {dept: 3}": "model.dept is not a setting; perhaps you meant model.depth",
        "model: [1": "is not YAML",
        "- 1": "settings are expected",
        "model: {depth: few}": "settings come from",
        "model: 3": "model is a group of settings",
    }.items():
        path.write_text(text)
        message = refused(capsys, "--config", str(path))
        assert words in message
        assert str(path) in message


def test_what_may_change_on_resume():
    old = parse_yaml(as_yaml(read()), "old")
    assert changed(old, read("--workers", "3", "--patience", "4", "--device", "cpu")) == []
    lines = changed(old, read("--model.depth", "3", "--seed", "1", "--data", "d"))
    assert sorted(lines) == [
        "--model.depth is 3, but the run was started with 6",
        "--seed is 1, but the run was started with 0",
    ]
    del old["model"]["depth"]  # of a version that did not know it
    assert changed(old, read()) == []


def test_parse_yaml_needs_settings():
    with pytest.raises(ConfigError, match="holds list"):
        parse_yaml("[1]", "a file")
    assert yaml.safe_load(as_yaml(read()))["model"]["depth"] == 6
    assert Path(RECIPES).is_dir()


def test_settings_may_lie_in_s3(s3, capsys):
    """As best.yaml of a sweep does whose folder is a bucket."""
    Location.parse(f"{s3}/best.yaml").write_bytes(b"epochs: 7")
    assert read("--config", f"{s3}/best.yaml").epochs == 7
    assert f"--config {s3}/none.yaml: " in refused(capsys, "--config", f"{s3}/none.yaml")


@dataclass(frozen=True, kw_only=True)
class TrackedConfig:
    share: float = field(default=0.5, metadata={"was": "old_share"})
    exclusive: bool = field(default=True, metadata={"was": "rivals"})


@dataclass(frozen=True, kw_only=True)
class RenamedConfig:
    config: str | None = field(default=None, metadata={"may_change": True})
    track: TrackedConfig = TrackedConfig()


def test_a_setting_that_was_renamed_keeps_working_under_its_old_name(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("track: {old_share: 0.4, rivals: false}")
    expected = TrackedConfig(share=0.4, exclusive=False)
    for argv in (
        ["--config", str(path)],
        ["--track.old_share", "0.4", "--track.no-rivals"],
        ["--track.old-share=0.4", "--track.old-share=0.4", "--track.no-exclusive"],
    ):
        config = parse(RenamedConfig, argv, "jobs.some", "")
        assert config.track == expected
        assert capsys.readouterr().err.count("is now called --track.share; use the new name") == 1
        assert changed(parse_yaml(path.read_text(), ""), config) == []
    lines = changed({"track": {"old_share": 0.3}}, config)
    assert lines == [
        "--track.share is 0.4, but the run was started with 0.3",
        "--track.exclusive is False, but the run was started with True",
    ]
