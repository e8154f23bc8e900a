"""Finds the videos and the frames that annotations of other tools name."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from jobs.page.videos import ENDINGS, Clip
from masking.imports.items import Item
from masking.video.frame import VideoError
from masking.video.reader import Video

_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")
"""What Label Studio makes of the name of a file that is uploaded."""
_LISTED = 5  # videos that a message names


class Videos:
    """The videos that annotations may be of."""

    def __init__(self, clips: Sequence[Clip], first_frame: int) -> None:
        """Take the videos, and the number of the first frame in names of files."""
        self.clips, self._first = tuple(clips), first_frame
        self._stack = ExitStack()
        self._open: dict[str, Video] = {}
        self._sizes: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the videos."""
        self._stack.close()

    def only_size(self) -> tuple[int, int] | None:
        """Return the (H, W) of the video if there is only one; None: there are several, or it
        cannot be read."""
        try:
            return self.size(self.clips[0]) if len(self.clips) == 1 else None
        except VideoError:
            return None

    def find(self, name: str, names: Sequence[str]) -> Clip:
        """Return the video of a name.

        Args:
            name: as the annotations have it; may be empty.
            names: all names in the annotations.

        Raises:
            ValueError: no video, or more than one, has the name; the message says which there are.
        """
        if len(self.clips) == 1 and len(set(names)) == 1:
            return self.clips[0]
        for tier in _tiers(name):
            found = [clip for clip in self.clips if tier & {*_keys(clip)}]
            if len(found) == 1:
                return found[0]
            if found:
                shown = ", ".join(clip.uri for clip in found[:_LISTED])
                raise ValueError(f"{name!r} may be {shown}; expected one video of that name")
        shown = ", ".join(clip.uri for clip in self.clips[:_LISTED])
        more = f" and {len(self.clips) - _LISTED:,} more" if len(self.clips) > _LISTED else ""
        named = f"the name {name!r}" if name else "no name"
        raise ValueError(f"the video has {named}; expected one of {shown}{more} (--videos)")

    def opened(self, clip: Clip) -> Video:
        """Return a video that is open; raises VideoError."""
        if clip.video_id not in self._open:
            self._stack.close()  # one at a time: a batch may be larger than FFmpeg's threads
            self._open.clear()
            self._open[clip.video_id] = self._stack.enter_context(Video.open(Path(clip.place.path)))
        return self._open[clip.video_id]

    def size(self, clip: Clip) -> tuple[int, int]:
        """Return the (H, W) of a video's first frame; raises VideoError."""
        if clip.video_id not in self._sizes:
            self._sizes[clip.video_id] = next(self.opened(clip).forward()).image.shape[:2]
        return self._sizes[clip.video_id]

    def frame(self, clip: Clip, item: Item) -> int:
        """Return the index of the frame that an item is of.

        Raises:
            ValueError: no frame of a folder has the name, or the name has no number.
            VideoError: the video cannot be read.
        """
        if item.frame is not None:
            return item.frame
        stem = PurePosixPath(item.frame_name).stem
        names = self.opened(clip).names
        if names is not None:
            stems = [PurePosixPath(name).stem for name in names]
            if stem in stems:
                return stems.index(stem)
            raise ValueError(
                f"no frame of {clip.uri} is named {stem!r}; expected a name such as {stems[0]!r}"
            )
        numbers = re.findall(r"\d+", stem)
        if not numbers:
            raise ValueError(f"{item.frame_name!r} has no number; expected that of its frame")
        number = int(numbers[-1][-15:]) - self._first
        if number < 0:
            raise ValueError(f"{item.frame_name!r} is before --first-frame {self._first}")
        return number


def _keys(clip: Clip) -> tuple[str, ...]:
    """Return the names that a video goes by."""
    path = PurePosixPath(clip.place.path)
    return clip.video_id, clip.uri, str(path), path.name, _stem(path.name)


def _tiers(name: str) -> list[set[str]]:
    """Return what a name may mean, the likeliest first."""
    plain = name.replace("\\", "/").split("?")[0].rstrip("/")
    last = PurePosixPath(plain).name
    uploaded = _UPLOADED.fullmatch(last)
    tiers = [{name}, {plain}, {_stem(plain)}, {last}, {_stem(last)}]
    return [*tiers, {uploaded[1]}, {_stem(uploaded[1])}] if uploaded else tiers


def _stem(name: str) -> str:
    return name.rpartition(".")[0] if name.lower().endswith(ENDINGS) else name
