"""The videos that the page has open: each is opened by itself, so that none holds up another."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from jobs.page.frames import Frames, VideoScan, jpeg, yield_to_others
from jobs.page.videos import Clip
from jobs.run.signals import background
from jobs.storage.cache import localize
from masking.video.frame import VideoError
from masking.video.reader import Video

OPEN = 6
"""Number of videos that are kept open."""
THUMBNAIL = 192
"""Longer side of a thumbnail, in pixels."""
PATIENCE = 10.0
"""Seconds for a thumbnail: the page loads one after another."""


class UnknownVideoError(KeyError):
    """No video has this id."""


class OpenVideos:
    """Videos by id, the last few of them open. Its methods may be called from any thread."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        """Take the videos; none is opened yet."""
        self.clips = {clip.video_id: clip for clip in clips}
        self._open: OrderedDict[str, Frames] = OrderedDict()
        self._thumbnails: dict[str, bytes] = {}
        self._lock = threading.Lock()  # never held while a file is read
        self._opening = {video_id: threading.Lock() for video_id in self.clips}

    def clip(self, video_id: str) -> Clip:
        """Return a video; raises UnknownVideoError if there is none with this id."""
        if video_id not in self.clips:
            raise UnknownVideoError(video_id)
        return self.clips[video_id]

    def frames(self, video_id: str, version: str | None = None) -> Frames:
        """Return the frames of a video, which is opened again if its file has changed.

        Raises:
            VideoError: the video cannot be read; with code `changed`, it is not of this `version`.
        """
        clip = self.clip(video_id)
        with self._opening[video_id]:
            frames = self._open.get(video_id)
            if frames is None or frames.scan.changed:
                path = localize(clip.place)
                if not path.exists():
                    raise VideoError("not_found", f"{path} does not exist")
                frames = Frames(VideoScan(path))
                self._thumbnails.pop(video_id, None)
            with self._lock:
                self._open[video_id] = frames
                self._open.move_to_end(video_id)
                while len(self._open) > OPEN:
                    self._open.popitem(last=False)[1].scan.close()
        if version not in (None, frames.scan.version):
            raise VideoError("changed", f"{video_id}: the file was replaced since it was opened")
        return frames

    def thumbnail(self, video_id: str) -> bytes:
        """Return the first frame of a video as a small JPEG.

        Raises:
            VideoError: the video cannot be read, or takes too long.
        """
        clip = self.clip(video_id)
        if video_id not in self._thumbnails:
            made = background(partial(_thumbnail, clip))
            try:
                self._thumbnails[video_id] = made.result(PATIENCE)
            except TimeoutError as error:
                text = f"{video_id}: the first frame took more than {PATIENCE:.0f} s"
                raise VideoError("no_frames", text) from error
        return self._thumbnails[video_id]

    def close(self, until: float = 0) -> None:
        """End the threads, and wait for them up to a time of `time.monotonic`."""
        with self._lock:
            scans = [frames.scan for frames in self._open.values()]
        for scan in scans:
            scan.close(until)


def _thumbnail(clip: Clip) -> bytes:
    yield_to_others()
    with Video.open(localize(clip.place)) as video:
        return jpeg(next(iter(video)).image, THUMBNAIL)
