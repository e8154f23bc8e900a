"""Settings: YAML of every kind behind `--config`, flags, and the text of `--space`."""

import contextlib
import io
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from random import Random

from jobs.classifier.predictor import PredictConfig
from jobs.classifier.task import TrainConfig
from jobs.masks.config import MaskConfig
from jobs.run.config import ConfigError, as_settings, as_yaml, parse
from jobs.run.folder import check_same
from jobs.segmenter.config import FinetuneConfig
from jobs.storage.location import Location
from jobs.sweep.config import TuneConfig
from vit.search import SearchError, space


class RefusedError(Exception):
    """The parser ended with exit code 2; the message is what it printed."""


REFUSALS = (RefusedError, ConfigError, SearchError)

CONFIGS = (TrainConfig, TuneConfig, FinetuneConfig, MaskConfig, PredictConfig)

ODD = (
    *(
        "",
        "~",
        "null",
        "true",
        "yes",
        "no",
        "010",
        "0x10",
        "1:30",
        "1_0",
        "1e-4",
        "1e3",
        ".5",
        "5.",
    ),
    *(".inf", "-.inf", ".nan", "nan", "inf", "1e999", "-1", "0", "9" * 400, "9" * 5000, "-0.0"),
    *("2026-13-45", "2026-01-02 25:61:61", "!!python/object:os.system x", "!!binary x", "!x y"),
    *("[]", "{}", "[1, 2]", "[[1]]", "{a: 1}", "[~]", "*a", "&a [*a]", "&a {b: *a}", "|\n  x", ">"),
    *(
        "'",
        '"',
        '"\\0"',
        '"\\ud800"',
        "--out",
        "[--out, y]",
        "%",
        "@",
        "`",
        "\t",
        "é",
        "- a",
        "? b",
    ),
)
BOUNDS = (
    *("2..8", "64..256 step 64", "1e-4..1e-2 log", "1e-4..1e-2 log in 5", "2, 3, 6", "adamw, muon"),
    *("1e-4...1e-2", "1…5", "8..2", "0..1 log", "1..2 in 1", "1..2 in 99999999999", "1..9 step 0"),
    *("-9e307..9e307 step 1", "0..1e400", f"1..{'9' * 400}", f"{'9' * 400}..{'9' * 401}", "1..nan"),
    *(
        "",
        ",",
        "..",
        "2..",
        "1,1",
        "true, false",
        "none",
        "1..2 step 1e-300",
        "٣..٩",
        "\0",
        "inf..5",
    ),
)


def attempt(random: Random, folder: Path) -> object:
    """Read a random config, then write and read it as a resumed run does."""
    kind = random.choice(CONFIGS)
    if kind is TuneConfig and random.random() < 0.5:
        return _space(random)
    path = folder / "config.yaml"
    path.write_bytes(_mutated(random, _text(random, kind)))
    argv = [*_needed(kind), "--config", str(path)]
    for _ in range(random.choice((0, 0, 0, 1))):
        name = random.choice(list(_names(as_settings(_default(TrainConfig)))))
        argv.append(f"--{name}={random.choice(ODD)}".replace("_", "-"))
    config = _parsed(kind, argv)
    if hasattr(config, "out"):
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints/last.json").write_text("{}")
        if random.random() < 0.5:
            path.write_text(as_yaml(config))
        check_same(Location.parse(folder), config)
    return config


def _space(random: Random) -> object:
    names = (
        "model.depth",
        "depth",
        "optim.lr",
        "optimizer",
        "qk_norm",
        "hflip",
        "init_values",
        "x",
    )
    pairs = [(random.choice(names), random.choice(BOUNDS)) for _ in range(random.randint(1, 3))]
    words = [_bounds(random, word) for pair in pairs for word in pair]
    config = _parsed(TuneConfig, [*_needed(TuneConfig), "--space", *words])
    dimensions = space(config, config.space)
    return [dimension.at(share) for dimension in dimensions for share in (0.0, 0.5, 0.999)]


def _bounds(random: Random, text: str) -> str:
    if text and random.random() < 0.3:
        place = random.randrange(len(text))
        text = text[:place] + random.choice("..-, e9log\0") + text[place + random.randint(0, 1) :]
    return text


def _parsed(kind: type, argv: list[str]) -> object:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return parse(kind, argv, "job", "")
    except SystemExit as stop:
        if stop.code != 2:
            raise
        raise RefusedError(printed.getvalue()) from None


def _needed(kind: type) -> list[str]:
    """Return flags for the settings that have no default."""
    names = [f.name for f in fields(kind) if f.default is f.default_factory is MISSING]
    return [word for name in names for word in (f"--{name}".replace("_", "-"), "x")]


@cache
def _default(kind: type) -> object:
    return _parsed(kind, _needed(kind))


def _names(settings: dict[str, object], prefix: str = "") -> list[str]:
    found = []
    for name, value in settings.items():
        found.append(f"{prefix}{name}")
        if isinstance(value, dict):
            found += _names(value, f"{prefix}{name}.")
    return found


def _text(random: Random, kind: type) -> str:
    """Write a config with some lines replaced, doubled, left out or added."""
    lines = as_yaml(_default(TrainConfig if random.random() < 0.1 else kind)).splitlines()
    for _ in range(random.choice((0, 0, 1, 1, 2))):
        place = random.randrange(len(lines))
        match random.randrange(6):
            case 0:
                lines.insert(random.randrange(len(lines)), lines[place])
            case 1:
                del lines[place]
            case 2 | 3:
                name = lines[place].partition(":")[0]
                lines[place] = f"{name}: {random.choice(ODD)}"
            case 4:
                lines.append(f"{random.choice(('model', 'x' * 2000, 'optim', '<<'))}: {{}}")
            case _:
                lines[place] = " " * random.randint(0, 5) + lines[place].strip()
    if random.random() < 0.03:
        depth = random.choice((10, 30, 3000))
        lines.append(f"x: {'[' * depth}{']' * depth}")
    if random.random() < 0.03:
        lines += ["a0: &a0 [x, x, x, x]"]
        lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 16)]
    return "\n".join(lines)


def _mutated(random: Random, text: str) -> bytes:
    encoding = random.choice([*["utf-8"] * 9, "utf-8-sig", "utf-16", "cp1252", "utf-32"])
    content = bytearray(text.encode(encoding, "replace"))
    if random.random() < 0.15:
        for _ in range(random.randint(1, 5)):
            content[random.randrange(len(content))] = random.randrange(256)
    if random.random() < 0.05:
        content *= random.choice((2, 50, 2000))
    return bytes(content)
