"""Tracking with a segmenter of images: a memory of this project, and its decoder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from masking.images.arrays import Bools, Pixels
from masking.manifest.prompt import FramePrompt
from masking.segmenter.matching import SURE
from masking.segmenter.sam import Embeddings, Prepared, Segmenter
from masking.tracking import snapshot
from masking.tracking.memory import Memory
from masking.tracking.prompting import Prompter
from masking.tracking.query import Answer, Query
from masking.tracking.state import (
    Scene,
    TrackConfig,
    TrackedMasks,
    Tracker,
    begin,
)
from masking.tracking.step import advance


@dataclass(frozen=True)
class PreparedImages:
    """Frames that are encoded together."""

    indices: tuple[int, ...]
    """Index of each frame."""
    prepared: Prepared
    """The same frames, as `Segmenter.encode` takes them."""


class ImageTracking:
    """Tracks objects by a segmenter of images; implements `masking.tracking.interface.Tracking`."""

    def __init__(self, segmenter: Segmenter, config: TrackConfig) -> None:
        """Take the segmenter, and how objects are tracked."""
        self.segmenter, self.config = segmenter, config

    @property
    def kind(self) -> str:
        """Name of the kind of network."""
        return type(self.segmenter.network).__name__

    def prepare(self, images: Mapping[int, Pixels]) -> PreparedImages:
        """Prepare frames (H, W, 3) uint8 RGB for `scenes`."""
        return PreparedImages((*images,), self.segmenter.prepare([*images.values()]))

    def scenes(self, prepared: PreparedImages) -> dict[int, Scene]:
        """Encode frames; returns their scenes by index."""
        streams = self.segmenter.streams
        with streams.encoding():
            embeddings = self.segmenter.encode(prepared.prepared)
            keys = [one.clone() for one in self.segmenter.keys(embeddings)]
            frames = [embeddings[i : i + 1] for i in range(len(embeddings))]
            encoded = streams.encoded()
        return {
            index: Scene(replace(frame, encoded=encoded), key)
            for index, frame, key in zip(prepared.indices, frames, keys, strict=True)
        }

    def begin(self, objects: int, backward: bool = False) -> Tracker:
        """Return the tracker before the first frame of a pass; both directions are the same."""
        return begin(objects)

    def restart(self, tracker: Tracker, backward: bool = False) -> Tracker:
        """Return a tracker that remembers the same prompted frames, and nothing else."""
        memory = tracker.memory and Memory(tracker.memory.grid, tracker.memory.prompted)
        return replace(begin(len(tracker.tracks)), memory=memory)

    def knows_prompts(self, tracker: Tracker) -> bool:
        """Return whether a tracker remembers any frame with a prompt."""
        return bool(tracker.memory and tracker.memory.prompted)

    def resume(self, tracker: Tracker) -> Tracker:
        """Return a tracker whose memory is on the device of the segmenter."""
        return replace(tracker, memory=snapshot.moved(tracker.memory, self.segmenter.device))

    def advance(
        self,
        tracker: Tracker,
        scene: Scene,
        prompts: Mapping[int, FramePrompt],
        given: Mapping[int, Answer],
    ) -> tuple[Tracker, TrackedMasks]:
        """Track all objects on the next frame, as `masking.tracking.step.advance`; a prompt that is
        a mask is its own answer."""
        shown = {row: prompt for row, prompt in prompts.items() if prompt.mask is not None}
        frame, streams = scene.embeddings, self.segmenter.streams
        with streams.tracking(frame.encoded, (*frame.features, scene.keys)):
            answers = {
                row: self._shown(frame, prompt) for row, prompt in shown.items() if row not in given
            }
            known = {**given, **answers}
            return advance(self.segmenter, self.config, tracker, scene, prompts, known)

    def answer(
        self,
        embeddings: Embeddings,
        prompt: FramePrompt,
        before: Bools | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Answer | None:
        """Return the mask of one object's prompt on a single frame, as a video's prompted frames
        have it."""
        if prompt.mask is not None:
            return self._shown(embeddings, prompt)
        prompter = Prompter(self.segmenter, embeddings, check)
        mask = None if before is None else torch.from_numpy(self._as_logits(before))
        query = prompter.prompted(0, prompt, mask, prompt.points[:0])
        return None if query is None else prompter.answer_in_rounds([query])[0]

    def _shown(self, embeddings: Embeddings, prompt: FramePrompt) -> Answer:
        """Return the mask of a prompt as an answer, with the IoU that the segmenter predicts for
        the object: later masks are compared with it."""
        assert prompt.mask is not None
        prompter = Prompter(self.segmenter, embeddings)
        logits = torch.from_numpy(self._as_logits(prompt.mask))
        middle = prompter.middle(torch.sigmoid(logits))
        query = Query(0, middle, np.ones(len(middle), np.int64), mask=logits)
        return Answer(logits, prompter.answer({0: query})[0].predicted)

    def _as_logits(self, mask: Bools) -> NDArray[np.float32]:
        """Return a mask (H, W) as the logits that a network would have predicted for it."""
        size = (mask.shape[0], mask.shape[1])
        h, w = self.segmenter.low_res(size)
        scale = self.segmenter.mask_scale(size)
        inner = (max(1, min(w, round(size[1] * scale))), max(1, min(h, round(size[0] * scale))))
        share = cv2.resize(mask.astype(np.float32), inner, interpolation=cv2.INTER_AREA)
        logits = np.full((h, w), -SURE, np.float32)
        logits[: inner[1], : inner[0]] = SURE * (2 * share - 1)
        return logits
