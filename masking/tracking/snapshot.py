"""State of a video that is being masked, as a value that can be saved and resumed.

A file holds plain containers, tensors and the names of dataclasses: what
`torch.load(weights_only=True)` reads, which runs no code.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from masking.sam2.memory import FrameMemory, ObjectMemory, VideoMemory
from masking.tracking.memory import Memory, Remembered
from masking.tracking.query import Answer
from masking.tracking.state import State, Track, Tracker
from masking.tracking.video_tracker import VideoTracker

_CLASS, _ARRAY = "class", "array"


@dataclass(frozen=True)
class KeptMask:
    """A mask of the backward pass, which waits for the forward pass."""

    state: State
    """State of the object."""
    counts: bytes
    """COCO's packed run lengths."""
    size: tuple[int, int]
    """(H, W) in pixels."""
    score: float
    """Expected IoU with the truth."""
    quality: float
    """Probability that the mask is right."""


@dataclass(frozen=True)
class MaskingState:
    """Everything that is needed to resume a video after a frame."""

    made_of: str
    """SHA-256, in hex, of the prompts, the frames' size and the segmenter's kind."""
    next_frame: int
    """Index of the frame to resume with."""
    tracker: Tracker | VideoTracker
    """The tracker of the forward pass."""
    backward: Mapping[int, tuple[KeptMask | None, ...]]
    """Masks of the backward pass on frames to come, by frame; one for each object."""
    given: Mapping[int, Mapping[int, Answer]] = field(default_factory=dict)
    """Answers to the corrections on frames to come, by frame and object."""

    def save(self, path: str | Path) -> None:
        """Write the state to a file, which `load` reads."""
        torch.save(plain(self), path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a state from a file.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file holds something else, or the state of another version.
        """
        content = Path(path).read_bytes()
        try:
            state = restored(torch.load(io.BytesIO(content), weights_only=True))
        except Exception as error:  # torch.load and pickle raise all kinds
            raise ValueError(f"{path} is not the saved state of a masked video") from error
        if not isinstance(state, cls):
            raise ValueError(f"{path} is not the saved state of a masked video")
        return state


_CLASSES: dict[str, type] = {
    **{
        cls.__name__: cls
        for cls in (MaskingState, KeptMask, Answer, Tracker, Track, Memory, Remembered)
    },
    **{cls.__name__: cls for cls in (VideoTracker, VideoMemory, ObjectMemory, FrameMemory)},
    "_Kept": KeptMask,  # its name in the files of earlier versions
}


def plain(value: Any) -> Any:
    """Turn dataclasses into dicts that name them, arrays into tensors, and mappings into lists of
    pairs; numbers and text stay as they are."""
    if is_dataclass(value) and not isinstance(value, type):
        named = {item.name: plain(getattr(value, item.name)) for item in fields(value)}
        return {_CLASS: type(value).__name__, **named}
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, Mapping):
        return [[plain(key), plain(item)] for key, item in value.items()]
    if isinstance(value, tuple | list):
        return tuple(plain(item) for item in value)
    return value.cpu() if isinstance(value, torch.Tensor) else value


def restored(value: Any) -> Any:
    """Turn the result of `plain` back into the value that it was made of.

    Raises:
        ValueError: a class that is not part of a state, or fields that it does not have.
    """
    if isinstance(value, dict) and _ARRAY in value:
        return value[_ARRAY].numpy()
    if isinstance(value, dict) and _CLASS in value:
        rest = {name: restored(item) for name, item in value.items() if name != _CLASS}
        try:
            return _CLASSES[value[_CLASS]](**rest)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a state of this version: {error}") from error
    if isinstance(value, list):
        return {restored(key): restored(item) for key, item in value}
    return tuple(restored(item) for item in value) if isinstance(value, tuple) else value


def moved(value: Any, device: torch.device) -> Any:
    """Return a copy of a value whose tensors are on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {item.name: moved(getattr(value, item.name), device) for item in fields(value)}
        return replace(value, **parts)
    if isinstance(value, tuple):
        return tuple(moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    return value
