"""Settings, state and results of tracking, as values; `masking.tracking.step` does a frame.

Points and boxes are in pixels of the frame, (x, y), origin top left. Shapes: K objects, H x W
pixels of the frame, h x w of low-resolution logits.
"""

import warnings
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masking.images.arrays import Pixels, Points
from masking.segmenter.sam import Embeddings
from masking.tracking.memory import Memory

T = TypeVar("T")

State = Literal["prompted", "tracked", "uncertain", "lost", "recovered", "absent"]
STATES: dict[State, str] = {
    "prompted": "a person clicked the object on this frame",
    "tracked": "the mask passed all checks, and the tracker learns from it",
    "uncertain": "the mask is drawn, but a check failed; the tracker learns nothing from it",
    "lost": "the mask is empty; the tracker searches for the object on each frame",
    "recovered": "the object was lost and has been found on two frames in a row",
    "absent": "a person marked the object as not visible; the mask is empty",
}
"""States of an object on a frame, and what each means."""
VISIBLE: tuple[State, ...] = ("prompted", "tracked", "uncertain", "recovered")
"""States of an object that has a mask."""

FLOW_WIDTH = 640
"""Pixels of the longer side of the frames that optical flow works on."""
NOTHING = -8.0
"""Logit of every cell of an empty mask."""


def _accepts_former_names(cls: type[T]) -> type[T]:
    """Let a dataclass be made with the former names of its fields, too, with a warning."""
    init = cls.__init__

    @wraps(init)
    def accepting(self: T, **settings: Any) -> None:
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
    """How objects are tracked. The defaults were tuned on half of the sequences of DAVIS that
    `benchmarks.masking.tracking` names; its `--ablate` measures what each setting is worth."""

    points: int = 1
    """Number of carried points with which each object is prompted on a frame. Optical flow carries
    points from frame to frame."""
    corners: int = 60
    """Number of corner points of a trusted mask that are carried in addition to the clicks; 0: only
    clicks are carried."""
    every: int = 5
    """Number of frames after which corner points are chosen again on a trusted mask; they are
    chosen earlier if two thirds are lost."""
    recent: int = 5
    """Number of recent frames whose features are remembered, in addition to frames with prompts;
    -1: no frame is remembered."""
    mask_prompt: bool = True
    """Prompt with the expected mask in addition to points; if off, with points only."""
    gate: bool = True
    """Learn only from trusted masks, which passed all checks; if off, learn from all masks."""
    predicted: float = 0.75
    """Lowest IoU that the segmenter predicts for a trusted mask, as a share of what it usually
    predicts for the object. It is a share because hard objects have a low IoU on every frame."""
    agreement: float = 0.6
    """Lowest IoU of a trusted mask with the expected mask, as a share of the object's usual
    value."""
    inside: float = 0.6
    """Lowest share of the carried points that lie in a trusted mask."""
    growth: float = 3.0
    """Largest ratio of the areas of two successive trusted masks, in either direction."""
    patience: int = 5
    """Number of consecutive frames without a trusted mask after which an object is lost."""
    redetect: bool = True
    """Search for lost objects on every frame."""
    similarity: float = field(default=0.5, metadata={"was": "likeness"})
    """Lowest similarity at which a lost object is found again, as a share of the object's usual
    value. Similarity is the mean probability that memory gives to the object inside the mask."""
    exclusive: bool = field(default=True, metadata={"was": "rivals"})
    """Use points of other objects as negative points: their clicks on the same frame, and their
    carried points where this object is not expected."""


@dataclass(frozen=True)
class Track:
    """State of one object in the tracker."""

    state: State | None = None
    """State on the last frame; None: not tracked yet, or not any more."""
    points: Points = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    """(P, 2) float32 points on the object, the clicks first."""
    negatives: Points = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    """(P, 2) float32 clicks beside the object."""
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    """(h, w) float32 of the last mask that was trusted, moved with the object."""
    area: float = 0.0
    """Cells of that mask."""
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
    grey: Pixels | None = None
    """The last frame as `shrunk_grey` returns it."""
    memory: Memory | None = None
    """Features of that frame and of earlier ones."""
    age: int = 0
    """Number of frames so far."""


@dataclass(frozen=True)
class Scene:
    """A frame in the form that a step needs."""

    embeddings: Embeddings
    """Embeddings of this one frame."""
    keys: Tensor
    """(h, w, C) unit vectors from `Segmenter.keys`."""
    grey: Pixels
    """The frame as `shrunk_grey` returns it."""

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the keys."""
        return self.keys.shape[0], self.keys.shape[1]

    @property
    def grey_scale(self) -> NDArray[np.float32]:
        """(2,) pixels of `grey` per pixel of the frame, along x and along y: sizes are rounded."""
        ratio = np.array(self.grey.shape[::-1]) / self.embeddings.frame_size[::-1]
        return ratio.astype(np.float32)


@dataclass(frozen=True)
class TrackedMasks:
    """Masks of all objects on a frame, at low resolution."""

    states: tuple[State | None, ...]
    """State of each object; None: it is not tracked on this frame."""
    logits: Tensor
    """(K, h, w) float32; all `NOTHING` for an empty mask."""
    scores: tuple[float, ...]
    """IoU that the segmenter predicts for each mask; 0 for an empty one."""
    quality: tuple[float, ...]
    """Agreement of each mask with the expected one, from 0 to 1; of a prompted one with the
    segmenter's own mask, 1 unless that was cut or filled to obey a click."""


def shrunk_grey(image: Pixels) -> Pixels:
    """Return an image (H, W, 3) uint8 RGB as optical flow takes it: (h, w) uint8 grey, the longer
    side at most `FLOW_WIDTH` pixels."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = FLOW_WIDTH / max(grey.shape)
    if scale >= 1:
        return grey
    return cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def begin(objects: int) -> Tracker:
    """Return the tracker before the first frame, for a number of objects."""
    return Tracker((Track(),) * objects)
