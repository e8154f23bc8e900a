"""Clicks to masks: promptable segmenters, their training, and what masks are made into."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masking.propagate import MaskingState, mask_video
    from masking.track import TrackConfig

__all__ = ["MaskingState", "TrackConfig", "mask_video"]


def __getattr__(name: str) -> Any:
    """What `__all__` names, imported when it is first asked for: it brings torch and PyAV along."""
    if name not in __all__:
        raise AttributeError(f"module 'masking' has no attribute {name!r}")
    from masking import propagate

    return getattr(propagate, name)
