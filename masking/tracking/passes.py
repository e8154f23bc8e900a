"""Passes over a video, backward and forward, merged frame by frame.

Frames before an object's first prompt, and between two prompts, are tracked backward first; their
masks wait as run lengths. Then the video is streamed forward, once. Between prompts the masks of
both passes are merged (`masking.tracking.masks.better_mask`).
"""

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from masking.images.masks import decode_rle, encode_rle
from masking.manifest.plans import ObjectPlan
from masking.manifest.prompt import FramePrompt
from masking.segmenter.sam import Segmenter
from masking.tracking import snapshot
from masking.tracking.directions import Directions
from masking.tracking.masks import FrameMasks, Mask, absent_mask, better_mask, logit_of
from masking.tracking.prefetch import prefetch_scenes
from masking.tracking.snapshot import KeptMask, MaskingState
from masking.tracking.state import NOTHING, TrackConfig, TrackedMasks, begin
from masking.tracking.step import advance
from masking.video.frame import Frame
from masking.video.reader import Video


class Passes:
    """Both passes over a video."""

    def __init__(
        self,
        video: Video,
        segmenter: Segmenter,
        plans: Sequence[ObjectPlan],
        size: tuple[int, int],
        config: TrackConfig,
        start: MaskingState | None,
    ) -> None:
        """Take the arguments of `Masking`; raises the same errors."""
        self.video, self.segmenter, self.size, self.config = video, segmenter, size, config
        self.directions = [Directions(plan) for plan in plans]
        self.objects = tuple(plan.object_id for plan in plans)
        self.made_of = _hash(segmenter, plans, size)
        if start is not None and start.made_of != self.made_of:
            raise ValueError(
                "the state to resume from was made with other prompts, frames of another size or"
                " another segmenter; give those it was made with, or start without a state"
            )
        self.start = self.reached = start

    def run(self) -> Generator[FrameMasks]:
        """Yield the masks of each frame, from the first one or after the state's last one."""
        try:
            if self.start is None:
                tracker, kept, first = begin(len(self.objects)), self._backward(), 0
            else:
                memory = snapshot.moved(self.start.tracker.memory, self.segmenter.device)
                tracker = replace(self.start.tracker, memory=memory)
                kept, first = dict(self.start.backward), self.start.next_frame
            frames = self.video.forward(first)
            for frame, scene in prefetch_scenes(
                self.segmenter, frames, self.size, self._needs_forward
            ):
                found: list[Mask | None] = [None] * len(self.objects)
                logits = np.full((len(self.objects), *frame.image.shape[:2]), NOTHING, "f4")
                if scene is not None:
                    prompts = self._prompts(frame.index)
                    tracker, masks = advance(self.segmenter, self.config, tracker, scene, prompts)
                    logits = self._full_size(masks, frame)
                    found = _forward_masks(masks, logits)
                self._merge(frame, found, logits, kept.pop(frame.index, None))
                self.reached = MaskingState(self.made_of, frame.index + 1, tracker, kept)
                yield FrameMasks(
                    frame.index, frame.time_s, frame.image, self.objects, tuple(found), logits
                )
        finally:
            self.video.close()

    def _needs_forward(self, index: int) -> bool:
        """Return whether the forward pass tracks or prompts any object on a frame."""
        return any(
            one.is_forward(index) or index in one.plan.prompts or one.has_just_ended(index)
            for one in self.directions
        )

    def _prompts(self, index: int) -> dict[int, FramePrompt]:
        """Return the prompts on a frame in the forward pass, by object."""
        prompts = {}
        for row, directions in enumerate(self.directions):
            prompt = directions.plan.prompts.get(index)
            if prompt is not None:
                prompts[row] = prompt
            elif directions.has_just_ended(index):
                prompts[row] = FramePrompt(role="end")
        return prompts

    def _backward(self) -> dict[int, tuple[KeptMask | None, ...]]:
        """Return the masks of the backward pass by frame, from the last prompt that needs it."""
        kept: dict[int, tuple[KeptMask | None, ...]] = {}
        ranges = [span for one in self.directions if (span := one.backward_range()) is not None]
        if not ranges:
            return kept
        first, last = min(span[0] for span in ranges), max(span[1] for span in ranges)
        tracker = begin(len(self.objects))

        def needed(index: int) -> bool:
            return any(
                one.is_backward(index) or one.starts_backward(index) for one in self.directions
            )

        frames = self.video.backward(last)
        for frame, scene in prefetch_scenes(self.segmenter, frames, self.size, needed):
            if frame.index < first:
                break
            if scene is None:
                continue
            prompts = self._backward_prompts(frame.index)
            tracker, masks = advance(self.segmenter, self.config, tracker, scene, prompts)
            found = _forward_masks(masks, self._full_size(masks, frame))
            size = frame.image.shape[:2]
            kept[frame.index] = tuple(
                KeptMask(one.state, encode_rle(one.mask), size, one.score, one.quality)
                if one is not None and directions.is_backward(frame.index)
                else None
                for one, directions in zip(found, self.directions, strict=True)
            )
        return kept

    def _backward_prompts(self, index: int) -> dict[int, FramePrompt]:
        """Return the prompts on a frame in the backward pass, by object."""
        prompts = {}
        for row, directions in enumerate(self.directions):
            if directions.starts_backward(index):
                prompts[row] = replace(directions.plan.prompts[index], role="init")
            elif not directions.is_backward(index):
                prompts[row] = FramePrompt(role="end")
        return prompts

    def _full_size(self, masks: TrackedMasks, frame: Frame) -> NDArray[np.float32]:
        """Return logits (K, H, W) at the size of a frame, which may differ from the first one's."""
        logits: NDArray[np.float32] = (
            self.segmenter.upsample(masks.logits.to(self.segmenter.device), self.size).cpu().numpy()
        )
        h, w = frame.image.shape[:2]
        if self.size == (h, w):
            return logits
        return np.stack([cv2.resize(one, (w, h)) for one in logits])

    def _merge(
        self,
        frame: Frame,
        found: list[Mask | None],
        logits: NDArray[np.float32],
        kept: tuple[KeptMask | None, ...] | None,
    ) -> None:
        """Merge the masks that the backward pass kept for a frame into `found` and `logits`."""
        for row, (directions, forward) in enumerate(zip(self.directions, found, strict=True)):
            prompted = frame.index in directions.plan.prompts
            if forward is not None and prompted:
                found[row] = replace(forward, direction="prompt")
            if not directions.is_wanted(frame.index):
                found[row] = None
                continue
            if directions.is_absent(frame.index):
                found[row] = absent_mask(frame.image.shape[:2])
                continue
            one = None if kept is None or prompted else kept[row]
            if one is None:
                continue
            mask = decode_rle(one.counts, one.size)
            backward = Mask(one.state, mask, one.score, one.quality, "backward")
            is_later_nearer = directions.is_nearer_to_later(frame.index)
            found[row] = better_mask(forward, backward, is_later_nearer)
            if cast(Mask, found[row]).mask is mask:
                logits[row] = np.where(mask, logit_of(one.score), NOTHING)


def _forward_masks(masks: TrackedMasks, logits: NDArray[np.float32]) -> list[Mask | None]:
    return [
        None if state is None else Mask(state, logits[i] > 0, score, quality, "forward")
        for i, (state, score, quality) in enumerate(
            zip(masks.states, masks.scores, masks.quality, strict=True)
        )
    ]


def _hash(segmenter: Segmenter, plans: Sequence[ObjectPlan], size: tuple[int, int]) -> str:
    """Hash what a state depends on, except the video's pixels and the segmenter's weights."""
    content: list[Any] = [type(segmenter.network).__name__, segmenter.low_res(size), size]
    for plan in plans:
        content += [plan.object_id, plan.start, plan.end]
        for frame, prompt in plan.prompts.items():
            box = None if prompt.box is None else prompt.box.tolist()
            content += [frame, prompt.role, prompt.points.tolist(), prompt.labels.tolist(), box]
    return hashlib.sha256(repr(content).encode()).hexdigest()
