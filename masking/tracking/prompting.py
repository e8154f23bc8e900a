"""Prompts for the segmenter on one frame: clicks are given one by one, and outputs are ranked.

Points and boxes are in pixels of the frame, (x, y), origin top left. Shapes: P points, h x w pixels
of low-resolution logits. Tensors are on the host.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masking.images.arrays import Bools, Points
from masking.images.geometry import deepest, iou
from masking.manifest.prompt import FramePrompt
from masking.segmenter.prompts import on_host
from masking.segmenter.sam import Embeddings, Prompts, Segmenter
from masking.tracking.obeying import Clicks, alike, disc_radius, obey
from masking.tracking.query import Answer, Query, depths
from masking.tracking.state import NOTHING

_STRANGE = 0.3  # predicted IoU that a mask loses for being e times larger or smaller than usual
_KEPT = 0.5  # IoU of what is left of a mask with what the segmenter makes of it, to be an object
_LARGEST = 0.8  # share of the frame above which a mask is taken for the background


def _worth(answer: Answer, usual: float) -> float:
    """Return the predicted IoU of an answer, less if its area is more than twice or less than half
    of what is usual for the object; 0: nothing is known of it."""
    if not usual:
        return answer.predicted
    off = abs(float(np.log(max(answer.area, 1.0) / usual)))
    return answer.predicted - _STRANGE * max(0.0, off - float(np.log(2)))


def _again(query: Query, answer: Answer) -> Query:
    """Return a query that starts from the last answer; a correction keeps to it, too."""
    expected = None if query.expected is None else torch.sigmoid(answer.logits)
    return replace(query, mask=answer.logits, expected=expected)


def _with_start(query: Query) -> Query:
    """Return a person's query with the points that the tracker gave before."""
    if query.start is None:
        return query
    points = np.concatenate([query.start.points, query.points])
    return replace(query, points=points, labels=np.concatenate([query.start.labels, query.labels]))


