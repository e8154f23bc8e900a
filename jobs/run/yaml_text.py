"""Settings in YAML: the one reader of `--config`, of recipes and of the config.yaml of runs.

It reads less than YAML allows and refuses the rest by line: keys that are there twice, tags, NUL,
and what is too long, too deep or too much, as with aliases of aliases.
"""

import codecs
import re
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

LARGEST = 1 << 18
"""Bytes of a file of settings: many times those of any that a job writes."""
DEEPEST = 20
"""Levels of lists and groups in one another."""
MOST = 20_000
"""Values of a file; what an alias stands for is counted each time."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = frozenset(
    _TAG + name for name in ("null", "bool", "int", "float", "timestamp", "value", "merge")
)
"""Tags that YAML gives to words without quotes."""
_NULL = ("", "~", "null", "Null", "NULL")
_SWITCHES = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_NUMBER = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?")


class ConfigError(ValueError):
    """A setting cannot be used; the message names the flag and its value, and what is needed."""


def parse_yaml(text: str | bytes, source: str, *, as_words: bool = False) -> dict[str, Any]:
    """Return the settings in YAML.

    Numbers have their plain decimal form, and switches are true and false. What else YAML 1.1
    takes for numbers, dates or switches (010, 1:30, 2026-13-01, yes) is text.

    Args:
        text: the contents of the file.
        source: its name in messages.
        as_words: leave numbers and switches as text too, for the parser of the flags.

    Raises:
        ConfigError: the text is not YAML, or not settings; the message names file and line.
    """
    if len(text) > LARGEST:
        raise ConfigError(f"{source} has {len(text):,} bytes; settings have at most {LARGEST:,}")
    if isinstance(text, bytes):
        text = _decoded(text, source)
    try:
        node = yaml.compose(text, Loader=_Loader)
        settings = {} if node is None else _Reader(as_words).value(node, 1)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML for settings: {error}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{source} holds {type(settings).__name__}; settings are expected")
    return settings


def _decoded(text: bytes, source: str) -> str:
    """Decode UTF-8, or UTF-16 that begins with its mark."""
    marked = text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return text.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{source}, line {line}: byte 0x{text[error.start]:02x} is not UTF-8; save the file as"
            " UTF-8"
        ) from None


class _Loader(yaml.SafeLoader):
    """Composes nodes, but not deeper than DEEPEST: each level is a call of a function."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            _fail(self.peek_event().start_mark, f"more than {DEEPEST} levels of lists and groups")
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _fail(mark: Any, problem: str) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


@dataclass
class _Reader:
    """Turns nodes into plain values."""

    as_words: bool
    values: int = 0
    """Values so far."""

    def value(self, node: Node, depth: int) -> Any:
        """Return the value of a node at a depth from 1; an alias is read as what it stands for."""
        self.values += 1
        if self.values > MOST:
            _fail(node.start_mark, f"more than {MOST:,} values, with those of aliases")
        if depth > DEEPEST:
            _fail(node.start_mark, f"more than {DEEPEST} levels, or an alias inside what it names")
        if isinstance(node, MappingNode) and node.tag == _TAG + "map":
            return self.group(node, depth)
        if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(each, depth + 1) for each in node.value]
        if isinstance(node, ScalarNode) and (node.tag in _PLAIN or node.tag == _TAG + "str"):
            return self.scalar(node)
        _fail(node.start_mark, f"{node.tag} is not a kind of value that settings have")

    def group(self, node: MappingNode, depth: int) -> dict[str | None, Any]:
        """Return a group; what `<<` names fills in the settings that are not there."""
        found: dict[str | None, Any] = {}
        lines: dict[str | None, int] = {}
        merged: list[Any] = []
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                merged += [value] if isinstance(value, MappingNode) else value.value
                continue
            if not isinstance(key, ScalarNode):
                _fail(key.start_mark, "a list or group stands where a name of a setting is needed")
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                _fail(key.start_mark, f"{name} is there twice, in lines {lines[name]} and {line}")
            lines[name] = line
            found[name] = self.value(value, depth + 1)
        for each in merged:
            if not isinstance(each, MappingNode):
                _fail(node.start_mark, "<< names something else than a group")
            found = {**self.value(each, depth + 1), **found}
        return found

    def scalar(self, node: ScalarNode) -> Any:
        """Return text; without quotes also null, and switches and numbers unless as words."""
        text = str(node.value)
        if "\0" in text:
            _fail(node.start_mark, "a NUL character in a text")
        if node.style is not None or node.tag not in _PLAIN:
            return text
        if text in _NULL:
            return None
        if self.as_words:
            return text
        if text in _SWITCHES:
            return _SWITCHES[text]
        if _INTEGER.fullmatch(text):
            return int(text)
        return float(text) if _NUMBER.fullmatch(text) else text
