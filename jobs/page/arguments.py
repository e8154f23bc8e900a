"""Reads the arguments of a request, from its query or from its JSON, and checks their types."""

import json
import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

from aiohttp import web

_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "text that UTF-8 can encode",
    bool: "true or false",
    list: "a list",
}
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_LARGEST = 10**18
_SHOWN = 60  # characters of a value in a message


async def read_arguments(request: web.Request, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return the arguments of a request: values by name.

    Args:
        request: of its JSON, if it has a body, or else of its query.
        kinds: type of each argument: int, str, bool or list.

    Raises:
        ValueError: the body is no JSON object in UTF-8, or an argument is missing or of another
            type.
    """
    if not request.can_read_body:
        given: dict[str, Any] = dict(request.query)
        whole = {name for name, kind in kinds.items() if kind is int}
        given |= {n: int(v) for n, v in given.items() if n in whole and _WHOLE.fullmatch(v)}
    else:
        given = parse_object(await request.read(), request.charset)
    return read_values(given, kinds)


def read_values(given: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return values of an object of JSON, by name.

    Args:
        given: the object; others of its values are left out.
        kinds: type of each value: int, float, str, bool or list.

    Raises:
        ValueError: it is no object, or a value is missing or of another type.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{short(given)} is no object with {', '.join(kinds)}")
    for name, kind in kinds.items():
        if name not in given:
            raise ValueError(f"{name} is missing")
        if not _is(given[name], kind):
            raise ValueError(f"{name} is {short(given[name])}; expected {_KINDS[kind]}")
    return {name: given[name] for name in kinds}


def parse_object(body: bytes, charset: str | None) -> dict[str, Any]:
    """Return the object of a JSON text.

    Args:
        body: the text.
        charset: its encoding as the request names it, if it does.

    Raises:
        ValueError: it is no JSON object in UTF-8, or has numbers that JSON does not know.
    """
    if charset is not None and charset.lower() not in ("utf-8", "utf8"):
        raise ValueError(f"the charset is {short(charset)}; expected utf-8")
    try:
        found = json.loads(body.decode(), parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("the body is nested too deeply; expected a JSON object") from None
    except ValueError as error:
        raise ValueError(f"the body is no JSON in UTF-8: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"the body is {short(found)}; expected a JSON object")
    return found


def short(value: Any) -> str:
    """Return a value as it is shown in a message."""
    try:
        text = ascii(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deeply"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def encodable(text: str) -> bool:
    """Return whether a text can be written in UTF-8; half of a surrogate pair cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is(value: Any, kind: type) -> bool:
    found = type(value)  # not isinstance: true is no whole number
    if kind in (int, float):
        return found in (int, kind) and bool(abs(value) < _LARGEST)
    return found is kind and (kind is not str or encodable(value))


def _finite(text: str) -> float:
    number = float(text)
    return number if isfinite(number) else _refuse(text)


def _refuse(text: str) -> float:
    raise ValueError(f"{short(text)} is not a finite number")
