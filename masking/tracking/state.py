"""Settings, state and results of tracking, as values; `masking.tracking.step` does a frame.

Shapes: K objects, h x w pixels of low-resolution logits.
"""

import warnings
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor

from masking.segmenter.sam import Embeddings
from masking.tracking.memory import Memory
from masking.tracking.trust import Evidence

T = TypeVar("T")

State = Literal["prompted", "tracked", "uncertain", "lost", "recovered", "absent"]
STATES: dict[State, str] = {
    "prompted": "a person clicked the object on this frame",
    "tracked": "the mask is right with a probability of at least 0.8",
    "uncertain": "the mask is drawn, but is right with a lower probability",
    "lost": "the mask is empty; the tracker searches for the object on each frame",
    "recovered": "the object was lost and has been found on two frames in a row",
    "absent": "a person marked the object as not visible; the mask is empty",
}
"""States of an object on a frame, and what each means."""
VISIBLE: tuple[State, ...] = ("prompted", "tracked", "uncertain", "recovered")
"""States of an object that has a mask."""

NOTHING = -8.0
"""Logit of every cell of an empty mask."""


def _accepts_former_names(cls: type[T]) -> type[T]:
    """Let a dataclass be made with the former names of its fields, and with settings that it once
    had and that have no effect any more, with a warning."""
    init = cls.__init__

    @wraps(init)
    def accepting(self: T, **settings: Any) -> None:
        for name in sorted(settings.keys() & set(getattr(cls, "removed", ()))):
            warnings.warn(
                f"{cls.__name__}: the setting {name} has no effect any more; leave it out",
                DeprecationWarning,
                stacklevel=2,
            )
            del settings[name]
        for item in fields(cls):  # type: ignore[arg-type]
            former = item.metadata.get("was")
            if former in settings and item.name not in settings:
                warnings.warn(
                    f"{cls.__name__}: the setting {former} has been renamed; use {item.name}",
                    DeprecationWarning,
                    stacklevel=2,
                )
                settings[item.name] = settings.pop(former)
        init(self, **settings)

    cls.__init__ = accepting  # type: ignore[method-assign, assignment]
    return cls


@_accepts_former_names
@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """How objects are tracked. `benchmarks.masking.tracking --ablate` measures what each setting is
    worth."""

    removed: ClassVar[tuple[str, ...]] = (
        "points", "corners", "every", "mask_prompt", "gate", "inside"
    )  # fmt: skip
    """Former settings, which have no effect any more."""
    recent: int = 2
    """Number of recent frames whose features are remembered, in addition to frames with prompts."""
    predicted: float = 0.75
    """Lowest IoU that the segmenter predicts for a trusted mask, as a share of what it usually
    predicts for the object. It is a share because hard objects have a low IoU on every frame."""
    agreement: float = 0.6
    """Lowest IoU of a trusted mask with the expected mask, as a share of the object's usual
    value."""
    growth: float = 3.0
    """Largest ratio of the areas of two successive trusted masks, in either direction; its square
    after as many frames without a trusted mask as `patience` says, and so on."""
    patience: int = 5
    """Number of consecutive frames without a trusted mask after which an object is lost."""
    redetect: bool = True
    """Search for lost objects on every frame."""
    similarity: float = field(default=0.35, metadata={"was": "likeness"})
    """Lowest similarity at which a lost object is found again, as a share of the object's usual
    value. Similarity is the mean probability that memory gives to the object inside the mask."""
    exclusive: bool = field(default=True, metadata={"was": "rivals"})
    """Let objects compete for each pixel, and take clicks on one object as negative clicks for the
    others. Turn it off if an object is a part of another one."""


@dataclass(frozen=True)
class Track:
    """State of one object in the tracker."""

    state: State | None = None
    """State on the last frame; None: not tracked yet, or not any more."""
    area: float = 0.0
    """Cells of the last mask that was trusted."""
    misses: int = 0
    """Frames since that mask."""
    usual: tuple[float, float, float] = (0.0, 0.5, 0.5)
    """Running means over trusted masks: the predicted IoU, the agreement with the expected mask,
    and the share of the mask that was expected."""
    sighting: Tensor | None = None
    """(h, w) logits of where a lost object was seen on the frame before."""


@dataclass(frozen=True)
class Tracker:
    """Everything that is needed to track the objects on the next frame."""

    tracks: tuple[Track, ...]
    """One track for each object."""
    memory: Memory | None = None
    """Features of earlier frames; None: of none yet."""


@dataclass(frozen=True)
class Scene:
    """A frame in the form that a step needs."""

    embeddings: Embeddings
    """Embeddings of this one frame."""
    keys: Tensor
    """(h, w, C) unit vectors from `Segmenter.keys`."""

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the keys."""
        return self.keys.shape[0], self.keys.shape[1]


@dataclass(frozen=True)
class TrackedMasks:
    """Masks of all objects on a frame, at low resolution."""

    states: tuple[State | None, ...]
    """State of each object; None: it is not tracked on this frame."""
    logits: Tensor
    """(K, h, w) float32; all `NOTHING` for an empty mask."""
    scores: tuple[float, ...]
    """Expected IoU of each mask with the truth; 0 for an empty one."""
    quality: tuple[float, ...]
    """Probability that each mask is right, its IoU with the truth above 0.5 (`trust`)."""
    evidence: tuple[Evidence | None, ...] = ()
    """What is known of each mask; None: no mask was computed."""


def begin(objects: int) -> Tracker:
    """Return the tracker before the first frame, for a number of objects."""
    return Tracker((Track(),) * objects)
