"""Where objects are expected on a frame, and the queries for the segmenter that follow from it.

Points are carried by optical flow (`masking.tracking.motion`), soft masks come from remembered
frames (`masking.tracking.memory`). Points and boxes are in pixels of the frame, (x, y), origin top
left. Shapes: K objects, P points, h x w pixels of low-resolution logits.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masking.images.arrays import Bools, Points
from masking.manifest.prompt import FramePrompt
from masking.segmenter.matching import recalled, sure_logits
from masking.tracking import motion
from masking.tracking.memory import Memory
from masking.tracking.prompting import Prompter
from masking.tracking.query import Query, clicks_on_others, depths
from masking.tracking.state import NOTHING, VISIBLE, Scene, Track, TrackConfig, Tracker

_DOUBTFUL = 0.3  # expected probability below which a point is taken to have left its object
_INNER = 2.0  # cells from the edge of the expected mask, from which a point lies well inside


def carry_tracks(tracker: Tracker, scene: Scene, scale: float) -> list[Track]:
    """Return the tracks with their points and masks moved to a frame by optical flow.

    Args:
        tracker: the state after the frame before.
        scene: the frame.
        scale: pixels of the logits per pixel of the frame.
    """
    tracks, before = list(tracker.tracks), tracker.grey
    if before is None or before.shape != scene.grey.shape:
        return tracks
    visible = [i for i, t in enumerate(tracks) if t.state in VISIBLE]
    if not visible:
        return tracks
    points = [np.concatenate([tracks[i].points, tracks[i].negatives]) for i in visible]
    there, believed = motion.follow(before, scene.grey, np.concatenate(points) * scene.grey_scale)
    there = there / scene.grey_scale
    ends = np.cumsum([len(some) for some in points])[:-1]
    for i, old, new, sure in zip(
        visible, points, np.split(there, ends), np.split(believed, ends), strict=True
    ):
        tracks[i] = _move(tracks[i], old, new, sure, scale)
    return tracks


def _move(track: Track, old: Points, new: Points, sure: Bools, scale: float) -> Track:
    """Move a track: its points that agree on a motion, its other clicks, and its last mask."""
    count = len(track.points)
    matrix, agree = motion.common_motion(old[:count][sure[:count]], new[:count][sure[:count]])
    kept = sure.copy()
    kept[:count][sure[:count]] = agree
    logits = track.logits
    if matrix is not None:
        logits = torch.from_numpy(motion.warped(logits.numpy(), matrix, scale, NOTHING))
    points, negatives = new[:count][kept[:count]], new[count:][kept[count:]]
    return replace(track, points=points, negatives=negatives, logits=logits)


class Expectation:
    """The expected tracks and masks on a frame."""

    def __init__(
        self,
        prompter: Prompter,
        config: TrackConfig,
        tracker: Tracker,
        scene: Scene,
        prompts: Mapping[int, FramePrompt],
    ) -> None:
        """Carry the tracks to a frame and read the memory; arguments as for `step.advance`."""
        self.prompter, self.config, self.prompts = prompter, config, prompts
        self.tracks = carry_tracks(tracker, scene, prompter.scale)
        memory = tracker.memory
        known = memory is not None and bool(memory.prompted)
        lost = any(track.state == "lost" for track in self.tracks)
        self.near: Tensor | None = None
        """(K, h, w) probabilities near the places of the recent frames; None: no memory."""
        self.far: Tensor | None = None
        """(K, h, w) probabilities anywhere, for lost objects; None: no memory, or none is lost."""
        self._near_maps: Tensor | None = None
        self._far_maps: Tensor | None = None
        if memory is not None and known and config.recent >= 0:
            self.near, self._near_maps = self._read(memory, scene, anywhere=False)
        if memory is not None and known and lost and config.redetect:
            self.far, self._far_maps = self._read(memory, scene, anywhere=True)

    def _read(self, memory: Memory, scene: Scene, anywhere: bool) -> tuple[Tensor, Tensor | None]:
        """Return probabilities (K, h, w) from memory, at the size of the logits and on the host;
        and the maps (K, MAPS, ...) that a segmenter with a memory of its own takes."""
        recall = memory.read(scene.keys.flatten(0, 1), anywhere)
        shares = recall.shares.unflatten(1, scene.grid)
        size = self.prompter.low_res
        near = F.interpolate(shares.cpu()[:, None], size, mode="bilinear", align_corners=False)
        if not self.prompter.segmenter.remembers:
            return near[:, 0], None
        rest = shares.sum(dim=0) - shares if self.config.exclusive else torch.zeros_like(shares)
        prompted = recall.prompted_shares.unflatten(1, scene.grid)
        weights = (w.unflatten(1, scene.grid) for w in (recall.weight, recall.prompted_weight))
        weight, prompted_weight = weights
        maps = recalled(shares, weight, prompted, prompted_weight, rest.clamp(0, 1))
        return near[:, 0], maps

    def queries(self) -> list[Query]:
        """Return a query for each object that a mask is wanted of on this frame."""
        found = (self._query(row, track) for row, track in enumerate(self.tracks))
        return [query for query in found if query is not None]

    def from_the_middle(self, query: Query) -> Query | None:
        """Replace the carried points of a query by the middle of its expected mask.

        None: the query is not one for a tracked object, or nothing is expected.
        """
        if query.prompt is not None or query.expected is None:
            return None
        if self.tracks[query.row].state == "lost":
            return None
        middle = self.prompter.middle(query.expected)
        if not len(middle):
            return None
        negative = query.labels == 0
        points = np.concatenate([middle, query.points[negative]])
        labels = np.concatenate([np.ones(1, np.int64), query.labels[negative]])
        return replace(query, points=points, labels=labels)

    def _query(self, row: int, track: Track) -> Query | None:
        prompt = self.prompts.get(row)
        if prompt is not None and prompt.role not in ("init", "correct"):
            return None
        if prompt is not None:
            query = self._prompted(row, track, prompt)
            if query is not None:
                return query
        if track.state in (None, "absent"):
            return None
        return self._sought(row) if track.state == "lost" else self._followed(row, track)

    def _expected(self, row: int, track: Track) -> Tensor:
        """Return the probabilities (h, w) of a visible object: from memory, or its moved mask."""
        return self.near[row] if self.near is not None else torch.sigmoid(track.logits)

    def _followed(self, row: int, track: Track) -> Query | None:
        """Query a visible object by its carried points and its expected mask."""
        expected, points = self._expected(row, track), track.points
        if self.near is not None:
            points = points[self.prompter.sample(expected, points) > _DOUBTFUL]
        chosen = motion.spread(self._inner_first(points, expected), self.config.points)
        if not len(chosen):
            chosen = self.prompter.middle(expected)
        if not len(chosen):
            return None
        wrong = self._negatives(track, expected)
        labels = np.repeat(np.array([1, 0], np.int64), [len(chosen), len(wrong)])
        mask = sure_logits(expected) if self.config.mask_prompt else None
        return Query(
            row, np.concatenate([chosen, wrong]), labels, mask=mask, expected=expected,
            carried=points, memory=None if self._near_maps is None else self._near_maps[row],
        )  # fmt: skip

    def _inner_first(self, points: Points, expected: Tensor) -> Points:
        """Move the first point that lies well inside the expected mask to the front, or else the
        deepest one: a click at the edge may have left its object."""
        if len(points) < 2:
            return points
        depth = self.prompter.sample(depths(expected), points)
        first = int((depth >= min(_INNER, depth.max())).argmax())
        return np.concatenate([points[first : first + 1], np.delete(points, first, axis=0)])

    def _negatives(self, track: Track, expected: Tensor) -> Points:
        """Return an object's negative clicks, and points of others where it is not expected."""
        negatives = [track.negatives]
        if self.config.exclusive:
            for other in self.tracks:
                if other is not track and len(other.points):
                    theirs = motion.spread(other.points, 1)
                    negatives.append(theirs[self.prompter.sample(expected, theirs) < _DOUBTFUL])
        return np.concatenate(negatives)

    def _prompted(self, row: int, track: Track, prompt: FramePrompt) -> Query | None:
        """Query an object by a person's clicks; a correction starts from the expected mask.

        None: the prompt does not say where the object is, and nothing else is known of it.
        """
        mask, tracked = None, None
        if prompt.role != "init" and track.state not in (None, "lost", "absent"):
            mask = sure_logits(self._expected(row, track))
            tracked = self._followed(row, track)
        others = clicks_on_others(self.prompts, row)[: None if self.config.exclusive else 0]
        return self.prompter.prompted(row, prompt, mask, others, tracked)

    def _sought(self, row: int) -> Query | None:
        """Query a lost object by the place where memory expects it."""
        if self.far is None:
            return None
        expected = self.far[row]
        place = self.prompter.middle(expected)
        if not len(place):
            return None
        return Query(
            row, place, np.ones(1, np.int64), mask=sure_logits(expected), expected=expected,
            memory=None if self._far_maps is None else self._far_maps[row],
        )  # fmt: skip
