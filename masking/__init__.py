"""Clicks to masks: promptable segmenters, their training, and what masks are made into."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masking.segmenter.sam import Prompts, load
    from masking.tracking.masking import MaskingState, mask_video
    from masking.tracking.state import TrackConfig

__all__ = ["MaskingState", "Prompts", "TrackConfig", "load", "mask_video"]

_PLACES = {
    "MaskingState": "masking.tracking.masking",
    "Prompts": "masking.segmenter.sam",
    "TrackConfig": "masking.tracking.state",
    "load": "masking.segmenter.sam",
    "mask_video": "masking.tracking.masking",
}


def __getattr__(name: str) -> Any:
    """Import what `__all__` names when it is first asked for: it loads torch and PyAV."""
    if name not in _PLACES:
        raise AttributeError(f"module 'masking' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
