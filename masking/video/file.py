"""A video file: its frames forward, backward, and from any frame on."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import cast

from av.video.frame import VideoFrame

from masking.video.colours import Converter, rotation_of
from masking.video.container import decoded_frames, open_container
from masking.video.frame import Frame, Report, Timestamp, VideoError
from masking.video.truncation import missing_bytes


class VideoFile:
    """A video file; its methods are those of `Video`."""

    def __init__(self, path: Path) -> None:
        """Open a file; raises VideoError."""
        self.path = path
        self.report = Report()
        self.rotation = 0
        self._container, self._stream = open_container(path)
        self.rate = self._stream.average_rate or self._stream.guessed_rate
        self.codec = self._stream.codec_context.name
        self._convert = Converter(self.report)

    def close(self) -> None:
        """Free the decoder."""
        self._container.close()

    def forward(self, start: int) -> Iterator[Frame]:
        """Yield the frames from `start` on."""
        first: int | None = None
        last: int | None = None
        self.report = self._convert.report = Report()
        container, stream = open_container(self.path)
        with container:
            for raw in decoded_frames(container, stream, self.report):
                index, pts = self.report.frames, raw.pts
                self.report.frames += 1
                if index == 0:
                    first = pts
                    self.rotation = rotation_of(raw, self.report)
                if pts is not None:
                    self.report.unsorted += last is not None and pts <= last
                    last = pts
                if index >= start:
                    yield self._frame(raw, index, first)
        if missing := missing_bytes(self.path):
            self.report.cut_off = True
            self.report.note(f"the file is {missing:,} bytes shorter than its header says")
        if not self.report.frames:
            raise VideoError(
                "no_frames",
                f"{self.path}: no frame decodes"
                + "".join(f"; {note}" for note in self.report.notes[:1]),
            )

    def timestamps(self) -> Iterator[Timestamp]:
        """Yield the timestamps of all frames."""
        self.report = Report()
        for timestamp in self._timestamps(self.report):
            self.report.frames += 1
            yield timestamp

    def _timestamps(self, report: Report) -> Iterator[Timestamp]:
        container, stream = open_container(self.path)
        with container:
            first: int | None = None
            for index, raw in enumerate(decoded_frames(container, stream, report)):
                if index == 0:
                    first = raw.pts
                    self.rotation = rotation_of(raw, report)
                yield Timestamp(raw.pts, _time(raw, first), bool(raw.key_frame))

    def seek(self, index: int, timestamps: Sequence[Timestamp], clean: bool) -> Iterator[Frame]:
        """Yield the frames from `index` on, from the key frame before it."""
        sure = clean and _ordered(timestamps)
        begin = max((i for i in range(index + 1) if timestamps[i].key), default=0) if sure else 0
        following = index
        for at, raw in self._from(begin, timestamps, sure):
            if at >= following:
                yield self._frame(raw, at, timestamps[0].pts)
                following = at + 1
        if sure and following < len(timestamps):  # this decode differs from the one before
            for at, raw in self._from(0, timestamps, False):
                if at >= following:
                    yield self._frame(raw, at, timestamps[0].pts)

    def _frame(self, raw: VideoFrame, index: int, first: int | None) -> Frame:
        return Frame(index, raw.pts, _time(raw, first), self._convert(raw))

    def backward(self, last: int, ring_bytes: int) -> Iterator[Frame]:
        """Yield the frames from `last` to the first."""
        timestamps, sure = self._survey(last)
        stop = len(timestamps)
        while stop > 0:
            ring = self._before(stop, timestamps, sure, ring_bytes)
            if not ring:
                if not sure:  # this decode differs from the survey
                    return
                sure = False
                continue
            stop = ring[0].index
            while ring:
                yield ring.pop()

    def _before(
        self, stop: int, timestamps: list[Timestamp], sure: bool, ring_bytes: int
    ) -> deque[Frame]:
        """Return the frames up to `stop - 1` of its group of pictures, as many as may be held.

        Empty if frame `stop - 1` was not found again.
        """
        begin = max((i for i in range(stop) if timestamps[i].key), default=0) if sure else 0
        ring: deque[Frame] = deque()
        most = stop
        for index, raw in self._from(begin, timestamps, sure):
            if index >= stop:
                break
            if ring:
                most = max(1, ring_bytes // ring[0].image.nbytes)
            if not ring or index >= stop - most:  # earlier ones would not stay in the ring
                ring.append(self._frame(raw, index, timestamps[0].pts))
            while len(ring) > most:
                ring.popleft()
        return ring if ring and ring[-1].index == stop - 1 else deque()

    def _survey(self, last: int) -> tuple[list[Timestamp], bool]:
        """Decode up to a frame; return the timestamps, and whether key frames can be trusted."""
        report = Report()
        timestamps = [*islice(self._timestamps(report), last + 1)]
        return timestamps, not report.corrupt_packets and _ordered(timestamps)

    def _from(
        self, begin: int, timestamps: Sequence[Timestamp], sure: bool
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Yield frames from an index on after a seek, known by their timestamps; without `sure` all
        frames from the start. Ends early where the frames differ from those of the survey.
        """
        container, stream = open_container(self.path)
        with container:
            if not sure or begin == 0:
                yield from enumerate(decoded_frames(container, stream, Report()))
                return
            # To the key frame's own timestamp: with an earlier one some demuxers land too early.
            container.seek(cast(int, timestamps[begin].pts), stream=stream)
            index = begin
            for raw in decoded_frames(container, stream, Report()):
                if raw.pts is None or index >= len(timestamps):
                    return
                if raw.pts < cast(int, timestamps[begin].pts):
                    continue
                if raw.pts != timestamps[index].pts:
                    return
                yield index, raw
                index += 1


def _ordered(timestamps: Sequence[Timestamp]) -> bool:
    """Return whether timestamps only rise, so that each identifies its frame."""
    stamps = [timestamp.pts for timestamp in timestamps if timestamp.pts is not None]
    rising = all(a < b for a, b in pairwise(stamps))
    return rising and len(stamps) == len(timestamps) > 0 and timestamps[0].key


def _time(raw: VideoFrame, first: int | None) -> float | None:
    """Return the seconds since the frame whose timestamp is `first`."""
    if raw.pts is None or raw.time_base is None:
        return None
    return float((raw.pts - (first or 0)) * raw.time_base)
