"""Which way an object is followed on a frame: from an earlier prompt, from a later one, or both."""

from bisect import bisect_right

from masking.manifest.rows import ObjectPlan

_POSITIVE = ("init", "correct")


class Ways:
    """On which frames an object is followed forward, and on which backward."""

    def __init__(self, plan: ObjectPlan) -> None:
        """Of an object with all that is said of it."""
        self.plan = plan
        self._events = sorted(plan.asked)

    def asked_for(self, index: int) -> bool:
        """Whether an answer is wanted at all."""
        before = self._before(index)
        ended = before is not None and self.plan.asked[before].role == "end"
        return not ended and self._in_span(index)

    def absent(self, index: int) -> bool:
        """Whether a person said that it is not to be seen."""
        before = self._before(index)
        return before is not None and self.plan.asked[before].role == "absent"

    def forward(self, index: int) -> bool:
        """Whether it is followed on this frame from an earlier prompt, or prompted here."""
        before = self._before(index)
        return before is not None and self._positive(before) and self._in_span(index)

    def ends(self, index: int) -> bool:
        """Whether this is the first frame on which it is not asked for any more."""
        return self.plan.end is not None and index == self.plan.end + 1

    def backward(self, index: int) -> bool:
        """Whether it is followed on this frame from a later prompt."""
        before = self._before(index)
        open_before = before is None or (self._positive(before) and before != index)
        return open_before and self._in_span(index) and self._turning_after(index) is not None

    def turns(self, index: int) -> bool:
        """Whether there is a prompt on this frame to go backward from."""
        return index in self.plan.asked and self._starts(index)

    def stretch(self) -> tuple[int, int] | None:
        """First frame that is gone through backward, and the last prompt that is gone from."""
        turning = [i for i in self._events if self._starts(i) and self.backward(i - 1)]
        if not turning:
            return None
        before = self._before(turning[0] - 1)
        return (self.plan.start if before is None else before + 1), turning[-1]

    def nearer_backward(self, index: int) -> bool:
        """Whether the later of the prompts around a frame is the nearer one."""
        before, after = self._before(index), self._turning_after(index)
        return before is None or (after is not None and after - index < index - before)

    def _in_span(self, index: int) -> bool:
        return self.plan.start <= index and (self.plan.end is None or index <= self.plan.end)

    def _starts(self, index: int) -> bool:
        """Whether the prompts of a frame say where the object is, with nothing else known."""
        return self._positive(index) and self.plan.asked[index].placed

    def _positive(self, index: int) -> bool:
        return self.plan.asked[index].role in _POSITIVE

    def _before(self, index: int) -> int | None:
        """The last word about it on or before a frame."""
        number = bisect_right(self._events, index)
        return self._events[number - 1] if number else None

    def _turning_after(self, index: int) -> int | None:
        """The next word about it, if that is a prompt to go backward from."""
        number = bisect_right(self._events, index)
        after = self._events[number] if number < len(self._events) else None
        return after if after is not None and self._starts(after) else None
