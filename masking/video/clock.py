"""Time that continues where the timestamps of a stream start again, as in joined recordings."""

from fractions import Fraction

_BACK = Fraction(1, 10)
"""Seconds back from which timestamps have started again, as in FFmpeg's own program."""
_GAP = 10
"""Seconds ahead from which a transport stream has started again, as in FFmpeg's own program."""
_STEPS = 10
"""Usual steps that such a gap is longer than: a time-lapse has a long step itself."""


class Clock:
    """Turns timestamps of a file into timestamps since the first one.

    Two recordings joined by `cat` have timestamps that start again in the middle: the second
    recording follows one step after the end of the first, as players show it. A single odd
    timestamp does not start a recording.
    """

    def __init__(self, first: int, unit: Fraction, rate: Fraction | None, gaps: bool) -> None:
        """Start a clock.

        Args:
            first: timestamp that is time 0, in units.
            unit: seconds of a unit.
            rate: frames per second; None: unknown.
            gaps: whether a jump ahead starts a recording, too, as in transport streams.
        """
        self.unit = unit
        self.zeros = [first]
        """Timestamp that would be time 0, of each recording."""
        self._back, self._gap = _BACK / unit, _GAP / unit if gaps else None
        self._step = max(1, round(1 / rate / unit)) if rate else 1
        self._unstamped = 0
        self._before: tuple[int, int] | None = None
        self._last: tuple[int, int] | None = None

    def __call__(self, stamp: int) -> int:
        """Return the units since the first timestamp."""
        if self._last is not None:
            self._follow(stamp, *self._last)
        self._before, self._last = self._last, (stamp, self.zeros[-1])
        self._unstamped = 0
        return stamp - self.zeros[-1]

    def skip(self) -> None:
        """Count a frame without a timestamp, as MPEG program streams have them."""
        self._unstamped += 1

    def _follow(self, stamp: int, last: int, zero: int) -> None:
        step = stamp - last
        if self._before is not None:
            before, old = self._before
            if before < stamp and stamp - before <= abs(step):  # the last timestamp was the odd one
                if old != zero:
                    self.zeros.pop()
                return
        back = step < -self._back or (step <= 0 and self._unstamped * self._step > self._back)
        if back or (self._gap is not None and step > self._limit()):
            self.zeros.append(stamp - (last - zero) - self._step * (1 + self._unstamped))
        elif step > 0:
            self._step = step

    def _limit(self) -> Fraction:
        assert self._gap is not None
        return max(self._gap, Fraction(_STEPS * self._step))

    @property
    def origins(self) -> list[Fraction]:
        """Seconds of the file's own clock at which the time would be 0, of each recording."""
        return [zero * self.unit for zero in self.zeros]
