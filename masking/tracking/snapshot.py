"""Dataclasses as plain containers and back: what `torch.load(weights_only=True)` reads."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch

from masking.tracking.recall import Memory, Remembered
from masking.tracking.state import Track, Tracker

OF_TRACKING: tuple[type, ...] = (Tracker, Track, Memory, Remembered)
_CLASS, _ARRAY = "class", "array"


def plain(value: Any) -> Any:
    """A dataclass as a dict that names it, an array as a tensor; numbers and text as they are."""
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        return {_CLASS: type(value).__name__, **named}
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, Mapping):
        return [[plain(key), plain(item)] for key, item in value.items()]
    if isinstance(value, tuple | list):
        return tuple(plain(item) for item in value)
    return value.cpu() if isinstance(value, torch.Tensor) else value


def moved(value: Any, device: torch.device) -> Any:
    """A value with its tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: moved(getattr(value, field.name), device) for field in fields(value)}
        return replace(value, **parts)
    if isinstance(value, tuple):
        return tuple(moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return value


def restored(value: Any, classes: Iterable[type]) -> Any:
    """Undo `plain`.

    Raises:
        ValueError: a class that is not among those allowed, or fields that it does not have.
    """
    known = {cls.__name__: cls for cls in classes}

    def back(part: Any) -> Any:
        if isinstance(part, dict) and _ARRAY in part:
            return part[_ARRAY].numpy()
        if isinstance(part, dict) and _CLASS in part:
            rest = {name: back(item) for name, item in part.items() if name != _CLASS}
            try:
                return known[part[_CLASS]](**rest)
            except (KeyError, TypeError) as error:
                raise ValueError(f"not a state of this version: {error}") from error
        if isinstance(part, list):
            return {back(key): back(item) for key, item in part}
        return tuple(back(item) for item in part) if isinstance(part, tuple) else part

    return back(value)
