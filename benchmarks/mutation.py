"""Odd values, one value in place of another, and damaged bytes, for nearly valid inputs."""

import copy
from collections.abc import Callable
from random import Random
from typing import Any

_ODD: tuple[Any, ...] = (
    *(None, True, False, "", "x", "1", "0", "nan", "1e5", "é", "\ud800", "\0", "a\r\nb", "../../x"),
    *(0, 1, -1, 2, 7, 255, 2**31, -(2**31) - 1, 2**63, 2**64, 10**30, -(10**400)),
    *(0.0, -0.0, 0.5, 1.0, 1e5, 1e18, 1e308, -1e308, 1e-320),
    *(float("nan"), float("inf"), -float("inf")),
    *([], [[]], {}, [None], [1, 2, 3], {"a": 1}, [[[[[[]]]]]]),
)


def odd(random: Random) -> Any:
    """Return a value that JSON or a table may hold and few readers expect."""
    choice = random.randrange(len(_ODD) + 3)
    if choice < len(_ODD):
        return copy.deepcopy(_ODD[choice])
    return ("x" * random.choice([300, 70_000]), [0] * 5000, _nested(random.choice([50, 400])))[
        choice - len(_ODD)
    ]


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def replaced(random: Random, value: Any, other: Callable[[Random], Any]) -> Any:
    """Return nested lists and dicts with one place changed: replaced, left out or doubled."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return other(random)
    places = list(value) if isinstance(value, dict) else range(len(value))
    place = random.choice(list(places))
    what = random.random()
    changed = copy.copy(value)
    if what < 0.1:
        del changed[place]
    elif what < 0.2 and isinstance(changed, list):
        changed.insert(place, changed[place])
    else:
        changed[place] = replaced(random, value[place], other)
    return changed


def damaged(random: Random, content: bytes) -> bytes:
    """Return bytes of which some were changed, left out or put in, or the end is missing."""
    content_ = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 5, 20])):
        at = random.randrange(len(content_) + 1)
        what = random.randrange(5)
        if what == 0:
            content_ = content_[:at]
        elif what == 1:
            content_[at:at] = random.randbytes(random.choice([1, 4, 50]))
        elif what == 2:
            del content_[at : at + random.choice([1, 4, 50])]
        elif content_:
            at = min(at, len(content_) - 1)
            content_[at] = random.choice([0, 1, 127, 128, 255, random.randrange(256)])
    return bytes(content_)
