"""Tracking with a network that has a memory of its own: SAM 2.1, EdgeTAM, SAM 3's tracker.

The network says of each object whether it is to be seen (SAM 2's object score) and how good its
mask is (the IoU that it predicts). States follow from these two:

- the object score is not above `SEEN`, or the mask is empty: lost, with an empty mask;
- the quality is below `masking.tracking.trust.TRACKED`, which holds for all segmenters, or the
  object was lost on the frame before: uncertain;
- it is to be seen for the second frame in a row after it was lost: recovered;
- else: tracked.

The score is the predicted IoU, and the quality is that times the probability of being seen. Neither
has been held against masks that are right: the published weights have not been run here. The
network remembers all frames, whatever their state: it was trained so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masking.images.arrays import Bools, Pixels
from masking.manifest.prompt import FramePrompt
from masking.sam2 import step
from masking.sam2.memory import VideoMemory
from masking.sam2.network import Decoded, VideoNetwork
from masking.sam2.step import ObjectPrompt
from masking.segmenter.matching import SURE
from masking.segmenter.sam import Embeddings, Prepared, Segmenter
from masking.tracking import snapshot
from masking.tracking.query import Answer
from masking.tracking.state import NOTHING, State, TrackedMasks
from masking.tracking.trust import TRACKED
from masking.tracking.video_tracker import VideoScene, VideoTracker

SEEN = 0.0
"""Object score, a logit, above which an object is to be seen: SAM 2's own limit."""


@dataclass(frozen=True)
class _Found:
    """The mask of an object on a frame, on the host."""

    logits: Tensor
    """(h, w) float32."""
    score: float
    """IoU that the network predicts."""
    visible: float
    """Logit of whether the object is to be seen."""

    @property
    def is_seen(self) -> bool:
        """Whether there is a mask."""
        return self.visible > SEEN and bool((self.logits > 0).any())

    @property
    def quality(self) -> float:
        """The predicted IoU times the probability that the object is to be seen."""
        return self.score / (1 + float(np.exp(-self.visible)))