class Prompter:
    """Prompts a segmenter for the objects of one frame."""

    def __init__(
        self,
        segmenter: Segmenter,
        embeddings: Embeddings,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the segmenter and its embeddings of one frame; `check` is called before each round
        of the decoder, which does not begin if it raises."""
        self.segmenter, self.embeddings, self._check = segmenter, embeddings, check
        self.size = embeddings.frame_size
        self.scale = segmenter.mask_scale(self.size)
        self.low_res = segmenter.low_res(self.size)

    def answer_in_rounds(self, queries: list[Query]) -> list[Answer]:
        """Return an answer to each query. A person's clicks are given one after another, each with
        the mask of the round before, as SAM was trained (Kirillov et al. 2023, appendix A).

        In that training every later click was a correction. So a click that the mask obeys is not
        given: the segmenter would take it for a sign that the mask is too small. In the end all
        clicks are obeyed, also those that the segmenter ignores.
        """
        given = {i: self._opening(query) for i, query in enumerate(queries)}
        open_queries, answers = given, dict[int, Answer]()
        while open_queries:
            given, answers = given | open_queries, answers | self.answer(open_queries)
            corrected = {i: self._corrected(queries[i], given[i], answers[i]) for i in open_queries}
            open_queries = {i: query for i, query in corrected.items() if query is not None}
        # At last once more with its own mask and no new click, SAM's way of refining.
        by_person = [i for i, query in enumerate(queries) if query.prompt is not None]
        refined = self.answer({i: _again(given[i], answers[i]) for i in by_person})
        answers |= {i: a for i, a in refined.items() if self._obeys(a, queries[i])}
        answers |= {i: Answer(answers[i].logits, answers[i].predicted) for i in by_person}
        answers |= self._elsewhere(queries, answers)
        left = {i: q for i, q in enumerate(queries) if self._disobeyed(answers[i].logits, q).any()}
        answers |= self._insisted(left, answers)
        answers |= self._reduced(queries, answers)
        return [answers[i] for i in range(len(queries))]

    def _elsewhere(
        self, queries: Sequence[Query], answers: Mapping[int, Answer]
    ) -> dict[int, Answer]:
        """Return better answers where a person clicked beside a mask that was not trusted: it may
        show something else altogether, and the clicks are tried without it."""
        apart = [
            i
            for i, query in enumerate(queries)
            if query.start is not None and query.doubted and self._is_apart(query, query.start)
        ]
        if not apart:
            return {}
        alone = self.answer_in_rounds([replace(queries[i], start=None, mask=None) for i in apart])
        found = dict(zip(apart, alone, strict=True))
        return {
            i: one
            for i, one in found.items()
            if _worth(one, queries[i].area) >= _worth(answers[i], queries[i].area)
        }

    def _is_apart(self, query: Query, start: Query) -> bool:
        """Return whether all positive clicks lie outside of the mask that was expected."""
        points = query.points[query.labels == 1]
        if start.expected is None or not len(points):
            return False
        return bool((self.sample(start.expected, points) <= 0.5).all())

    def _reduced(
        self, queries: Sequence[Query], answers: Mapping[int, Answer]
    ) -> dict[int, Answer]:
        """Return what is left of masks of which a person only took something away, where the
        answer shows something else for the most part.

        A segmenter that is told where the object is not may look for it elsewhere. If it does not
        take what is left for an object, nothing is left.
        """
        followed = {
            i: query.followed
            for i, query in enumerate(queries)
            if query.followed is not None and query.box is None and not (query.labels == 1).any()
        }
        found = {}
        for i, shown in self.answer(followed).items():
            added = (answers[i].logits > 0) & (shown.logits <= 0)
            if 2 * float(added.sum()) <= answers[i].area:
                continue
            left = self.kept_off(queries[i], answers[i], shown.logits <= 0)
            nothing = torch.full_like(left.logits, NOTHING)
            denied = replace(left, logits=nothing, denied=shown.logits > 0)
            found[i] = left if left.agreement >= _KEPT else denied
        return found

    def _insisted(
        self, queries: Mapping[int, Query], answers: Mapping[int, Answer]
    ) -> dict[int, Answer]:
        """Return answers that obey all clicks where the last ones do not.

        All clicks are given at once, with the last mask and without one, and all outputs are
        compared. What no output obeys is cut or filled.
        """
        if not queries:
            return {}
        full = {i: _with_start(query) for i, query in queries.items()}
        again = [replace(query, mask=answers[i].logits) for i, query in full.items()]
        fresh = [
            replace(q, mask=None if q.box is not None or (q.labels == 1).any() else q.mask)
            for q in full.values()
        ]
        self._check()
        logits, scores = self._decode(again + fresh)
        found = {}
        for place, (i, query) in enumerate(queries.items()):
            places = [place, len(queries) + place]
            outputs = [answers[i].logits, *(one for p in places for one in logits[p])]
            values = [answers[i].predicted, *(v for p in places for v in scores[p].tolist())]
            found[i] = self._obeying(query, outputs, values)
        return found

    def _obeying(self, query: Query, outputs: list[Tensor], values: list[float]) -> Answer:
        """Return the output that obeys most clicks, cut and filled where it does not obey.

        Args:
            query: the query.
            outputs: (h, w) logits; the first are those of the rounds before.
            values: IoU that the segmenter predicts for each.
        """
        answers = [Answer(one, value) for one, value in zip(outputs, values, strict=True)]
        merits = [
            (
                not self._is_sensible(answer),
                int(self._disobeyed(answer.logits, query).sum()),
                -answer.predicted - float(iou(answer.logits > 0, outputs[0] > 0)),
            )
            for answer in answers
        ]
        order = sorted(range(len(answers)), key=merits.__getitem__)
        best, *others = (answers[number] for number in order)
        return self._forced(query, best, others)

    def _forced(self, query: Query, answer: Answer, others: list[Answer]) -> Answer:
        """Cut and fill the mask of an answer where it does not obey; `others` say how far."""
        clicks = self._clicks(query)
        before = answer.logits > 0
        alternatives = [(other.logits > 0).numpy() for other in others if self._is_sensible(other)]
        candidates = [
            chain((before.numpy() ^ one for one in alternatives), self._alike(before, clicks, n))
            for n in range(len(clicks))
        ]
        radius = max(1.5, disc_radius(self.size) * self.scale)
        logits = torch.from_numpy(obey(answer.logits.numpy(), clicks, radius, candidates))
        return replace(answer, logits=logits.clone(), agreement=float(iou(before, logits > 0)))

    def kept_off(self, query: Query, answer: Answer, taken: Tensor) -> Answer:
        """Return an answer without what belongs to others, a mask (h, w), but with its clicks.

        The segmenter is asked once more, with what is left as its mask: it agrees with that less,
        the less it takes it for an object.
        """
        left = torch.where(taken, answer.logits.clamp(max=NOTHING), answer.logits)
        points, labels = query.points, query.labels
        if not (labels == 1).any():
            middle = self.middle(torch.sigmoid(left))
            points = np.concatenate([points, middle])
            labels = np.concatenate([labels, np.ones(len(middle), np.int64)])
        again = replace(query, points=points, labels=labels, mask=left, start=None)
        seen = self.answer({0: again})[0]
        cut = self._forced(query, replace(answer, logits=left, predicted=seen.predicted), [])
        return replace(cut, agreement=float(iou(seen.logits > 0, cut.logits > 0)))

    def answer(self, queries: Mapping[int, Query]) -> dict[int, Answer]:
        """Return an answer to each query, from one call of the decoder, with all clicks at once."""
        if not queries:
            return {}
        self._check()
        logits, scores = self._decode(list(queries.values()))
        return {
            i: self._choose(query, logits[place], scores[place])
            for place, (i, query) in enumerate(queries.items())
        }

    def _opening(self, query: Query) -> Query:
        """Return the first round of a query: of a person's prompt the mask that it corrects, or
        else the box or the first positive click."""
        if query.prompt is None or query.start is not None:
            return query.start or query
        first = np.flatnonzero(query.labels == 1)[: int(query.box is None)]
        return replace(query, points=query.points[first], labels=query.labels[first])

    def _corrected(self, query: Query, given: Query, answer: Answer) -> Query | None:
        """Add the first click that the answer disobeys to those given; None if it obeys all."""
        if query.prompt is None:
            return None
        known = (query.points[:, None] == given.points).all(axis=2).any(axis=1)
        new = np.flatnonzero(self._disobeyed(answer.logits, query) & ~known)[:1]
        if not len(new):
            return None
        points = np.concatenate([given.points, query.points[new]])
        labels = np.concatenate([given.labels, query.labels[new]])
        more = replace(given, points=points, labels=labels, prompt=query.prompt)
        return _again(more, answer)

    def _alike(self, mask: Tensor, clicks: Clicks, number: int) -> Iterator[Bools]:
        """Yield what resembles a click, when it is wanted."""
        yield alike(self.segmenter.keys(self.embeddings)[0].cpu(), mask, clicks, number)

    def _clicks(self, query: Query) -> Clicks:
        """Return the clicks that a person made, as cells of the logits; the object's own last."""
        prompt = query.prompt or FramePrompt()
        mine = (query.points[:, None] == prompt.points).all(axis=2).any(axis=1)
        others = ~mine & (query.labels == 0)
        points = np.concatenate([query.points[others], prompt.points])
        labels = np.concatenate([query.labels[others], prompt.labels])
        scale = (self.scale, self.scale)
        return Clicks.at(points, labels, self.low_res, scale)

    def _disobeyed(self, logits: Tensor, query: Query) -> Bools:
        """Mark (P,) positive clicks outside of a mask (h, w), and negative ones inside."""
        wrong: Bools = (self.sample(logits, query.points) > 0) != (query.labels == 1)
        return wrong

    def _obeys(self, answer: Answer, query: Query) -> bool:
        """Return whether a mask obeys all clicks and is not empty or nearly the whole frame."""
        return self._is_sensible(answer) and not self._disobeyed(answer.logits, query).any()

    def _is_sensible(self, answer: Answer) -> bool:
        """Return whether a mask is neither empty nor nearly the whole frame."""
        h, w = (round(side * self.scale) for side in self.size)
        return 0 < float((answer.logits[:h, :w] > 0).float().mean()) <= _LARGEST

    def _decode(self, queries: list[Query]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits (O, h, w) and scores (O,) of all outputs for each query, on the host: many
        small decisions follow, and so a GPU is waited for only once.

        What memory expects is decoded by the segmenter's own part for that, if it has one.
        """
        found: list[Tensor] = []
        rows: list[int] = []
        follows = [self.segmenter.remembers and q.memory is not None for q in queries]
        for recalled in (False, True):
            places = [i for i, follow in enumerate(follows) if follow == recalled]
            if not places:
                continue
            some = [queries[place] for place in places]
            prompts = Prompts.of(
                self.size,
                [q.points for q in some],
                [q.labels for q in some],
                boxes=[q.box for q in some],
                mask_input=[None if q.mask is None else q.mask.numpy() for q in some],
            )
            if recalled:
                maps = torch.stack([q.memory for q in some if q.memory is not None])
                outputs = self.segmenter.follow(self.embeddings, prompts, maps)
            else:
                outputs = self.segmenter.logits(self.embeddings, prompts)
            found += outputs
            rows += places
        here = on_host(found)
        logits = dict(zip(rows, chain.from_iterable(here[::2]), strict=True))
        scores = dict(zip(rows, chain.from_iterable(here[1::2]), strict=True))
        order = range(len(queries))
        return [logits[row] for row in order], [scores[row] for row in order]

    def _choose(self, query: Query, logits: Tensor, scores: Tensor) -> Answer:
        """Choose the output that is predicted best and agrees best with the expected mask."""
        if query.expected is None:
            ambiguous = len(query.labels) == 1 and query.labels[0] == 1 and query.box is None
            best = 0
            if ambiguous and query.mask is None:
                some = zip(logits[1:], scores[1:], strict=True)
                values = [_worth(Answer(one, float(score)), query.area) for one, score in some]
                best = 1 + int(np.argmax(values))
            return Answer(logits[best].clone(), float(scores[best]))
        p = torch.sigmoid(logits)
        both, either = torch.minimum(p, query.expected), torch.maximum(p, query.expected)
        agreement = both.sum(dim=(1, 2)) / either.sum(dim=(1, 2)).clamp(min=1)
        value = scores + agreement
        if query.prompt is not None:  # above all, its clicks
            value -= torch.tensor([3.0 * self._disobeyed(one, query).sum() for one in logits])
        best = int(value.argmax())
        mask = logits[best] > 0
        similarity = float(query.expected[mask].mean()) if mask.any() else 0.0
        predicted, agreed = float(scores[best]), float(agreement[best])
        # A copy: a view would keep all outputs in memory.
        by_memory = self.segmenter.remembers and query.memory is not None
        return Answer(logits[best].clone(), predicted, agreed, similarity, by_memory)

    def prompted(
        self,
        row: int,
        prompt: FramePrompt,
        mask: Tensor | None,
        others: Points,
        tracked: Query | None = None,
    ) -> Query | None:
        """Return the query of a person's prompt.

        Args:
            row: number of the object, from 0.
            prompt: the prompt.
            mask: (h, w) logits of the mask that it corrects; None: it corrects none.
            others: (P, 2) points that belong to other objects.
            tracked: the query of the tracker for that mask, if there is one.

        Returns:
            The query; None: the prompt does not say where the object is, and there is no mask.
        """
        if not prompt.is_located and mask is None:
            return None
        points = np.concatenate([prompt.points, others])
        labels = np.concatenate([prompt.labels, np.zeros(len(others), np.int64)])
        query = Query(row, points, labels, prompt.box, mask, prompt=prompt)
        if mask is None or prompt.box is not None:
            return query
        start = self._start(query, torch.sigmoid(mask), tracked)
        return replace(query, start=start, followed=tracked or start)

    def _start(self, query: Query, expected: Tensor, tracked: Query | None) -> Query:
        """Return the tracker's query that a person's query corrects, without the points on what the
        person takes away."""
        right = self._without(expected, query.points[query.labels == 0])
        middle = self.middle(right)
        if tracked is None:
            labels = np.ones(len(middle), np.int64)
            return Query(query.row, middle, labels, mask=query.mask, expected=expected)
        kept = (tracked.labels == 0) | (self.sample(right, tracked.points) > 0)
        points, labels = tracked.points[kept], tracked.labels[kept]
        if not (labels == 1).any():
            points = np.concatenate([middle, points])
            labels = np.concatenate([np.ones(len(middle), np.int64), labels])
        return replace(tracked, points=points, labels=labels)

    def _without(self, expected: Tensor, points: Points) -> Tensor:
        """Return probabilities (h, w) that are 0 round points, as far as the nearest edge of what
        is expected: clicks beside the object may lie in the middle of what was taken for it."""
        depth = self.sample(depths(expected), points)
        y, x = np.ogrid[: expected.shape[0], : expected.shape[1]]
        left = expected.clone()
        for (column, row), reach in zip((points + 0.5) * self.scale, depth, strict=True):
            distance = np.hypot(y + 0.5 - row, x + 0.5 - column)
            left[torch.from_numpy(distance <= max(reach, 1.0))] = 0.0
        return left

    def middle(self, expected: Tensor, least: float = 0.5) -> Points:
        """Return the deepest point (1, 2) of the expected mask; (0, 2) if that is empty.

        Args:
            expected: (h, w) probabilities.
            least: highest probability from which there is a mask. If that is below 0.5, the mask is
                where the probability is nearly as high.
        """
        most = float(expected.max())
        found = deepest((expected > min(0.5, 0.8 * most)).numpy()) if most > least else None
        if found is None:
            return np.zeros((0, 2), np.float32)
        h, w = self.size
        at = (np.array([found[:2]], np.float32) + 0.5) / np.float32(self.scale) - 0.5
        return np.clip(at, 0, [w - 1, h - 1]).astype(np.float32)

    def sample(self, maps: Tensor, points: Points) -> NDArray[np.float32]:
        """Return the values (P,) of an (h, w) map at points (P, 2)."""
        h, w = maps.shape
        cells = np.clip((points + 0.5) * self.scale, 0, [w - 1, h - 1]).astype(np.int64)
        values: NDArray[np.float32] = maps.numpy()[cells[:, 1], cells[:, 0]]
        return values
