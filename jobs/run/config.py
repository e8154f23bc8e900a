"""Settings of jobs: parses flags and YAML into a frozen dataclass, and writes them as YAML.

The YAML is turned into flags that stand before the user's: one parser checks both, and flags win.
A setting that was renamed names its old name in the metadata of its field:
`field(default=0.5, metadata={"was": "old_name"})`. The old flag and the old key keep working.
The keys of settings that are no more are listed in `removed` of their class, and are passed over.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
import yaml
from tyro.conf import Positional as Positional  # type of a field that is given without a flag
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from jobs.run.flags import as_flags, check_tables, flag_of, renamed
from jobs.run.yaml_text import ConfigError as ConfigError
from jobs.run.yaml_text import parse_yaml as parse_yaml
from jobs.storage.location import Location

RECIPES = Path(__file__).parents[1] / "recipes"
MAY_CHANGE = {"may_change": True}
"""Metadata of a field that may have another value when a run is resumed."""

T = TypeVar("T")


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
    """Where workers compute; auto: on GPUs if every worker can get one or a share of one, else on
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
    """Number of GPUs for each worker; with a fraction, workers share a GPU, take no more than that
    share of its memory, and exchange gradients through the CPU (gloo). Default: 0 on cpu; on cuda
    1, or if there are fewer GPUs than workers and the model is small, the share with which all
    workers fit, at least 0.25."""

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
        preset = list(as_flags(settings, cls, named))
        first = list(as_flags(stored or {}, cls, source))
        words = renamed([*first, *preset, *argv], cls, prog)
        check_tables(words, cls)
        return tyro.cli(cls, args=words, prog=prog, description=description, registry=_NUMBERS)
    except ConfigError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        raise SystemExit(2) from None
    except SystemExit as stop:
        if stop.code and named:
            sys.stderr.write(f"{prog}: settings come from {named}, then from the flags\n")
        raise


def flag_value(argv: Sequence[str], wanted: str) -> str | None:
    """Return the value of the flag `wanted` without parsing the others; None if it is missing.

    Raises:
        ConfigError: the flag is there twice.
    """
    values = []
    for index, word in enumerate(argv):
        name, _, value = word.partition("=")
        if name == wanted:
            values.append(value or (argv[index + 1] if index + 1 < len(argv) else ""))
    if len(values) > 1:
        raise ConfigError(f"{wanted} is given twice, {values[0]} and {values[1]}; keep one of them")
    return values[0] if values else None


def _read_config(name: str | None) -> tuple[str, dict[str, Any]]:
    """Return the file that `--config` names and its settings; ("", {}) without `--config`."""
    if name is None:
        return "", {}
    place = name
    try:
        if "://" in name:
            return name, parse_yaml(Location.parse(name).read_bytes(), name, as_words=True)
        for path in (Path(name), RECIPES / name, RECIPES / f"{name}.yaml"):
            place = str(path)
            if path.is_file():
                return place, parse_yaml(path.read_bytes(), place, as_words=True)
    except OSError as error:  # its name is too long, or it cannot be read
        raise ConfigError(f"--config {place[:200]}: {error.strerror or error}") from None
    known = ", ".join(sorted(path.name for path in RECIPES.glob("*.yaml")))
    raise ConfigError(f"--config {name}: no such file or recipe; the recipes are: {known}")


_NUMBERS = ConstructorRegistry()
"""How tyro reads numbers: what later computations cannot hold is refused by the flag's name."""


@_NUMBERS.primitive_rule
def _number(about: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    kind: Any = about.type
    if kind not in (int, float):
        return None

    def read(words: list[str]) -> int | float:
        value: int | float = kind(words[0])
        if kind is int and abs(value) >= 2**63:
            raise ValueError(f"{words[0]:.40} has more than 64 bits")
        if not math.isfinite(value):
            raise ValueError(f"{words[0]:.40} is not a finite number")
        return value

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: type(value) in (int, kind),
        str_from_instance=lambda value: [str(value)],
    )


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
            group = old.get(item.name) or {}
            if not isinstance(group, dict):
                raise ConfigError(
                    f"the earlier start's {prefix}{item.name} is {group!r:.100}, not a group of"
                    " settings: its config.yaml is damaged"
                )
            lines += changed(group, new, f"{prefix}{item.name}.")
            continue
        new = list(new) if isinstance(new, tuple) else new
        default = item.default if item.default is not MISSING else None
        default = list(default) if isinstance(default, tuple) else default
        was = old.get(item.name, old.get(item.metadata.get("was", item.name), default))
        if was != new:
            flag = flag_of(f"{prefix}{item.name}")
            lines.append(f"{flag} is {new}, but the run was started with {was}")
    return lines
