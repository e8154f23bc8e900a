"""Masks from clicks: promptable segmenters, their training, tracking in videos, output formats."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masking.sam2.weights import load
    from masking.segmenter.sam import Prompts
    from masking.tracking.masking import mask_video
    from masking.tracking.snapshot import MaskingState
    from masking.tracking.state import TrackConfig

__all__ = ["MaskingState", "Prompts", "TrackConfig", "load", "mask_video"]

_PLACES = {
    "MaskingState": "masking.tracking.snapshot",
    "Prompts": "masking.segmenter.sam",
    "TrackConfig": "masking.tracking.state",
    "load": "masking.sam2.weights",
    "mask_video": "masking.tracking.masking",
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` on its first use, as that loads torch and PyAV."""
    if name not in _PLACES:
        raise AttributeError(f"module 'masking' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
