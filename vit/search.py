"""The search space of a sweep: which settings it varies, and within which bounds.

A setting is any field of a config, named as in YAML: `model.depth`, or `depth` where no other field
ends so. Its bounds are those that its field declares (`vit.config.swept`), or a text:

    2..8                 every whole number from 2 to 8
    64..256 step 64      64, 128, 192, 256
    1e-4..1e-2 log       any number between, evenly in its logarithm
    1e-4..1e-2 log in 5  five of them, ends included
    2, 3, 6              these values; names as well: adamw, muon
"""

import difflib
import itertools
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")

MOST_VALUES = 10_000
"""Largest number of values of a setting: more are taken for a mistake."""

Sample = dict[str, Any]
"""Values by the full names of their settings."""


class SearchError(ValueError):
    """A search space that is not valid; the message names the setting and what was expected."""


@dataclass(frozen=True)
class Values:
    """A setting that takes one of some values."""

    name: str
    values: tuple[Any, ...]
    """The values, numbers ascending, others in the order given."""

    @property
    def ordered(self) -> bool:
        """Whether neighbouring values are similar: numbers are, names and switches are not."""
        return all(type(value) in (int, float) for value in self.values)

    def at(self, share: float) -> Any:
        """The value at `share`, 0 <= share < 1, of the way from first to last."""
        return self.values[int(share * len(self.values))]

    def __str__(self) -> str:
        """Write the bounds as `parse` reads them."""
        return ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Interval:
    """A setting that takes any number from `low` to `high`."""

    name: str
    low: float
    high: float
    log: bool
    """Whether the logarithm is uniform, not the number."""

    def at(self, share: float) -> float:
        """The number at `share`, 0 <= share < 1, of the way from low to high."""
        if self.log:
            return self.low * (self.high / self.low) ** share
        return self.low + (self.high - self.low) * share

    def __str__(self) -> str:
        """Write the bounds as `parse` reads them."""
        return f"{self.low:g}..{self.high:g}{' log' if self.log else ''}"


Dimension = Values | Interval


def space(config: object, bounds: Mapping[str, str]) -> tuple[Dimension, ...]:
    """Find the settings of `config` that a sweep varies.

    Args:
        config: a dataclass, groups nested.
        bounds: bounds by name; an empty text stands for the bounds that the field declares. If
            empty, the fields that declare to be swept by default.

    Raises:
        SearchError: a name fits no field, or several; bounds are missing, empty or not valid.
    """
    known = dict(_settings(config))
    if not bounds:
        marked = {name: _mark(field) for name, field in known.items()}
        bounds = {name: mark["bounds"] for name, mark in marked.items() if mark.get("by_default")}
    chosen: dict[str, Dimension] = {}
    for given, text in bounds.items():
        name = _full_name(given, known)
        if name in chosen:
            raise SearchError(f"space: {name} is named twice")
        text = text or _mark(known[name]).get("bounds", "")
        if not text:
            raise SearchError(f"space: {name} has no bounds of its own; give some, as in 0..1")
        chosen[name] = parse(name, text, known[name].type)
    return tuple(chosen.values())


def parse(name: str, text: str, kind: Any) -> Dimension:
    """Read the bounds in `text` for the setting `name` of type `kind`.

    Raises:
        SearchError: the text has no bounds, or values that the type does not have.
    """
    match = _range(name, text)
    if match is None:
        words = [word.strip() for word in text.split(",")]
        values = [_value(name, word, kind) for word in words]
        if len(set(values)) < len(values):
            raise SearchError(f"space: {name} {text!r} has a value twice")
        found = Values(name, tuple(values))
        return replace(found, values=tuple(sorted(values))) if found.ordered else found
    low, high = (_value(name, match[end], kind) for end in ("low", "high"))
    if type(low) not in (int, float):
        raise SearchError(f"space: {name} {text!r} is a range; this setting takes no numbers")
    if low >= high:
        raise SearchError(f"space: {name} {text!r} is empty: {low} is not below {high}")
    log = match["log"] is not None
    if log and low <= 0:
        raise SearchError(f"space: {name} {text!r}: a logarithm needs a lower end above 0")
    if match["count"]:
        count = int(match["count"][:9])  # more digits are too many in any case
        return Values(name, _even(name, Interval(name, low, high, log), count, kind))
    if match["step"]:
        return Values(name, _stepped(name, low, high, _value(name, match["step"], kind)))
    if type(low) is float:
        return Interval(name, low, high, log)
    if log:
        raise SearchError(f"space: {name} {text!r}: a `log` range of whole numbers needs `in N`")
    return Values(name, _stepped(name, low, high, 1))


