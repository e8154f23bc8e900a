"""Objects through time, one frame a step: points, masks and states, as one value in and one out.

A step carries each object's points by optical flow (`masking.tracking.motion`), takes a soft mask
from what earlier frames looked like (`masking.tracking.recall`), asks the segmenter for all objects
at once, ranks its outputs, and learns from a mask only if it passes a gate. What cannot be trusted
is said: an object that is lost has an empty mask and is looked for until it is found on two frames
running.

Points and boxes are in pixels of the frame, (x, y), origin top left. Shapes: K objects, H x W
pixels of the frame, h x w of low-resolution logits, M cells of a key map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masking.images.arrays import Bools, Points
from masking.images.geometry import iou
from masking.manifest.asked import Asked
from masking.segmenter.sam import Segmenter
from masking.tracking import motion, recall
from masking.tracking.asking import Answer, Asking, Query
from masking.tracking.recall import Memory, Remembered
from masking.tracking.state import (
    NOTHING,
    VISIBLE,
    Found,
    Scene,
    State,
    Track,
    TrackConfig,
    Tracker,
)

SURE = 6.0
"""Logit of a cell that certainly is, or is not, of an object."""
_FORGETS = 0.9  # what stays of the usual figures of an object from one trusted mask to the next
_OTHER = 0.5  # IoU with what was expected below which a prompted mask is of something else
_DOUBTFUL = 0.3  # share expected below which a point is taken to have left its object
_INNER = 2.0  # cells of the logits from the edge, from which a point lies well inside
_SAME_PLACE = 0.3  # IoU of two sightings of a lost object from which they are of the same thing


class Step:
    """One step through time; `advance` makes and runs one."""

    def __init__(
        self,
        segmenter: Segmenter,
        config: TrackConfig,
        tracker: Tracker,
        here: Scene,
        asked: Mapping[int, Asked],
    ) -> None:
        """Take what is known."""
        self.segmenter, self.config, self.tracker, self.here = segmenter, config, tracker, here
        self.asked = asked
        self.asking = Asking(segmenter, here.embeddings)
        self.size = here.embeddings.frame_size
        ratio = np.array(here.grey.shape[::-1]) / self.size[::-1]
        self.shrunk = ratio.astype(np.float32)  # of x and of y: shrunk sizes are rounded
        self.low = segmenter.low_res(self.size)
        grid, flat = (here.keys.shape[0], here.keys.shape[1]), here.keys.flatten(0, 1)
        self.grid, self.keys = grid, flat
        self.memory = tracker.memory or Memory(grid)

    def run(self) -> tuple[Tracker, Found]:
        """Motion, expectation, queries, answers, and what is learnt."""
        tracks = self.carried()
        known = bool(self.memory.prompted)
        near = self._shares(False) if known and self.config.recent >= 0 else None
        lost = any(track.state == "lost" for track in tracks)
        far = self._shares(True) if known and lost and self.config.redetect else None
        queries = []
        for row, track in enumerate(tracks):
            query = self._query(row, track, tracks, near, far)
            if query is not None:
                queries.append(query)
        answers = self.asking.ask(queries)
        self._ask_again(tracks, queries, answers)
        told = {q.row: (q, answer) for q, answer in zip(queries, answers, strict=True)}
        results = [
            self._learn(row, track, *told.get(row, (None, None)))
            for row, track in enumerate(tracks)
        ]
        return self._remember(results, near)

    # What moves

    def carried(self) -> list[Track]:
        """Tracks with their points and masks moved to this frame."""
        tracks, before = list(self.tracker.tracks), self.tracker.grey
        if before is None or before.shape != self.here.grey.shape:
            return tracks
        live = [i for i, t in enumerate(tracks) if t.state in VISIBLE]
        if not live:
            return tracks
        every = [np.concatenate([tracks[i].points, tracks[i].negatives]) for i in live]
        start = np.concatenate(every)
        there, believed = motion.follow(before, self.here.grey, start * self.shrunk)
        there = there / self.shrunk
        ends = np.cumsum([len(points) for points in every])[:-1]
        for i, old, new, sure in zip(
            live, every, np.split(there, ends), np.split(believed, ends), strict=True
        ):
            tracks[i] = self._moved(tracks[i], old, new, sure)
        return tracks

    def _moved(self, track: Track, old: Points, new: Points, sure: Bools) -> Track:
        count = len(track.points)
        matrix, agree = motion.common_motion(old[:count][sure[:count]], new[:count][sure[:count]])
        kept = sure.copy()
        kept[:count][sure[:count]] = agree
        logits = track.logits
        if matrix is not None:
            moved = motion.warped(logits.numpy(), matrix, self.asking.scale, NOTHING)
            logits = torch.from_numpy(moved)
        return replace(
            track,
            points=new[:count][kept[:count]],
            negatives=new[count:][kept[count:]],
            logits=logits,
        )

    # What is expected

    def _shares(self, anywhere: bool) -> Tensor:
        """(K, h, w) probabilities from memory, at the size of the logits, on the host."""
        shares = self.memory.read(self.keys, anywhere).cpu()
        maps = shares.view(len(shares), 1, *self.grid)
        return F.interpolate(maps, self.low, mode="bilinear", align_corners=False)[:, 0]

    def _query(
        self,
        row: int,
        track: Track,
        tracks: Sequence[Track],
        near: Tensor | None,
        far: Tensor | None,
    ) -> Query | None:
        asked = self.asked.get(row)
        if asked is not None and asked.role in ("init", "correct"):
            query = self._prompted(row, track, asked, near)
            if query is not None:
                return query
        elif asked is not None:
            return None
        if track.state in (None, "absent"):
            return None
        if track.state == "lost":
            return self._sought(row, far)
        expected = near[row] if near is not None else torch.sigmoid(track.logits)
        points = track.points
        if near is not None:
            points = points[self.asking.at(expected, points) > _DOUBTFUL]
        chosen = motion.spread(self._inner_first(points, expected), self.config.points)
        if not len(chosen):
            chosen = self.asking.middle(expected)
        if not len(chosen):
            return None
        query = Query(
            row, chosen, np.ones(len(chosen), np.int64), expected=expected, carried=points
        )
        self._add_negatives(query, track, tracks)
        if self.config.mask_prompt:
            query.mask = SURE * (2 * expected - 1)
        return query

    def _inner_first(self, points: Points, expected: Tensor) -> Points:
        """Points with the first one that lies well inside what is expected in front: a click at
        the edge may have left its object. If none does, the deepest."""
        if len(points) < 2:
            return points
        inside = np.pad((expected > 0.5).numpy().astype(np.uint8), 1)
        depths = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        depth = self.asking.at(torch.from_numpy(depths), points)
        first = int((depth >= min(_INNER, depth.max())).argmax())
        return np.concatenate([points[first : first + 1], np.delete(points, first, axis=0)])

    def _add_negatives(self, query: Query, track: Track, tracks: Sequence[Track]) -> None:
        """Negative clicks, and other objects' points where this one is not expected."""
        negatives = [track.negatives]
        if self.config.exclusive and query.expected is not None:
            for other in tracks:
                if other is not track and len(other.points):
                    theirs = motion.spread(other.points, 1)
                    negatives.append(theirs[self.asking.at(query.expected, theirs) < _DOUBTFUL])
        wrong = np.concatenate(negatives)
        query.points = np.concatenate([query.points, wrong])
        query.labels = np.concatenate([query.labels, np.zeros(len(wrong), np.int64)])

    def _prompted(self, row: int, track: Track, asked: Asked, near: Tensor | None) -> Query | None:
        """A person's clicks; a correction goes on from the mask that is expected.

        None: it says nothing of where an object is of which nothing is known.
        """
        mask = None
        if asked.role != "init" and track.state not in (None, "lost", "absent"):
            expected = near[row] if near is not None else torch.sigmoid(track.logits)
            mask = SURE * (2 * expected - 1)
        points, labels = asked.points, asked.labels
        if not asked.placed:
            if mask is None:
                return None
            more = self.asking.middle(torch.sigmoid(mask))
            points = np.concatenate([points, more])
            labels = np.concatenate([labels, np.ones(len(more), np.int64)])
        if self.config.exclusive:
            theirs = [w.points[w.labels == 1] for other, w in self.asked.items() if other != row]
            points = np.concatenate([points, *theirs])
            labels = np.pad(labels, (0, len(points) - len(labels)))  # 0: not of this one
        return Query(row, points, labels, asked.box, mask, asked=asked)

    def _sought(self, row: int, far: Tensor | None) -> Query | None:
        """Where a lost object may be."""
        if far is None:
            return None
        place = self.asking.middle(far[row])
        if not len(place):
            return None
        return Query(
            row, place, np.ones(1, np.int64), mask=SURE * (2 * far[row] - 1), expected=far[row]
        )

    def _ask_again(
        self, tracks: Sequence[Track], queries: list[Query], answers: list[Answer]
    ) -> None:
        """Where a carried point led to nothing good, ask with the middle of what is expected."""
        changed: dict[int, Query] = {}
        for i, (query, answer) in enumerate(zip(queries, answers, strict=True)):
            track = tracks[query.row]
            followed = query.asked is None and track.state != "lost"
            if not followed or query.expected is None or self._trusted(track, answer):
                continue
            middle = self.asking.middle(query.expected)
            if len(middle):
                negative = query.labels == 0
                points = np.concatenate([middle, query.points[negative]])
                labels = np.concatenate([np.ones(1, np.int64), query.labels[negative]])
                changed[i] = replace(query, points=points, labels=labels)
        for i, answer in self.asking.answers(changed).items():
            if self._trusted(tracks[queries[i].row], answer):
                queries[i], answers[i] = changed[i], answer

    # What is learnt

    def _learn(
        self,
        row: int,
        track: Track,
        query: Query | None,
        answer: Answer | None,
    ) -> tuple[Track, Tensor, float, float]:
        """The new track of an object, its logits, score and quality."""
        nothing = torch.full(self.low, NOTHING)
        asked = self.asked.get(row)
        if asked is not None and asked.role == "end":
            return Track(), nothing, 0.0, 0.0
        if asked is not None and asked.role == "absent":
            return replace(track, state="absent", points=track.points[:0]), nothing, 0.0, 0.0
        if track.state in (None, "absent") and query is None:
            return track, nothing, 0.0, 0.0
        if query is None or answer is None:
            return self._missed(track, None), nothing, 0.0, 0.0
        if query.asked is not None:
            return self._started(track, query.asked, answer)
        if track.state == "lost":
            return self._seen(track, query, answer, nothing)
        if answer.area and (self._trusted(track, answer) or not self.config.gate):
            return self._followed(track, "tracked", answer)
        missed = self._missed(track, answer)
        if missed.state == "lost":
            return missed, nothing, 0.0, 0.0
        return missed, answer.logits, answer.predicted, answer.agreement

    def _trusted(self, track: Track, answer: Answer) -> bool:
        config = self.config
        grown = max(answer.area, 1.0) / max(track.area, 1.0)
        return (
            answer.predicted >= config.predicted * track.usual[0]
            and answer.agreement >= config.agreement * track.usual[1]
            and answer.inside >= config.inside
            and 1 / config.growth <= grown <= config.growth
        )

    def _started(
        self, track: Track, asked: Asked, answer: Answer
    ) -> tuple[Track, Tensor, float, float]:
        positive = asked.labels == 1
        fresh = Track(
            "prompted",
            np.concatenate([asked.points[positive], self._corners(answer.logits)]),
            asked.points[~positive],
            answer.logits,
            answer.area,
            usual=(answer.predicted, *track.usual[1:]),
        )
        return fresh, answer.logits, answer.predicted, 1.0

    def _followed(
        self, track: Track, state: State, answer: Answer
    ) -> tuple[Track, Tensor, float, float]:
        points = track.points
        few = len(points) < self.config.corners // 3
        if self.config.corners and (few or self.tracker.age % self.config.every == 0):
            inside = self.asking.at(answer.logits, points) > 0
            points = np.concatenate([points[inside][:1], self._corners(answer.logits)])
        track = replace(
            track,
            state=state,
            points=points,
            logits=answer.logits,
            area=answer.area,
            usual=self._usual(track, answer),
            misses=0,
            sighting=None,
        )
        return track, answer.logits, answer.predicted, answer.agreement

    def _usual(self, track: Track, answer: Answer) -> tuple[float, float, float]:
        now = (answer.predicted, answer.agreement, answer.likeness)
        first, second, third = (
            _FORGETS * usual + (1 - _FORGETS) * new
            for usual, new in zip(track.usual, now, strict=True)
        )
        return first, second, third

    def _missed(self, track: Track, answer: Answer | None) -> Track:
        misses = track.misses + 1
        if track.state == "lost":
            return replace(track, misses=misses, sighting=None)
        if answer is None or misses > self.config.patience:
            return replace(
                track, state="lost", points=track.points[:0], misses=misses, sighting=None
            )
        return replace(track, state="uncertain", misses=misses)

    def _seen(
        self, track: Track, query: Query, answer: Answer, nothing: Tensor
    ) -> tuple[Track, Tensor, float, float]:
        """A lost object is found if it is seen on two frames running, in much the same place."""
        grown = max(answer.area, 1.0) / max(track.area, 1.0)
        mask = answer.logits > 0
        if (
            answer.predicted < self.config.predicted * track.usual[0]
            or answer.likeness < self.config.similarity * track.usual[2]
            or not 1 / self.config.growth <= grown <= self.config.growth
        ):
            return self._missed(track, None), nothing, 0.0, 0.0
        if track.sighting is None or float(iou(mask, track.sighting > 0)) < _SAME_PLACE:
            return replace(self._missed(track, None), sighting=answer.logits), nothing, 0.0, 0.0
        track = replace(track, points=query.points)
        return self._followed(track, "recovered", answer)

    def _corners(self, logits: Tensor) -> Points:
        if not self.config.corners:
            return np.zeros((0, 2), np.float32)
        grey = self.here.grey
        full = self.segmenter.upsample(logits, (grey.shape[0], grey.shape[1])) > 0
        found = motion.corners(grey, full.cpu().numpy(), self.config.corners)
        return found / self.shrunk

    def _other(self, logits: Tensor, near: Tensor | None, row: int) -> bool:
        """Whether a prompted mask is of something else than what was followed."""
        return near is not None and float(iou(logits > 0, near[row] > 0.5)) < _OTHER

    def _remember(
        self, results: list[tuple[Track, Tensor, float, float]], near: Tensor | None
    ) -> tuple[Tracker, Found]:
        tracks = tuple(result[0] for result in results)
        logits = torch.stack([result[1] for result in results])
        memory = self.memory
        if self.config.recent >= 0:
            shares = recall.shares(logits, self.grid)
            if near is not None:
                # Of what is not trusted, what was expected is remembered.
                doubtful = torch.tensor([t.state == "uncertain" for t in tracks])
                expected = F.adaptive_avg_pool2d(near[:, None], self.grid)[:, 0].flatten(1)
                shares = torch.where(doubtful[:, None], expected, shares)
            known = torch.tensor([float(t.state not in (None, "lost")) for t in tracks])
            told = tuple(t.state == "prompted" for t in tracks)
            trusted = tuple(t.state in ("prompted", "tracked", "recovered") for t in tracks)
            shares, known = shares.to(self.keys.device), known.to(self.keys.device)
            frame = Remembered(self.keys, shares, known, trusted)
            if any(told):
                said = torch.tensor(told, dtype=torch.float32, device=self.keys.device)
                memory = memory.keep(replace(frame, known=said, trusted=told))
            for row, (old, new) in enumerate(zip(self.tracker.tracks, tracks, strict=True)):
                if new.state == "lost" and old.state != "lost":
                    memory = memory.lose(row)
                elif new.state == "prompted" and self._other(logits[row], near, row):
                    memory = memory.forget(row)
            if any(t.state not in (None, "lost") for t in tracks):
                memory = memory.add(frame, self.config.recent)
        found = Found(
            tuple(track.state for track in tracks),
            logits,
            tuple(result[2] for result in results),
            tuple(result[3] for result in results),
        )
        return Tracker(tracks, self.here.grey, memory, self.tracker.age + 1), found


def advance(
    segmenter: Segmenter,
    config: TrackConfig,
    tracker: Tracker,
    here: Scene,
    asked: Mapping[int, Asked],
) -> tuple[Tracker, Found]:
    """Go on by one frame.

    Args:
        segmenter: that the embeddings are of.
        config: how.
        tracker: of the frame before; `begin` before the first.
        here: the frame.
        asked: what a person says on this frame, by object, 0 to K - 1.

    Returns:
        The tracker after this frame, and what was found on it. Nothing that was given is changed.
    """
    return Step(segmenter, config, tracker, here, asked).run()
