"""A video file: its frames forward, backward, and from any frame on."""

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import cast

from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from masking.images.depth import used_bits
from masking.video.clock import Clock
from masking.video.colours import DEEP, Converter
from masking.video.container import decoded_frames, jumps, note_streams, open_container, seek
from masking.video.frame import Frame, Report, Timestamp, VideoError
from masking.video.orientation import Orientation, orientation_of
from masking.video.truncation import missing_bytes

_SEEN = Fraction(1, 10)
"""Seconds at the start that do not decode from which it is noted."""


class VideoFile:
    """A video file; its methods are those of `Video`."""

    def __init__(self, path: Path) -> None:
        """Open a file; raises VideoError."""
        self.path = path
        self.report = Report()
        self.orientation = Orientation()
        self.clock: Clock | None = None
        self._container, self._stream = open_container(path)
        self.rate = self._stream.average_rate or self._stream.guessed_rate
        self.codec = self._stream.codec_context.name
        self._convert = Converter(self.report, self._used_bits)
        self._bits = 0

    def close(self) -> None:
        """Free the decoder."""
        self._container.close()

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise by which stored frames are rotated for display."""
        return self.orientation.rotation

    @property
    def pixel_aspect(self) -> Fraction | None:
        """Width of a pixel by its height, as displayed."""
        stored = self._stream.sample_aspect_ratio
        return 1 / stored if stored and self.orientation.is_turned else stored or None

    def forward(self, start: int) -> Iterator[Frame]:
        """Yield the frames from `start` on."""
        self.report = self._convert.report = Report()
        for index, (time_s, raw) in enumerate(self._decoded(self.report)):
            self.report.frames += 1
            if index >= start:
                yield Frame(index, raw.pts, time_s, self._convert(raw))
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
        for time_s, raw in self._decoded(report):
            yield Timestamp(raw.pts, time_s, bool(raw.key_frame))

    def _decoded(self, report: Report) -> Iterator[tuple[float | None, VideoFrame]]:
        """Yield all frames with the seconds since the first one; None: without a timestamp."""
        container, stream = open_container(self.path)
        with container:
            note_streams(container, stream, report)
            clock: Clock | None = None
            last: int | None = None
            for index, raw in enumerate(decoded_frames(container, stream, report)):
                if clock is None:
                    clock = self._first(raw, container, stream, report)
                if raw.pts is None or raw.time_base is None:
                    clock.skip()
                    yield None, raw
                    continue
                recordings = len(clock.zeros)
                stamp = clock(raw.pts)
                if len(clock.zeros) > recordings:
                    report.note(
                        f"the timestamps start again at frame {index}, as in joined recordings: its"
                        " time follows that of the frame before"
                    )
                report.unsorted += last is not None and stamp <= last
                last = stamp
                yield float(stamp * clock.unit), raw

    def _first(
        self, raw: VideoFrame, container: InputContainer, stream: VideoStream, report: Report
    ) -> Clock:
        """Take the facts of the first frame; return the clock of this pass."""
        self.orientation = orientation_of(raw, report)
        self._convert.orientations = {raw.rotation: self.orientation}
        unit = raw.time_base or Fraction(1)
        if raw.pts is not None and stream.start_time is not None and stream.time_base is not None:
            lost = raw.pts * unit - stream.start_time * stream.time_base
            if lost > _SEEN:
                report.note(f"the first {float(lost):.2f} s of the video do not decode")
        self.clock = Clock(raw.pts or 0, unit, self.rate, jumps(container))
        return self.clock

    def _used_bits(self) -> int:
        """Return how many of 16 bits all frames together use; the first call decodes them."""
        if not self._bits:
            self._bits = 8
            container, stream = open_container(self.path)
            with container:
                for raw in decoded_frames(container, stream, Report()):
                    if raw.format.name in DEEP and self._bits < 16:
                        self._bits = max(self._bits, used_bits(raw.to_ndarray()))
        return self._bits

    def seek(self, index: int, timestamps: Sequence[Timestamp], clean: bool) -> Iterator[Frame]:
        """Yield the frames from `index` on, from the key frame before it."""
        sure = clean and _ordered(timestamps)
        begin = max((i for i in range(index + 1) if timestamps[i].key), default=0) if sure else 0
        following = index
        for at, time_s, raw in self._from(begin, timestamps, sure):
            if at >= following:
                yield Frame(at, raw.pts, time_s, self._convert(raw))
                following = at + 1
        if sure and following < len(timestamps):  # this decode differs from the one before
            for at, time_s, raw in self._from(0, timestamps, False):
                if at >= following:
                    yield Frame(at, raw.pts, time_s, self._convert(raw))

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
        for index, time_s, raw in self._from(begin, timestamps, sure):
            if index >= stop:
                break
            if ring:
                most = max(1, ring_bytes // ring[0].image.nbytes)
            if not ring or index >= stop - most:  # earlier ones would not stay in the ring
                ring.append(Frame(index, raw.pts, time_s, self._convert(raw)))
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
    ) -> Iterator[tuple[int, float | None, VideoFrame]]:
        """Yield index, seconds and frame from an index on after a seek, known by their timestamps;
        without `sure` all frames from the start. Ends early where the frames differ from those of
        the survey.
        """
        if not sure or begin == 0:
            for index, (time_s, raw) in enumerate(self._decoded(Report())):
                yield index, time_s, raw
            return
        container, stream = open_container(self.path)
        with container:
            # To the key frame's own timestamp: with an earlier one some demuxers land too early.
            if not seek(container, stream, cast(int, timestamps[begin].pts)):
                return
            index = begin
            for raw in decoded_frames(container, stream, Report()):
                if raw.pts is None or index >= len(timestamps):
                    return
                if raw.pts < cast(int, timestamps[begin].pts):
                    continue
                if raw.pts != timestamps[index].pts:
                    return
                yield index, timestamps[index].time_s, raw
                index += 1


def _ordered(timestamps: Sequence[Timestamp]) -> bool:
    """Return whether timestamps only rise, so that each identifies its frame."""
    stamps = [timestamp.pts for timestamp in timestamps if timestamp.pts is not None]
    rising = all(a < b for a, b in pairwise(stamps))
    return rising and len(stamps) == len(timestamps) > 0 and timestamps[0].key
