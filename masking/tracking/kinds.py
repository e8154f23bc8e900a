"""Which kind of tracking a segmenter gets."""

from typing import Any

from masking.segmenter.sam import Segmenter
from masking.tracking.by_image import ImageTracking
from masking.tracking.interface import Tracking
from masking.tracking.state import TrackConfig


def tracking_of(segmenter: Segmenter, config: TrackConfig | None = None) -> Tracking[Any, Any]:
    """Return what tracks objects with a segmenter.

    Args:
        segmenter: the segmenter, on its device.
        config: how objects are tracked; None: the defaults.
    """
    return ImageTracking(segmenter, config or TrackConfig())
