"""What a segmenter says of prompts on one frame: clicks told one by one, outputs ranked.

Points and boxes are in pixels of the frame, (x, y), origin top left. Shapes: P points, H x W
pixels of the frame, h x w of low-resolution logits. Tensors are on the host.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masking.images.arrays import Bools, Points
from masking.images.geometry import deepest
from masking.manifest.asked import Asked
from masking.segmenter.sam import Embeddings, Prompts, Segmenter

_LARGEST = 0.8  # share of the frame above which a mask is the background's


@dataclass
class Query:
    """What the segmenter is asked of one object, and how its answers are judged."""

    row: int
    points: Points
    labels: NDArray[np.int64]
    box: NDArray[np.float32] | None = None
    mask: Tensor | None = None
    expected: Tensor | None = None
    """(h, w) probabilities."""
    carried: Points = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    asked: Asked | None = None


@dataclass(frozen=True)
class Answer:
    """The output that was chosen."""

    logits: Tensor
    predicted: float
    agreement: float
    inside: float
    likeness: float

    @property
    def area(self) -> float:
        """Cells of the mask."""
        return float((self.logits > 0).sum())


class Asking:
    """A segmenter and a frame that it is asked about."""

    def __init__(self, segmenter: Segmenter, embeddings: Embeddings) -> None:
        """`embeddings`: of one frame."""
        self.segmenter, self.embeddings = segmenter, embeddings
        self.size = embeddings.frame_size
        self.scale = segmenter.mask_scale(self.size)

    def ask(self, queries: list[Query]) -> list[Answer]:
        """One answer each. A person's clicks are told one after another, each with the mask of
        those before, as SAM learnt them (Kirillov et al. 2023, appendix A).

        There every later click was a correction. So one that the mask obeys is not told: it would
        be taken for a sign that the mask is too small.
        """
        told = {i: self._opening(query) for i, query in enumerate(queries)}
        asking, answers = told, dict[int, Answer]()
        while asking:
            told, answers = told | asking, answers | self.answers(asking)
            corrected = {i: self._corrected(queries[i], told[i], answers[i]) for i in asking}
            asking = {i: query for i, query in corrected.items() if query is not None}
        # In the end once more with its own mask and no new click, SAM's way of refining.
        refined = self.answers(
            {i: replace(q, mask=answers[i].logits) for i, q in told.items() if q.asked is not None}
        )
        obeying = {i: a for i, a in refined.items() if self._obeys(a, queries[i])}
        return [(answers | obeying)[i] for i in range(len(queries))]

    def answers(self, queries: Mapping[int, Query]) -> dict[int, Answer]:
        """One each, all that is asked told at once, in one call of the decoder."""
        if not queries:
            return {}
        logits, scores = self._decode(list(queries.values()))
        return {
            i: self._choose(query, logits[place], scores[place])
            for place, (i, query) in enumerate(queries.items())
        }

    def _opening(self, query: Query) -> Query:
        """Of a person's prompts the box, or else the first positive click."""
        if query.asked is None:
            return query
        first = np.flatnonzero(query.labels == 1)[: int(query.box is None)]
        return replace(query, points=query.points[first], labels=query.labels[first])

    def _corrected(self, query: Query, told: Query, answer: Answer) -> Query | None:
        """What was told and the first click that the answer disobeys; None if it obeys all."""
        if query.asked is None:
            return None
        known = (query.points[:, None] == told.points).all(axis=2).any(axis=1)
        new = np.flatnonzero(self._disobeyed(answer, query) & ~known)[:1]
        if not len(new):
            return None
        points = np.concatenate([told.points, query.points[new]])
        labels = np.concatenate([told.labels, query.labels[new]])
        return replace(told, points=points, labels=labels, mask=answer.logits)

    def _disobeyed(self, answer: Answer, query: Query) -> Bools:
        """(P,) positive clicks outside of a mask, and negative ones in it."""
        wrong: Bools = (self.at(answer.logits, query.points) > 0) != (query.labels == 1)
        return wrong

    def _obeys(self, answer: Answer, query: Query) -> bool:
        """Whether a mask holds the positives, leaves out the negatives, and is not everything."""
        h, w = (round(side * self.scale) for side in self.size)
        share = float((answer.logits[:h, :w] > 0).float().mean())
        return not self._disobeyed(answer, query).any() and 0 < share <= _LARGEST

    def _decode(self, queries: list[Query]) -> tuple[Tensor, Tensor]:
        """Logits (Q, 4, h, w) and scores (Q, 4) of all outputs, on the host: what follows are many
        small decisions, and a GPU is waited for once."""
        prompts = Prompts.of(
            self.size,
            [q.points for q in queries],
            [q.labels for q in queries],
            boxes=[q.box for q in queries],
            mask_input=[None if q.mask is None else q.mask.numpy() for q in queries],
        )
        logits, scores = self.segmenter.logits(self.embeddings, prompts)
        return logits.cpu(), scores.cpu()

    def _choose(self, query: Query, logits: Tensor, scores: Tensor) -> Answer:
        """Of four outputs the one that is predicted best and agrees best with what is expected."""
        if query.expected is None:
            ambiguous = (
                (query.labels == 1).sum() == 1 and len(query.labels) == 1 and query.box is None
            )
            best = 1 + int(scores[1:].argmax()) if ambiguous and query.mask is None else 0
            return Answer(logits[best].clone(), float(scores[best]), 1.0, 1.0, 1.0)
        p = torch.sigmoid(logits)
        both, either = torch.minimum(p, query.expected), torch.maximum(p, query.expected)
        agreement = both.sum(dim=(1, 2)) / either.sum(dim=(1, 2)).clamp(min=1)
        inside = torch.ones(len(logits))
        if len(query.carried):
            inside = torch.tensor([float((self.at(x, query.carried) > 0).mean()) for x in logits])
        value = scores + agreement + 0.5 * inside
        best = int(value.argmax())
        mask = logits[best] > 0
        held = float(query.expected[mask].mean()) if mask.any() else 0.0
        predicted, agreed, hit = (float(of[best]) for of in (scores, agreement, inside))
        # Not a view, which would keep all that was answered.
        return Answer(logits[best].clone(), predicted, agreed, hit, held)

    def middle(self, expected: Tensor) -> Points:
        """(1, 2): the deepest point of where an object is expected; (0, 2) if it is nowhere."""
        found = deepest((expected > 0.5).numpy())
        if found is None:
            return np.zeros((0, 2), np.float32)
        h, w = self.size
        at = (np.array([found[:2]], np.float32) + 0.5) / np.float32(self.scale) - 0.5
        return np.clip(at, 0, [w - 1, h - 1]).astype(np.float32)

    def at(self, maps: Tensor, points: Points) -> NDArray[np.float32]:
        """(P,) values of an (h, w) map at points."""
        h, w = maps.shape
        cells = np.clip((points + 0.5) * self.scale, 0, [w - 1, h - 1]).astype(np.int64)
        values: NDArray[np.float32] = maps.numpy()[cells[:, 1], cells[:, 0]]
        return values
