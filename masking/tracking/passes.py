"""Passes over a video, merged frame by frame.

1. If objects are prompted on several frames, the masks of these frames come first: a pass from the
   first to the last of them, in which corrections start from the mask that is expected there.
2. Frames before an object's first prompt, and between two prompts, are tracked backward; the masks
   wait as run lengths.
3. The video is streamed forward, once.

The second and the third pass start from the masks of the first, and remember all prompted frames
from their beginning: so a correction is known on all frames that look alike. Between prompts the
masks of both are merged (`masking.tracking.masks.better_mask`).
"""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from masking.images.arrays import Bools
from masking.images.decode import nearest
from masking.images.geometry import iou
from masking.images.masks import decode_rle, encode_rle
from masking.manifest.plans import ObjectPlan
from masking.manifest.prompt import FramePrompt
from masking.tracking.directions import Directions, prompted_range
from masking.tracking.enlarge import FrameLogits, at_full_size
from masking.tracking.interface import Tracking
from masking.tracking.masks import (
    FrameMasks,
    Mask,
    absent_mask,
    better_mask,
    forward_masks,
    logit_of,
)
from masking.tracking.obeying import FORCED, obey_in_frame
from masking.tracking.prefetch import prefetch_scenes
from masking.tracking.query import Answer, clicks_on_others
from masking.tracking.snapshot import KeptMask, MaskingState
from masking.tracking.state import NOTHING, TrackConfig, TrackedMasks
from masking.video.frame import Frame
from masking.video.reader import Video

Kept = dict[int, tuple[KeptMask | None, ...]]
"""Masks of the backward pass by frame, one for each object."""
Given = dict[int, Mapping[int, Answer]]
"""Answers to corrections by frame and object. Other prompts do not depend on what was tracked."""


