"""Videos and image folders: their frames, forward and backward, and films written from them."""

from masking.video.reader import Video

__all__ = ["Video"]