_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(
    rf"(?P<low>{_NUMBER})\s*\.\.\s*(?P<high>{_NUMBER})"
    rf"(?:\s+(?P<log>log))?(?:\s+in\s+(?P<count>\d+)|\s+step\s+(?P<step>{_NUMBER}))?"
)


def _range(name: str, text: str) -> re.Match[str] | None:
    """Match a range; None for a list of values. Raises SearchError for three dots.

    `1e-4...1e-2` would be a range up to .1e-2.
    """
    if re.search(r"\.{3}|\u2026", text):
        raise SearchError(f"space: {name} {text!r} has three dots; a range has two, as in 0..0.5")
    return _RANGE.fullmatch(text.strip())


def _even(name: str, whole: Interval, count: int, kind: Any) -> tuple[Any, ...]:
    """Choose `count` numbers from end to end of an interval, evenly spaced."""
    if not 2 <= count <= MOST_VALUES:
        raise SearchError(f"space: {name}: `in {count}`; 2 to {MOST_VALUES:,} values are possible")
    inner = [whole.at(i / (count - 1)) for i in range(1, count - 1)]
    numbers = [whole.low, *inner, whole.high]
    if type(whole.low) is int:
        return tuple(dict.fromkeys(round(number) for number in numbers))
    return tuple(_value(name, f"{number:.6g}", kind) for number in numbers)


def _stepped(name: str, low: Any, high: Any, step: Any) -> tuple[Any, ...]:
    """List low, low + step, ..., up to high."""
    if step <= 0:
        raise SearchError(f"space: {name}: step {step} is not above 0")
    if high - low >= step * MOST_VALUES:  # the quotient itself may be too large for a number
        raise SearchError(f"space: {name}: the range has more than {MOST_VALUES:,} values")
    count = math.floor((high - low) / step + 1e-9) + 1
    exact = type(low) is int and type(step) is int
    return tuple(low + i * step if exact else float(f"{low + i * step:.12g}") for i in range(count))


def _value(name: str, word: str, kind: Any) -> Any:
    """Convert a word to a value of the type; raises SearchError if it is none."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for each in kinds:
        if each is type(None) and word in ("none", "None", "null"):
            return None
        if each is bool and word.lower() in ("true", "false"):
            return word.lower() == "true"
        if get_origin(each) is Literal and word in get_args(each):
            return word
        if each in (int, float):
            try:
                number = float(word)
            except ValueError:
                continue
            if math.isfinite(number) and (each is float or number == int(number)):
                return each(number)
    wanted = " or ".join(_describe(each) for each in kinds)
    raise SearchError(f"space: {name} {word!r} is not a value of it; expected {wanted}")


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    words = {int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}
    return words.get(kind, "a setting that is one number or word (this one cannot be swept)")


def _settings(config: object, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Yield the full names and the fields of a config, those of its groups included."""
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _settings(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item


def _mark(field: Field[Any]) -> dict[str, Any]:
    return field.metadata.get("sweep", {})


def _full_name(given: str, known: Mapping[str, Field[Any]]) -> str:
    if given in known:
        return given
    ends = [name for name in known if name.rpartition(".")[2] == given]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise SearchError(f"space: {given} may be {' or '.join(ends)}; write which")
    short = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(given, [*known, *short], n=1)
    hint = f"; perhaps you meant {short.get(near[0], near[0])}" if near else ""
    raise SearchError(f"space: {given} is not a setting{hint}")


def size(dimensions: Sequence[Dimension]) -> int | None:
    """Count the samples of a space; None if there are infinitely many."""
    if any(isinstance(dimension, Interval) for dimension in dimensions):
        return None
    return math.prod(len(d.values) for d in dimensions if isinstance(d, Values))


def grid(dimensions: Sequence[Dimension]) -> Iterator[Sample]:
    """Yield every sample of a space without intervals.

    Raises:
        SearchError: a setting takes any number of an interval.
    """
    for dimension in dimensions:
        if isinstance(dimension, Interval):
            raise SearchError(
                f"space: a grid needs values; {dimension.name} takes any of {dimension}:"
                " write how many, as in `in 5`"
            )
    names = [dimension.name for dimension in dimensions]
    for point in itertools.product(*(d.values for d in dimensions if isinstance(d, Values))):
        yield dict(zip(names, point, strict=True))


def assign(config: T, sample: Sample) -> T:
    """Return the config with the values of a sample; raises what its checks raise."""
    groups: dict[str, Any] = {}
    for name, value in sample.items():
        group, _, rest = name.partition(".")
        if rest:
            groups.setdefault(group, {})[rest] = value
        else:
            groups[group] = value
    changes = {
        name: assign(getattr(config, name), value) if isinstance(value, dict) else value
        for name, value in groups.items()
    }
    return replace(config, **changes)  # type: ignore[type-var]
