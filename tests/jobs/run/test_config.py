"""Flags and YAML to one config: what wins, what is refused, and in which words."""

import re
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path

import pytest
import yaml

from jobs.classifier.task import TrainConfig
from jobs.masks.config import MaskConfig
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
    more = ("--clips", "d") if "--clips" in recipe.read_text() else ()
    by_name = read("--config", recipe.name, "--data", "d", *more, of=of)
    again = read("--config", recipe.stem, "--data", "d", *more, of=of)
    assert by_name == replace(again, config=recipe.name)


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
        "model: [1": "is not YAML for settings",
        "- 1": "settings are expected",
        "model: {depth: few}": "settings come from",
        "model: 3": "model is a group of settings",
    }.items():
        path.write_text(text)
        message = refused(capsys, "--config", str(path))
        assert words in message
        assert str(path) in message


ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {depth: 1}\nseed: 9\nmodel: {depth: 2}", "model is there twice, in lines 1 and 3"),
        ("model:\n  depth: 1\n  depth: 3", "depth is there twice, in lines 2 and 3"),
        ("space: {depth: 2..4, depth: 3..5}", "depth is there twice, in lines 1 and 1"),
        ("epochs: [3]", "epochs takes one value, not the list ['3']"),
        ("optim: {lr: [1e-3, 1e-4]}", "optim.lr takes one value, not the list"),
        ("optim: {betas: [[0.9, 0.99]]}", "optim.betas holds ['0.9', '0.99'] where one value is"),
        ("data: [a, ~]", "data holds None where one value is needed"),
        ("data: [--epochs, 7]", "data holds '--epochs', which would be a flag"),
        ("epochs: {a: 1}", "epochs is one setting, not a group"),
        ("epochs:", "epochs has no value; give one, or leave the setting out"),
        ("compile: perhaps", "compile is 'perhaps'; expected true or false"),
        ("epochs: .inf", "--epochs"),
        ("optim: {lr: .inf}", "--optim.lr"),
        ("optim: {lr: nan}", "nan is not a finite number"),
        ("optim: {lr: 1e999}", "1e999 is not a finite number"),
        ("epochs: 2026-13-45", "--epochs"),
        (f"epochs: {'9' * 5000}", "--epochs"),
        (f"seed: {10**30}", "has more than 64 bits"),
        ("epochs: !!python/object:os.system 3", "python/object:os.system is not a kind of value"),
        ("epochs: !!timestamp 2026-13-45", "--epochs"),
        ('out: "a\\0b"', "a NUL character in a text"),
        ("[" * 5000, "more than 20 levels"),
        ("model: &m {depth: 3, x: *m}", "an alias inside what it names"),
        (ALIASES, "more than 20,000 values, with those of aliases"),
        ("? [a, b]\n: 3", "a list or group stands where a name of a setting is needed"),
        (b"epochs: 3\ndata: [caf\xe9]", "line 2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b"\x00\x01", "is not YAML"),
        ("#" * 300_000, "has 300,000 bytes; settings have at most 262,144"),
        (f"{'x' * 900}: 3", "is not a setting"),
    ],
)  # fmt: skip
def test_yaml_that_means_something_else_or_nothing(capsys, tmp_path, text, words):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in refused(capsys, "--config", str(path))


def test_words_of_yaml_are_those_of_the_command_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(
        "epochs: 010\nseed: 1_000\nout: 2026.10\ncompile: yes\ndata: 007\n"
        "base: &base {depth: 4, embed_dim: 64}\n".replace("base: &base", "model: &base").encode(
            "utf-16"
        )
    )
    config = parse(TrainConfig, ["--config", str(path), "--model.num-heads", "2"], "jobs.train", "")
    assert (config.epochs, config.seed, config.out, config.compile) == (10, 1000, "2026.10", True)
    assert (config.data, config.model.depth) == (("007",), 4)
    found = parse_yaml("a: 010\nb: 10\nc: 1.5\nd: yes\ne: true\nf: 2026-01-02\ng: ~", "")
    assert found == {
        "a": "010", "b": 10, "c": 1.5, "d": "yes", "e": True, "f": "2026-01-02", "g": None,
    }  # fmt: skip
    merged = parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", "")
    assert merged["b"] == {"x": 1, "y": 3}


def test_no_number_of_a_job_may_be_infinite_or_too_large(capsys):
    """NaN passes every comparison with a limit; 400 digits fit no computation."""

    def numbers(cls, prefix=""):
        for item in fields(cls):
            if is_dataclass(item.type):
                yield from numbers(item.type, f"{prefix}{item.name}.")
            elif item.type in (float, int, float | None, int | None):
                yield f"--{prefix}{item.name}".replace("_", "-"), item.type

    required = [item.name for item in fields(MaskConfig) if item.default is item.default_factory]
    needed = [word for name in required for word in (f"--{name}", "x")]
    found = list(numbers(MaskConfig))
    assert len([flag for flag, _ in found if flag.startswith("--track.")]) > 5
    assert "--time-limit" in dict(found)
    for flag, kind in found:
        value = "nan" if "float" in str(kind) else "9" * 400
        with pytest.raises(SystemExit) as stop:
            parse(MaskConfig, [*needed, f"{flag}={value}"], "job", "")
        assert stop.value.code == 2
        assert flag.removeprefix("--") in capsys.readouterr().err
    for flag in ("--optim.lr=inf", "--optim.betas=0.9,1e999", "--model.init-values=-inf"):
        refused(capsys, *flag.replace("=", ",").split(","))


def test_what_is_given_twice_is_refused(capsys):
    assert "--config is given twice, a and b" in refused(capsys, "--config", "a", "--config=b")
    for twice in (
        ["model.depth", "2..4", "optim.lr", "", "model.depth", "3..5"],
        ["x", "1", "x", "1"],
    ):
        with pytest.raises(SystemExit):
            read("--space", *twice, of=TuneConfig)
        assert f"--space names {twice[0]} twice" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x" * 5000, "/", "/etc/shadow/x", "a\0b"])
def test_names_of_configs_that_are_no_files(capsys, name):
    assert "--config" in refused(capsys, "--config", name)


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
