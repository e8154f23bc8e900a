"""Where objects are expected on a frame, and the queries for the segmenter that follow from it.

Soft masks come from remembered frames (`masking.tracking.memory`). The segmenter is prompted with
them, and with the middle of what is expected; one without a part that follows objects also with the
middles of other objects as negative points. Points and boxes are in pixels of the frame, (x, y),
origin top left. Shapes: K objects, P points, h x w pixels of low-resolution logits.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masking.images.arrays import Points
from masking.manifest.prompt import FramePrompt
from masking.segmenter.matching import recalled, sure_logits
from masking.segmenter.prompts import on_host
from masking.tracking.memory import Memory
from masking.tracking.prompting import Prompter
from masking.tracking.query import Query, clicks_on_others
from masking.tracking.state import VISIBLE, Scene, TrackConfig, Tracker

_LEAST = 0.1  # highest expected probability below which an object is not expected anywhere
_SOUGHT = 0.3  # the same for a lost object
_DOUBTFUL = 0.3  # expected probability below which a point is taken to lie beside an object


class Expectation:
    """What is known of the objects on a frame before the segmenter is prompted."""

    def __init__(
        self,
        prompter: Prompter,
        config: TrackConfig,
        tracker: Tracker,
        scene: Scene,
        prompts: Mapping[int, FramePrompt],
    ) -> None:
        """Read the memory; arguments as for `step.advance`."""
        self.prompter, self.config, self.prompts = prompter, config, prompts
        self.tracks = tracker.tracks
        memory = tracker.memory
        self.near: Tensor | None = None
        """(K, h, w) probabilities near the places of the recent frames; None: no memory."""
        self.far: Tensor | None = None
        """(K, h, w) probabilities anywhere, for lost objects; None: no memory, or none is lost."""
        self._near_maps: tuple[Tensor, Tensor] | None = None
        self._far_maps: tuple[Tensor, Tensor] | None = None
        if memory is not None and memory.prompted:
            sought = config.redetect and any(track.state == "lost" for track in self.tracks)
            maps = [
                self._read(memory, scene, far) for far in ([False, True] if sought else [False])
            ]
            here = on_host(maps)  # one copy: each of them is waited for
            self.near, self._near_maps = self._enlarged(here[0]), (maps[0], here[0])
            if sought:
                self.far, self._far_maps = self._enlarged(here[1]), (maps[1], here[1])
        self._middles: dict[int, Points] = {}

    def _read(self, memory: Memory, scene: Scene, anywhere: bool) -> Tensor:
        """Return all maps (K, MAPS, ...) from memory, on the device."""
        recall = memory.read(scene.keys.flatten(0, 1), anywhere)
        shares = recall.shares.unflatten(1, scene.grid)
        rest = shares.sum(dim=0) - shares if self.config.exclusive else torch.zeros_like(shares)
        prompted = recall.prompted_shares.unflatten(1, scene.grid)
        weights = (w.unflatten(1, scene.grid) for w in (recall.weight, recall.prompted_weight))
        weight, prompted_weight = weights
        return recalled(shares, weight, prompted, prompted_weight, rest.clamp(0, 1))

    def _enlarged(self, maps: Tensor) -> Tensor:
        """Return probabilities (K, h, w) at the size of the logits, from maps on the host."""
        size = self.prompter.low_res
        return F.interpolate(maps[:, :1], size, mode="bilinear", align_corners=False)[:, 0]

    def queries(self) -> list[Query]:
        """Return a query for each object that a mask is wanted of on this frame."""
        found = (self._query(row) for row in range(len(self.tracks)))
        return [query for query in found if query is not None]

    def _query(self, row: int) -> Query | None:
        track, prompt = self.tracks[row], self.prompts.get(row)
        if prompt is not None and prompt.role not in ("init", "correct"):
            return None
        if prompt is not None:
            query = self._prompted(row, prompt)
            if query is not None:
                return query
        if track.state in VISIBLE:
            return self._followed(row)
        return self._sought(row) if track.state == "lost" else None

    def _followed(self, row: int) -> Query | None:
        """Query a visible object by its expected mask; None: it is expected nowhere."""
        if self.near is None or self._near_maps is None:
            return None
        expected, (maps, here) = self.near[row], self._near_maps
        middle, mask = self._middle(row), sure_logits(expected)
        if not len(middle):
            return None
        others = middle[:0] if self.prompter.segmenter.remembers else self._others(row, expected)
        points = np.concatenate([middle, others])
        labels = np.repeat(np.array([1, 0], np.int64), [len(middle), len(others)])
        return Query(
            row, points, labels, mask=mask, expected=expected, memory=maps[row], known=here[row]
        )

    def _middle(self, row: int) -> Points:
        """Return the deepest point (1, 2) of an object's expected mask; (0, 2) if that is empty."""
        if row not in self._middles:
            assert self.near is not None
            self._middles[row] = self.prompter.middle(self.near[row], _LEAST)
        return self._middles[row]

    def _others(self, row: int, expected: Tensor) -> Points:
        """Return the middles (P, 2) of other visible objects where this one is not expected."""
        found = [np.zeros((0, 2), np.float32)]
        for other, track in enumerate(self.tracks if self.config.exclusive else ()):
            if other != row and track.state in VISIBLE:
                theirs = self._middle(other)
                found.append(theirs[self.prompter.sample(expected, theirs) < _DOUBTFUL])
        return np.concatenate(found)

    def _prompted(self, row: int, prompt: FramePrompt) -> Query | None:
        """Query an object by a person's clicks; a correction starts from the expected mask.

        None: the prompt does not say where the object is, and nothing else is known of it.
        """
        mask, tracked = None, None
        if prompt.role != "init" and self.tracks[row].state in VISIBLE and self.near is not None:
            mask = sure_logits(self.near[row])
            tracked = self._followed(row)
        others = clicks_on_others(self.prompts, row)[: None if self.config.exclusive else 0]
        query = self.prompter.prompted(row, prompt, mask, others, tracked)
        track = self.tracks[row]
        doubted = track.state == "uncertain"
        return None if query is None else replace(query, doubted=doubted, area=track.area)

    def is_rather(self, row: int, other: int, region: Tensor) -> bool:
        """Return whether a region (h, w) resembles an object more than another one does, on the
        frames with prompts."""
        if self._near_maps is None:
            return False
        maps = self._near_maps[1]
        size = (maps.shape[-2], maps.shape[-1])
        cells = F.adaptive_avg_pool2d(region[None].float(), size)[0]
        mine, theirs = (maps[[row, other], 1] * cells).sum(dim=(1, 2))
        return bool(mine > theirs)

    def _sought(self, row: int) -> Query | None:
        """Query a lost object by the place where memory expects it."""
        if self.far is None or self._far_maps is None:
            return None
        expected = self.far[row]
        place = self.prompter.middle(expected, _SOUGHT)
        if not len(place):
            return None
        return Query(
            row, place, np.ones(1, np.int64), mask=sure_logits(expected), expected=expected,
            memory=self._far_maps[0][row], known=self._far_maps[1][row],
        )  # fmt: skip
