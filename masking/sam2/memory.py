"""What a network with a memory remembers of objects, as values with a bounded size.

Of each object: the frames with prompts, and the last frames before. The model attends to a frame's
tokens for as many frames as it was trained with (`num_maskmem`), to its pointer, a single vector,
for more (`max_object_pointers_in_encoder`). All else is forgotten. Of frames with prompts the first
and the latest `PROMPTED` - 1 keep their tokens, and all keep their pointer.

Shapes: L tokens of a frame, M channels of a token, C channels of a pointer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

PROMPTED = 8
"""Frames with prompts of an object whose tokens are kept: the time of each frame grows with them.
SAM 2's own limit, where its configuration has one (SAM 3: 4), is the number that it attends to."""


@dataclass(frozen=True)
class FrameMemory:
    """What is remembered of an object on a frame."""

    pointer: Tensor
    """(C,) float32."""
    tokens: Tensor | None = None
    """(L, M), bfloat16 as SAM 2 keeps them; None: only the pointer is still needed."""


@dataclass(frozen=True)
class ObjectMemory:
    """What is remembered of an object, by index of the frame."""

    prompted: Mapping[int, FrameMemory] = field(default_factory=dict)
    """Frames with prompts."""
    recent: Mapping[int, FrameMemory] = field(default_factory=dict)
    """Other frames, the last ones."""

    def with_prompt(self, frame: int, memory: FrameMemory) -> "ObjectMemory":
        """Add a frame with a prompt, or replace it."""
        prompted = dict(sorted({**self.prompted, frame: memory}.items()))
        with_tokens = [index for index, one in prompted.items() if one.tokens is not None]
        for index in with_tokens[1 : 1 - PROMPTED]:
            prompted[index] = replace(prompted[index], tokens=None)
        recent = {index: one for index, one in self.recent.items() if index != frame}
        return ObjectMemory(prompted, recent)

    def with_frame(
        self, frame: int, memory: FrameMemory, tokens: int, pointers: int
    ) -> "ObjectMemory":
        """Add a frame without a prompt, and forget what is too long ago.

        Args:
            frame: index of the frame.
            memory: what is remembered of it.
            tokens: for how many frames tokens are kept.
            pointers: for how many frames pointers are kept.
        """
        recent = {
            index: one if abs(frame - index) < tokens else replace(one, tokens=None)
            for index, one in {**self.recent, frame: memory}.items()
            if abs(frame - index) < max(tokens, pointers)
        }
        return replace(self, recent=recent)


@dataclass(frozen=True)
class VideoMemory:
    """What is remembered of all objects of a video, in one direction."""

    objects: tuple[ObjectMemory, ...]
    """Of each object."""
    backward: bool = False
    """Whether frames come from the last to the first."""

    @classmethod
    def nothing(cls, objects: int, backward: bool = False) -> "VideoMemory":
        """Return a memory of nothing, for a number of objects."""
        return cls((ObjectMemory(),) * objects, backward)

    def of_prompts(self, backward: bool = False) -> "VideoMemory":
        """Return the memory of frames with prompts, for a pass in a direction."""
        return VideoMemory(tuple(ObjectMemory(one.prompted) for one in self.objects), backward)


def closest(frame: int, prompted: Mapping[int, FrameMemory], most: int) -> dict[int, FrameMemory]:
    """Return the frames with prompts that the network attends to from a frame: all that have
    tokens, or the last one before, the next one, and those nearest.

    Args:
        frame: index of the frame.
        prompted: frames with prompts.
        most: the largest number; -1: all.
    """
    kept = {index: one for index, one in prompted.items() if one.tokens is not None}
    if most < 0 or len(kept) <= most:
        return kept
    before = max((index for index in kept if index < frame), default=None)
    after = min((index for index in kept if index >= frame), default=None)
    chosen = [index for index in (before, after) if index is not None]
    rest = sorted((i for i in kept if i not in chosen), key=lambda i: abs(i - frame))
    chosen += rest[: most - len(chosen)]
    return {index: kept[index] for index in chosen}
