"""Clicks to masks: promptable segmenters, their training, and what masks are made into."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masking.propagate import mask_video

__all__ = ["mask_video"]


def __getattr__(name: str) -> Any:
    """`mask_video`, imported when it is first asked for: it brings torch and PyAV along."""
    if name != "mask_video":
        raise AttributeError(f"module 'masking' has no attribute {name!r}")
    from masking.propagate import mask_video

    return mask_video
