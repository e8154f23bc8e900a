"""Which kind of tracking a segmenter gets."""

from typing import Any

from masking.sam2.network import VideoNetwork
from masking.segmenter.sam import Segmenter
from masking.tracking.by_image import ImageTracking
from masking.tracking.by_video import VideoTracking
from masking.tracking.interface import Tracking
from masking.tracking.state import TrackConfig


def tracking_of(segmenter: Segmenter, config: TrackConfig | None = None) -> Tracking[Any, Any]:
    """Return what tracks objects with a segmenter.

    Args:
        segmenter: the segmenter, on its device.
        config: how objects are tracked by a segmenter of images; None: the defaults.
    """
    if isinstance(segmenter.network, VideoNetwork):
        return VideoTracking(segmenter, segmenter.network)
    return ImageTracking(segmenter, config or TrackConfig())
