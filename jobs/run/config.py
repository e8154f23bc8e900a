"""Settings of jobs: parses flags and YAML into a frozen dataclass, and writes them as YAML.

The YAML is turned into flags that stand before the user's: one parser checks both, and flags win.
A setting that was renamed names its old name in the metadata of its field:
`field(default=0.5, metadata={"was": "old_name"})`. The old flag and the old key keep working.
"""

import difflib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
import yaml
from tyro.conf import Positional as Positional  # type of a field that is given without a flag

from jobs.storage.location import Location

RECIPES = Path(__file__).parents[1] / "recipes"
MAY_CHANGE = {"may_change": True}
"""Metadata of a field that may have another value when a run is resumed."""

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting cannot be used; the message names the flag and its value, and what is needed."""


@dataclass(frozen=True, kw_only=True)
class OutConfig:
    """Settings of every job that writes a run folder."""

    out: str = field(metadata=MAY_CHANGE)
    """Folder of the run, local or s3://; the same command on the same folder resumes the run."""
    config: str | None = field(default=None, metadata=MAY_CHANGE)
    """YAML file of settings to start from, local or s3://, or the name of a file in jobs/recipes/;
    flags override its values."""
    seed: int = 0
    """Seed of all randomness."""
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=MAY_CHANGE)
    """Where workers compute; auto: on GPUs if the cluster has one for every worker, else on
    CPUs."""
    wait_for_nodes: float | None = field(default=None, metadata=MAY_CHANGE)
    """Longest wait, in seconds, for nodes that the workers need, at the start or after a node is
    lost. Default: no limit for nodes that an autoscaler can add, and no wait for others. --device
    auto is decided at the start, before this wait."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.wait_for_nodes is not None and self.wait_for_nodes < 0:
            raise ConfigError(
                f"--wait-for-nodes is {self.wait_for_nodes:g}; at least 0 s is needed"
            )


@dataclass(frozen=True, kw_only=True)
class JobConfig(OutConfig):
    """Settings of a job whose workers share its work."""

    workers: int = field(default=1, metadata=MAY_CHANGE)
    """Number of processes that share the work."""
    cpus_per_worker: float = field(default=1, metadata=MAY_CHANGE)
    """Number of CPUs, and so of threads, for each worker; below 1, workers share a CPU."""
    gpus_per_worker: float | None = field(default=None, metadata=MAY_CHANGE)
    """Number of GPUs for each worker; with a fraction, workers share a GPU and exchange gradients
    through the CPU (gloo). Default: 1 on cuda, 0 on cpu."""

    def __post_init__(self) -> None:
        """Check ranges."""
        OutConfig.__post_init__(self)
        if self.workers < 1:
            raise ConfigError(f"--workers is {self.workers}; at least 1 is needed")
        if self.cpus_per_worker <= 0:
            raise ConfigError(f"--cpus-per-worker is {self.cpus_per_worker}; it must be above 0")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise ConfigError(f"--gpus-per-worker is {self.gpus_per_worker}; it must be at least 0")
        if self.device == "cuda" and self.gpus_per_worker == 0:
            raise ConfigError("--device cuda needs a GPU, but --gpus-per-worker is 0")


def parse(
    cls: type[T],
    argv: Sequence[str],
    prog: str,
    description: str,
    stored: dict[str, Any] | None = None,
    source: str = "",
) -> T:
    """Return the settings in the flags `argv`, and in the YAML that their `--config` names.

    Args:
        cls: the dataclass of the settings.
        argv: the flags.
        prog: name of the program in messages.
        description: text about the program for `--help`.
        stored: settings that both the YAML and the flags override.
        source: name of their file in messages.

    Raises:
        SystemExit: 0 after `--help`; 2 on bad settings, which were then printed.
    """
    named = ""
    try:
        named, settings = _read_config(flag_value(argv, "--config"))
        preset = list(_as_flags(settings, cls, named))
        first = list(_as_flags(stored or {}, cls, source))
        words = _renamed([*first, *preset, *argv], cls, prog)
        return tyro.cli(cls, args=words, prog=prog, description=description)
    except ConfigError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        raise SystemExit(2) from None
    except SystemExit as stop:
        if stop.code and named:
            sys.stderr.write(f"{prog}: settings come from {named}, then from the flags\n")
        raise


def flag_value(argv: Sequence[str], wanted: str) -> str | None:
    """Return the value of the flag `wanted` without parsing the others; None if it is missing."""
    for index, word in enumerate(argv):
        name, _, value = word.partition("=")
        if name == wanted:
            return value or (argv[index + 1] if index + 1 < len(argv) else "")
    return None


def _read_config(name: str | None) -> tuple[str, dict[str, Any]]:
    """Return the file that `--config` names and its settings; ("", {}) without `--config`."""
    if name is None:
        return "", {}
    if "://" in name:
        try:
            return name, parse_yaml(Location.parse(name).read_text(), name)
        except OSError as error:
            raise ConfigError(f"--config {name}: {error}") from None
    for path in (Path(name), RECIPES / name, RECIPES / f"{name}.yaml"):
        if path.is_file():
            return str(path), parse_yaml(path.read_text(), str(path))
    known = ", ".join(sorted(path.name for path in RECIPES.glob("*.yaml")))
    raise ConfigError(f"--config {name}: no such file or recipe; the recipes are: {known}")


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the settings in YAML `text`; raises ConfigError, which names the file `source`."""
    try:
        settings = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{source} holds {type(settings).__name__}; settings are expected")
    return settings