class VideoTracking:
    """Tracks objects by a network with a memory; implements
    `masking.tracking.interface.Tracking`."""

    def __init__(self, segmenter: Segmenter, network: VideoNetwork) -> None:
        """Take a segmenter, and its network."""
        self.segmenter, self.network = segmenter, network

    @property
    def kind(self) -> str:
        """Name of the kind of network."""
        return self.network.kind

    def prepare(self, images: Mapping[int, Pixels]) -> tuple[tuple[int, ...], Prepared]:
        """Prepare frames (H, W, 3) uint8 RGB for `scenes`."""
        return (*images,), self.segmenter.prepare([*images.values()])

    def scenes(self, prepared: tuple[tuple[int, ...], Prepared]) -> dict[int, VideoScene]:
        """Encode frames; returns their scenes by index."""
        (indices, frames), streams = prepared, self.segmenter.streams
        with streams.encoding():
            embeddings = self.segmenter.encode(frames)
            embeddings = replace(embeddings, encoded=streams.encoded())
        return {index: VideoScene(index, embeddings[i : i + 1]) for i, index in enumerate(indices)}

    def begin(self, objects: int, backward: bool = False) -> VideoTracker:
        """Return the tracker before the first frame of a pass."""
        memory = VideoMemory.nothing(objects, backward)
        return VideoTracker((None,) * objects, (False,) * objects, memory)

    def restart(self, tracker: VideoTracker, backward: bool = False) -> VideoTracker:
        """Return a tracker that remembers the same prompted frames, and nothing else."""
        memory = tracker.memory.of_prompts(backward)
        return replace(self.begin(len(tracker.states), backward), memory=memory)

    def knows_prompts(self, tracker: VideoTracker) -> bool:
        """Return whether a tracker remembers any frame with a prompt."""
        return any(one.prompted for one in tracker.memory.objects)

    def resume(self, tracker: VideoTracker) -> VideoTracker:
        """Return a tracker whose memory is on the device of the segmenter."""
        return replace(tracker, memory=snapshot.moved(tracker.memory, self.segmenter.device))

    @torch.no_grad()
    def advance(
        self,
        tracker: VideoTracker,
        scene: VideoScene,
        prompts: Mapping[int, FramePrompt],
        given: Mapping[int, Answer],
    ) -> tuple[VideoTracker, TrackedMasks]:
        """Track all objects on the next frame, as `masking.tracking.interface.Tracking` says."""
        size = scene.embeddings.frame_size
        said = {row: _said(prompts.get(row), state) for row, state in enumerate(tracker.states)}
        asked = {
            row: self._prompt(prompt, size, said[row])
            for row, prompt in prompts.items()
            if row not in given and _is_asked(prompt, said[row])
        }
        tracked = [row for row in said if said[row] not in (None, "absent") and row not in given]
        frame = scene.embeddings
        with self.segmenter.streams.tracking(frame.encoded, frame.features):
            memory, places, found = step.advance(
                self.network, tracker.memory, frame.features, scene.index, tracked, asked
            )
            masks = [] if found is None else _on_host(found)
        by_row = {row: masks[place] for row, place in places.items()}
        states, returning = dict(said), [False] * len(said)
        for row, one in by_row.items():
            states[row] = "prompted" if row in asked else _state(one, said[row])
            is_back = said[row] == "lost" and states[row] == "uncertain"
            if tracker.returning[row] and states[row] == "tracked":
                states[row] = "recovered"
            returning[row] = is_back
        for row in given:
            states[row] = "prompted"
        after = VideoTracker(tuple(states.values()), tuple(returning), memory)
        return after, self._masks(after.states, by_row, given, size)

    def _masks(
        self,
        states: tuple[State | None, ...],
        found: Mapping[int, _Found],
        given: Mapping[int, Answer],
        size: tuple[int, int],
    ) -> TrackedMasks:
        """Return the masks of a frame: those that were found or given, and empty ones."""
        nothing = Answer(torch.full(self.segmenter.low_res(size), NOTHING), 0.0, 0.0)
        masks = [nothing] * len(states)
        for row, one in found.items():
            if one.is_seen:
                masks[row] = Answer(one.logits, one.score, one.quality)
        for row, answer in given.items():
            masks[row] = answer
        return TrackedMasks(
            states,
            torch.stack([mask.logits for mask in masks]),
            tuple(mask.predicted for mask in masks),
            tuple(mask.agreement for mask in masks),
        )

    @torch.no_grad()
    def answer(
        self,
        embeddings: Embeddings,
        prompt: FramePrompt,
        before: Bools | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Answer | None:
        """Return the mask of one object's prompt on a single frame; nothing is remembered."""
        if not prompt.is_located and before is None:
            return None
        features, asked = embeddings.features, self._prompt(prompt, embeddings.frame_size, None)
        if asked.mask is not None:
            found = self.network.shown(features, asked.mask)
        else:
            start = None if before is None else self._as_logits(before)
            maps = self.network.unremembered(features, 1)
            found = step.ask(self.network, maps, features, asked, start, is_first=True, check=check)
        one = _on_host(found)[0]
        return Answer(one.logits.clamp(min=NOTHING), one.score, one.quality)

    def _prompt(
        self, prompt: FramePrompt, size: tuple[int, int], state: State | None
    ) -> ObjectPrompt:
        """Return a prompt in pixels of the canvas, on the device."""
        device, side, mask = self.segmenter.device, self.network.side, None
        scale = torch.tensor([side / size[1], side / size[0]])
        box = torch.full((4,), float("nan"))
        if prompt.box is not None:
            box = (torch.from_numpy(prompt.box).view(2, 2) * scale).flatten()
        if prompt.mask is not None:
            mask = _on_canvas(prompt.mask, side).to(device)
        return ObjectPrompt(
            (torch.from_numpy(prompt.points) * scale).to(device),
            torch.from_numpy(prompt.labels).to(device),
            box.to(device),
            prompt.role == "correct" and state not in (None, "absent"),
            mask,
        )

    def _as_logits(self, mask: Bools) -> Tensor:
        """Return a mask (H, W) as the logits that the network would have predicted for it."""
        h, w = self.segmenter.low_res((mask.shape[0], mask.shape[1]))
        share = cv2.resize(mask.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(SURE * (2 * share - 1)).to(self.segmenter.device)


def _on_host(found: Decoded) -> list[_Found]:
    """Copy masks to the host: the only time that a frame waits for a GPU."""
    logits = found.logits.cpu()
    scores, visible = torch.stack([found.scores, found.visible]).tolist()
    return [_Found(*one) for one in zip(logits, scores, visible, strict=True)]


def _on_canvas(mask: Bools, side: int) -> Tensor:
    """Return a mask (H, W) on the canvas (side, side), as transformers' processor puts it there;
    of one that is too thin for that, the cells that it covers most."""
    share = torch.from_numpy(mask.astype(np.float32))[None, None]
    size = (side, side)
    share = F.interpolate(share, size, mode="bilinear", align_corners=False, antialias=True)[0, 0]
    return (share >= share.max().clamp(max=0.5)).float()


def _is_asked(prompt: FramePrompt, state: State | None) -> bool:
    """Return whether a prompt says where its object is, or corrects a mask that is tracked."""
    if prompt.role not in ("init", "correct"):
        return False
    return prompt.is_located or state not in (None, "absent")


def _said(prompt: FramePrompt | None, before: State | None) -> State | None:
    """Return the state of an object before it is segmented: what a person says, or as before."""
    if prompt is not None and prompt.role == "end":
        return None
    return "absent" if prompt is not None and prompt.role == "absent" else before


def _state(one: _Found, before: State | None) -> State:
    """Return the state of an object that was tracked."""
    if not one.is_seen:
        return "lost"
    return "uncertain" if before == "lost" or one.quality < TRACKED else "tracked"
