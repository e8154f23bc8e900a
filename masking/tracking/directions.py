"""Directions in which an object is tracked on a frame: forward, backward or both."""

from bisect import bisect_right
from collections.abc import Collection, Sequence

from masking.manifest.plans import ObjectPlan

_POSITIVE = ("init", "correct")


class Directions:
    """On which frames an object is tracked forward, and on which backward."""

    def __init__(self, plan: ObjectPlan) -> None:
        """Take an object with all its prompts."""
        self.plan = plan
        self._prompted = sorted(plan.prompts)
        self._left_out: set[int] = set()
        located = [i for i in self._prompted if self.is_located(i)]
        starts = [i for i in located if plan.prompts[i].role == "init"] or located
        self.first = starts[0] if starts else plan.start
        """Frame of the first prompt that corrects no other mask."""

    def is_wanted(self, index: int) -> bool:
        """Return whether a mask is wanted on a frame at all."""
        before = self._before(index)
        ended = before is not None and self.plan.prompts[before].role == "end"
        return not ended and self._in_span(index)

    def is_absent(self, index: int) -> bool:
        """Return whether a person marked the object as absent on a frame."""
        before = self._before(index)
        return before is not None and self.plan.prompts[before].role == "absent"

    def is_located(self, index: int) -> bool:
        """Return whether a prompt on the frame says where the object is, without a mask."""
        return self._is_positive(index) and self.plan.prompts[index].is_located

    def is_correction(self, index: int) -> bool:
        """Return whether a prompt on the frame corrects the mask that is expected there."""
        prompt = self.plan.prompts.get(index)
        return prompt is not None and prompt.role == "correct" and index != self.first

    def is_forward(self, index: int) -> bool:
        """Return whether the object is tracked from an earlier prompt, or prompted on the frame."""
        before = self._before(index)
        return before is not None and self._is_positive(before) and self._in_span(index)

    def has_just_ended(self, index: int) -> bool:
        """Return whether this is the first frame after the last one on which a mask is wanted."""
        return self.plan.end is not None and index == self.plan.end + 1

    def is_backward(self, index: int) -> bool:
        """Return whether the object is tracked on a frame from a later prompt."""
        before = self._before(index)
        is_open = before is None or (self._is_positive(before) and before != index)
        return is_open and self._in_span(index) and self._start_after(index) is not None

    def starts_backward(self, index: int) -> bool:
        """Return whether a prompt on the frame can start tracking backward."""
        return self._is_positive(index) and index not in self._left_out

    def leave_out(self, lost: Collection[int]) -> None:
        """Do not start backward on some frames, unless the prompts there need no mask.

        Args:
            lost: frames that have no mask to start from.
        """
        self._left_out = {i for i in lost if i > self.first and not self.is_located(i)}

    def backward_range(self) -> tuple[int, int] | None:
        """Return the first frame to track backward to, and the last prompt to start from; None:
        the object is tracked only forward."""
        starts = [i for i in self._prompted if self.starts_backward(i) and self.is_backward(i - 1)]
        if not starts:
            return None
        before = self._before(starts[0] - 1)
        return (self.plan.start if before is None else before + 1), starts[-1]

    def prompted_after_first(self) -> list[int]:
        """Return the frames of the first prompt and of later ones that the object is seen on."""
        return [i for i in self._prompted if self._is_positive(i) and i >= self.first]

    def lateness(self, index: int) -> float:
        """Return where a frame lies between the prompts around it, from 0 at the earlier one to 1
        at the later one."""
        before, after = self._before(index), self._start_after(index)
        if before is None or after is None:
            return float(before is None)
        return (index - before) / (after - before)

    def _in_span(self, index: int) -> bool:
        return self.plan.start <= index and (self.plan.end is None or index <= self.plan.end)

    def _is_positive(self, index: int) -> bool:
        prompt = self.plan.prompts.get(index)
        return prompt is not None and prompt.role in _POSITIVE

    def _before(self, index: int) -> int | None:
        """Return the frame of the last prompt on or before a frame."""
        number = bisect_right(self._prompted, index)
        return self._prompted[number - 1] if number else None

    def _start_after(self, index: int) -> int | None:
        """Return the frame of the next prompt, if that can start tracking backward."""
        number = bisect_right(self._prompted, index)
        after = self._prompted[number] if number < len(self._prompted) else None
        return after if after is not None and self.starts_backward(after) else None


def prompted_range(objects: Sequence[Directions]) -> tuple[int, int] | None:
    """Return the first and the last of the frames whose prompts have to be answered before all
    others are masked; None: no object has several."""
    frames = [one.prompted_after_first() for one in objects]
    if all(len(mine) < 2 for mine in frames):
        return None
    return min(min(mine) for mine in frames if mine), max(max(mine) for mine in frames if mine)


def frames_before(plans: Sequence[ObjectPlan]) -> int:
    """Return how many frames are read, at most, before the first mask of a video is known."""
    objects = [Directions(plan) for plan in plans]
    backward = [found for one in objects if (found := one.backward_range()) is not None]
    ranges = [(min(a for a, _ in backward), max(b for _, b in backward))] if backward else []
    prompted = prompted_range(objects)
    ranges += [prompted] if prompted else []
    return sum(last - first + 1 for first, last in ranges)