def _as_flags(settings: dict[str, Any], cls: type, path: str, prefix: str = "") -> Iterator[str]:
    """Yield the flags for nested settings of the file `path`."""
    known = {f.name: f for f in fields(cls)}
    earlier = {f.metadata["was"]: f for f in fields(cls) if "was" in f.metadata}
    for name, value in settings.items():
        if name not in known and name not in earlier:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; perhaps you meant {prefix}{near[0]}" if near else ""
            raise ConfigError(f"{path}: {prefix}{name} is not a setting{hint}")
        flag = _flag(f"{prefix}{name}")
        group = (known.get(name) or earlier[name]).type
        if is_dataclass(group) and not isinstance(value, dict):
            raise ConfigError(f"{path}: {prefix}{name} is a group of settings, not {value!r}")
        if is_dataclass(group):
            yield from _as_flags(value, group, path, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif isinstance(value, bool):
            yield flag if value else _flag(f"{prefix}no-{name}")
        elif isinstance(value, list):
            yield from (flag, *map(str, value))
        elif isinstance(value, dict):
            yield from (flag, *(word for pair in value.items() for word in map(_as_word, pair)))
        else:
            yield f"{flag}={value}"


def _flag(name: str) -> str:
    return f"--{name}".replace("_", "-")


def _renamed(words: Sequence[str], cls: type, prog: str) -> list[str]:
    """Replace flags that had another name in earlier versions, with a warning for each."""
    names = dict(_names_before(cls))
    found, warned = [], set()
    for word in words:
        name, equals, value = word.partition("=")
        now = names.get(name.replace("_", "-"))
        if now is not None and name not in warned:
            warned.add(name)
            sys.stderr.write(f"{prog}: {name} is now called {now}; use the new name\n")
        found.append(f"{now or name}{equals}{value}")
    return found


def _names_before(cls: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the flags of `cls` that were renamed, as (old flag, new flag)."""
    for item in fields(cls):
        if is_dataclass(item.type):
            yield from _names_before(item.type, f"{prefix}{item.name}.")  # type: ignore[arg-type]
        elif "was" in item.metadata:
            for no in ("", "no-"):
                old = f"{prefix}{no}{item.metadata['was']}"
                yield _flag(old), _flag(f"{prefix}{no}{item.name}")


def _as_word(value: Any) -> str:
    """Return a key or value of a table as one word of the command line."""
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def as_settings(config: object) -> dict[str, Any]:
    """Return a config as nested plain values for YAML or JSON; tuples become lists."""
    plain: dict[str, Any] = {}
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if is_dataclass(value):
            value = as_settings(value)
        plain[item.name] = list(value) if isinstance(value, tuple) else value
    return plain


def as_yaml(config: object) -> str:
    """Return a config as the YAML that `--config` reads."""
    return yaml.safe_dump(as_settings(config), sort_keys=False, allow_unicode=True)


def changed(old: dict[str, Any], config: object, prefix: str = "") -> list[str]:
    """Return a line for each setting that differs from `old` and must not change in a run.

    A setting that is missing in `old`, the settings of an earlier start, counts as its default: the
    run was started before the setting existed.
    """
    lines = []
    for item in fields(config):  # type: ignore[arg-type]
        new = getattr(config, item.name)
        if item.metadata.get("may_change"):
            continue
        if is_dataclass(new):
            lines += changed(old.get(item.name) or {}, new, f"{prefix}{item.name}.")
            continue
        new = list(new) if isinstance(new, tuple) else new
        default = item.default if item.default is not MISSING else None
        default = list(default) if isinstance(default, tuple) else default
        was = old.get(item.name, old.get(item.metadata.get("was", item.name), default))
        if was != new:
            flag = _flag(f"{prefix}{item.name}")
            lines.append(f"{flag} is {new}, but the run was started with {was}")
    return lines
