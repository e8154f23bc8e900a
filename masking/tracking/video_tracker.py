"""State of tracking with a network that has a memory of its own, as a value."""

from dataclasses import dataclass

from masking.sam2.memory import VideoMemory
from masking.segmenter.sam import Embeddings
from masking.tracking.state import State


@dataclass(frozen=True)
class VideoTracker:
    """Everything that is needed to track the objects on the next frame."""

    states: tuple[State | None, ...]
    """State of each object on the last frame; None: not tracked yet, or not any more."""
    returning: tuple[bool, ...]
    """Whether each object was to be seen on the last frame for the first time after it was lost."""
    memory: VideoMemory
    """What the network remembers."""


@dataclass(frozen=True)
class VideoScene:
    """A frame in the form that a step needs."""

    index: int
    """Index of the frame in its video."""
    embeddings: Embeddings
    """Embeddings of this one frame."""
