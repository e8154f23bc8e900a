"""Settings of a file as words of the command line, so that one parser checks both.

A word of YAML is the word of the flag: numbers are read by the parser, not by YAML.
"""

import difflib
import itertools
import sys
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin

from jobs.run.yaml_text import ConfigError

_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def as_flags(settings: dict[str, Any], cls: type, path: str, prefix: str = "") -> Iterator[str]:
    """Yield the flags for nested settings of the file `path`."""
    known = {f.name: f for f in fields(cls)}
    earlier = {f.metadata["was"]: f for f in fields(cls) if "was" in f.metadata}
    for name, value in settings.items():
        if name in getattr(cls, "removed", ()):
            sys.stderr.write(f"{path}: {prefix}{name} has no effect any more; leave it out\n")
            continue
        if name not in known and name not in earlier:
            near = difflib.get_close_matches(str(name)[:100], known, n=1)
            hint = f"; perhaps you meant {prefix}{near[0]}" if near else ""
            raise ConfigError(f"{path}: {prefix}{str(name)[:100]} is not a setting{hint}")
        setting = known.get(name) or earlier[name]
        if name in earlier and setting.name in settings:
            raise ConfigError(
                f"{path}: {prefix}{name} and {prefix}{setting.name} are one setting; keep one"
            )
        if not is_dataclass(setting.type):
            yield from _as_words(setting.type, f"{prefix}{name}", value, path)
        elif isinstance(value, dict):
            yield from as_flags(value, setting.type, path, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            raise ConfigError(f"{path}: {prefix}{name} is a group of settings, not {value!r:.100}")


def _as_words(kind: Any, name: str, value: Any, path: str) -> Iterator[str]:
    """Yield the words of the command line that set a setting of type `kind` to a value of YAML."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    shapes = {get_origin(each) for each in kinds}
    flag = flag_of(name)
    if value is None and type(None) not in kinds:
        raise ConfigError(f"{path}: {name} has no value; give one, or leave the setting out")
    if isinstance(value, dict):
        if dict not in shapes:
            raise ConfigError(f"{path}: {name} is one setting, not a group of them")
        yield from (flag, *(_as_word(each, name, path) for pair in value.items() for each in pair))
    elif dict in shapes:
        raise ConfigError(f"{path}: {name} is a group of names and values, not {value!r:.100}")
    elif isinstance(value, list):
        if not shapes & {tuple, list}:
            raise ConfigError(f"{path}: {name} takes one value, not the list {value!r:.100}")
        yield from (flag, *(_as_word(each, name, path, in_list=True) for each in value))
    elif bool in kinds and str(value).lower() in _SWITCHES:
        on = _SWITCHES[str(value).lower()]
        group, _, last = name.rpartition(".")
        yield flag if on else flag_of(f"{group}.no-{last}" if group else f"no-{last}")
    elif kind is bool:
        raise ConfigError(f"{path}: {name} is {value!r:.100}; expected true or false")
    else:
        yield f"{flag}={value}"


def _as_word(value: Any, name: str, path: str, *, in_list: bool = False) -> str:
    """Return a value of a list, or a key or value of a table, as one word of the command line."""
    if isinstance(value, list) and not in_list:
        return ", ".join(_as_word(each, name, path, in_list=True) for each in value)
    if isinstance(value, dict | list) or (value is None and in_list):
        raise ConfigError(f"{path}: {name} holds {value!r:.100} where one value is needed")
    word = "" if value is None else str(value)
    if word.startswith("--"):
        raise ConfigError(f"{path}: {name} holds {word!r:.100}, which would be a flag")
    return word


def check_tables(words: Sequence[str], cls: type) -> None:
    """Check that no name stands twice behind a flag that takes names and values."""
    tables = set(_tables(cls))
    for index, word in enumerate(words):
        if word.replace("_", "-") in tables:
            rest = itertools.takewhile(lambda each: not each.startswith("--"), words[index + 1 :])
            names = list(rest)[::2]
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise ConfigError(f"{word} names {', '.join(twice)} twice; keep one of them")


def _tables(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield the flags of `cls` that take names and values."""
    for item in fields(cls):
        if is_dataclass(item.type):
            yield from _tables(item.type, f"{prefix}{item.name}.")  # type: ignore[arg-type]
        elif get_origin(item.type) is dict:
            yield flag_of(f"{prefix}{item.name}")


def flag_of(name: str) -> str:
    """Return the flag of a setting: `--model.embed-dim` of `model.embed_dim`."""
    return f"--{name}".replace("_", "-")


def renamed(words: Sequence[str], cls: type, prog: str) -> list[str]:
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
                yield flag_of(old), flag_of(f"{prefix}{no}{item.name}")