class Passes:
    """All passes over a video."""

    def __init__(
        self,
        video: Video,
        tracking: Tracking[Any, Any],
        plans: Sequence[ObjectPlan],
        size: tuple[int, int],
        config: TrackConfig,
        start: MaskingState | None,
    ) -> None:
        """Take the arguments of `Masking`; raises the same errors."""
        self.video, self.tracking, self.size, self.config = video, tracking, size, config
        self.directions = [Directions(plan) for plan in plans]
        self.objects = tuple(plan.object_id for plan in plans)
        self.made_of = _hash(tracking, plans, size)
        if start is not None and start.made_of != self.made_of:
            raise ValueError(
                "the state to resume from was made with other prompts, frames of another size or"
                " another segmenter; give those it was made with, or start without a state"
            )
        self.start = self.reached = start

    def run(self) -> Generator[FrameMasks]:
        """Yield the masks of each frame, from the first one or after the state's last one."""
        try:
            tracker, kept, given, first = self._begun()
            frames = self.video.forward(first)
            for frame, scene in prefetch_scenes(
                self.tracking, frames, self.size, self._needs_forward
            ):
                prompts = self._prompts(frame.index)
                if scene is None:
                    found: list[Mask | None] = [None] * len(self.objects)
                    logits = self._nothing(frame)
                else:
                    known = given.pop(frame.index, {})
                    tracker, masks = self.tracking.advance(tracker, scene, prompts, known)
                    shown, logits = self._full_size(masks, frame)
                    found = forward_masks(masks, shown)
                self._merge(frame, found, logits, kept.pop(frame.index, None))
                self._obey(frame, found, logits, prompts)
                self.reached = MaskingState(self.made_of, frame.index + 1, tracker, kept, given)
                yield FrameMasks(
                    frame.index, frame.time_s, frame.image, self.objects, tuple(found), logits
                )
        finally:
            self.video.close()

    def _begun(self) -> tuple[Any, Kept, Given, int]:
        """Return where the forward pass starts: its tracker, the results of the passes before it,
        and its first frame."""
        if self.start is None:
            tracker, given = self._prompted()
            tracker, kept = self._backward(tracker, given)
            return tracker, kept, given, 0
        tracker = self.tracking.resume(self.start.tracker)
        return tracker, dict(self.start.backward), dict(self.start.given), self.start.next_frame

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

    def _prompted(self) -> tuple[Any, Given]:
        """Track from the first prompt to the last one.

        Returns:
            A tracker that remembers the prompted frames, and the answers to corrections. Nothing
            is remembered yet if no object is prompted on several frames.
        """
        tracker, given = self.tracking.begin(len(self.objects)), Given()
        span = prompted_range(self.directions)
        if span is None:
            return tracker, given
        corrected = max(
            (
                i
                for one in self.directions
                for i in one.plan.prompts
                if one.is_correction(i) and i > one.first
            ),
            default=-1,
        )
        frames = self.video.forward(span[0])
        for frame, scene in prefetch_scenes(
            self.tracking,
            frames,
            self.size,
            lambda index: self._is_prompted(index) or span[0] <= index <= corrected,
        ):
            if scene is not None:
                if frame.index > corrected:  # the frames before it were left out
                    tracker = self.tracking.restart(tracker)
                prompts = {
                    row: prompt
                    for row, prompt in self._prompts(frame.index).items()
                    if frame.index >= self.directions[row].first
                }
                tracker, masks = self.tracking.advance(tracker, scene, prompts, {})
                self._note_corrections(given, frame.index, masks)
            if frame.index >= span[1]:
                break
        return self.tracking.restart(tracker), given

    def _is_prompted(self, index: int) -> bool:
        """Return whether an object is prompted on a frame."""
        return any(index in one.plan.prompts for one in self.directions)

    def _note_corrections(self, given: Given, index: int, masks: TrackedMasks) -> None:
        """Add the answers to the corrections of a frame to those given."""
        for row, directions in enumerate(self.directions):
            if masks.states[row] == "prompted" and directions.is_correction(index):
                score, quality = masks.scores[row], masks.quality[row]
                answer = Answer(masks.logits[row].clone(), score, quality, is_judged=True)
                given[index] = {**given.get(index, {}), row: answer}

    def _backward(self, tracker: Any, given: Given) -> tuple[Any, Kept]:
        """Track backward, from the last prompt that needs it.

        Args:
            tracker: a tracker that remembers prompted frames.
            given: answers to corrections; those of this pass are added.

        Returns:
            A tracker for the forward pass, and the masks that wait for it.
        """
        kept = Kept()
        for row, one in enumerate(self.directions):
            one.leave_out({index for index in one.plan.prompts if row not in given.get(index, {})})
        ranges = [span for one in self.directions if (span := one.backward_range()) is not None]
        if not ranges:
            return tracker, kept
        first, last = min(span[0] for span in ranges), max(span[1] for span in ranges)
        is_known = self.tracking.knows_prompts(tracker)
        tracker = self.tracking.restart(tracker, backward=True)

        def needed(index: int) -> bool:
            return any(
                one.is_backward(index) or one.starts_backward(index) for one in self.directions
            )

        frames = self.video.backward(last)
        for frame, scene in prefetch_scenes(self.tracking, frames, self.size, needed):
            if frame.index < first:
                break
            if scene is None:
                continue
            prompts, known = self._backward_prompts(frame.index), given.get(frame.index, {})
            tracker, masks = self.tracking.advance(tracker, scene, prompts, known)
            self._note_corrections(given, frame.index, masks)
            found = forward_masks(masks, self._full_size(masks, frame)[0])
            size = frame.image.shape[:2]
            kept[frame.index] = tuple(
                KeptMask(one.state, encode_rle(one.mask), size, one.score, one.quality)
                if one is not None and directions.is_backward(frame.index)
                else None
                for one, directions in zip(found, self.directions, strict=True)
            )
        if is_known or given:
            return self.tracking.restart(tracker), kept
        return self.tracking.begin(len(self.objects)), kept

    def _backward_prompts(self, index: int) -> dict[int, FramePrompt]:
        """Return the prompts on a frame in the backward pass, by object."""
        prompts = {}
        for row, directions in enumerate(self.directions):
            if directions.starts_backward(index):
                prompt = directions.plan.prompts[index]
                is_start = index >= directions.first
                prompts[row] = replace(prompt, role="init") if is_start else prompt
            elif not directions.is_backward(index):
                prompts[row] = FramePrompt(role="end")
        return prompts

    def _full_size(self, masks: TrackedMasks, frame: Frame) -> tuple[Bools, FrameLogits]:
        """Return masks (K, H, W) and logits at the size of a frame, which may differ from the
        first one's."""
        size = (frame.image.shape[0], frame.image.shape[1])
        return at_full_size(self.tracking.segmenter, masks.logits, self.size, size)

    def _nothing(self, frame: Frame) -> FrameLogits:
        """Return the logits of empty masks on a frame."""
        shape = (len(self.objects), *frame.image.shape[:2])
        return FrameLogits(lambda: np.full(shape, NOTHING, np.float32))

    def _merge(
        self,
        frame: Frame,
        found: list[Mask | None],
        logits: FrameLogits,
        kept: tuple[KeptMask | None, ...] | None,
    ) -> None:
        """Merge the masks that the backward pass kept for a frame into `found` and `logits`."""
        for row, (directions, forward) in enumerate(zip(self.directions, found, strict=True)):
            prompted = forward is not None and forward.state == "prompted"
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
            found[row] = better_mask(forward, backward, directions.lateness(frame.index))
            if cast(Mask, found[row]).mask is mask:
                logits[row] = np.where(mask, np.float32(logit_of(one.score)), np.float32(NOTHING))

    def _obey(
        self,
        frame: Frame,
        found: list[Mask | None],
        logits: FrameLogits,
        prompts: Mapping[int, FramePrompt],
    ) -> None:
        """Give prompted objects in `found` and `logits` the masks that a person gave; cut and fill
        masks where they do not obey the clicks at the frame's own size."""
        h, w = frame.image.shape[:2]
        scale = (h / self.size[0], w / self.size[1])
        for row, prompt in prompts.items():
            one = found[row]
            if one is not None and prompt.mask is not None:
                mask = nearest(prompt.mask, (h, w))
                one = found[row] = replace(one, mask=mask, score=1.0, quality=1.0)
                logits[row] = np.where(mask, np.float32(FORCED), np.float32(-FORCED))
            if one is None or not len(prompt.points):
                continue
            others = clicks_on_others(prompts, row) if self.config.exclusive else prompt.points[:0]
            points = np.concatenate([others, prompt.points])
            labels = np.concatenate([np.zeros(len(others), np.int64), prompt.labels])
            before = logits[row]
            obedient = obey_in_frame(before, points, labels, scale)
            if obedient is not before:
                mask = obedient > 0
                agreed = float(iou(torch.from_numpy(one.mask), torch.from_numpy(mask)))
                found[row] = replace(one, mask=mask, quality=one.quality * agreed)
                logits[row] = obedient


def _hash(tracking: Tracking[Any, Any], plans: Sequence[ObjectPlan], size: tuple[int, int]) -> str:
    """Hash what a state depends on, except the video's pixels and the segmenter's weights."""
    content: list[Any] = [tracking.kind, tracking.segmenter.low_res(size), size]
    for plan in plans:
        content += [plan.object_id, plan.start, plan.end]
        for frame, prompt in plan.prompts.items():
            box = None if prompt.box is None else prompt.box.tolist()
            content += [frame, prompt.role, prompt.points.tolist(), prompt.labels.tolist(), box]
            if prompt.mask is not None:
                content.append(encode_rle(prompt.mask))
    return hashlib.sha256(repr(content).encode()).hexdigest()
