"""One step of tracking: from the frame before to this one, as a value in and a value out.

A step takes a soft mask of each object from remembered frames (`masking.tracking.expectation`),
prompts the segmenter for all objects at once (`masking.tracking.prompting`), and learns from the
masks that it can trust (`masking.tracking.learning`).
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from masking.manifest.prompt import FramePrompt
from masking.segmenter.matching import compete
from masking.segmenter.sam import Segmenter
from masking.tracking.expectation import Expectation
from masking.tracking.learning import Learning, is_trusted
from masking.tracking.prompting import Prompter
from masking.tracking.query import Answer, Query
from masking.tracking.state import Scene, TrackConfig, TrackedMasks, Tracker


def advance(
    segmenter: Segmenter,
    config: TrackConfig,
    tracker: Tracker,
    scene: Scene,
    prompts: Mapping[int, FramePrompt],
    given: Mapping[int, Answer] | None = None,
) -> tuple[Tracker, TrackedMasks]:
    """Track all objects on the next frame.

    Args:
        segmenter: the segmenter that made the embeddings of the frame.
        config: how objects are tracked.
        tracker: the tracker after the frame before; `state.begin` before the first.
        scene: the frame.
        prompts: what a person says on this frame, by object, 0 to K - 1.
        given: answers to some of the prompts, from a pass before; the segmenter is not asked again.

    Returns:
        The tracker after this frame, and the masks on it. The arguments are not changed.
    """
    prompter = Prompter(segmenter, scene.embeddings)
    expectation = Expectation(prompter, config, tracker, scene, prompts)
    given = given or {}
    queries = [query for query in expectation.queries() if query.row not in given]
    answers = prompter.answer_in_rounds(queries)
    if config.exclusive:
        answers = _kept_off(expectation, queries, answers)
        answers = _sharing(expectation, queries, answers, list(given.values()))
    answered = {q.row: (q, answer) for q, answer in zip(queries, answers, strict=True)}
    for row, answer in given.items():
        prompt = prompts[row]
        query = Query(row, prompt.points, prompt.labels, prompt.box, prompt=prompt)
        answered[row] = query, answer
    learning = Learning(prompter, config, tracker, scene, expectation)
    rows = range(len(expectation.tracks))
    return learning.remember(
        [learning.outcome(row, *answered.get(row, (None, None))) for row in rows]
    )


def _kept_off(
    expectation: Expectation, queries: list[Query], answers: list[Answer]
) -> list[Answer]:
    """Keep masks of prompts off objects that are tracked on the frame.

    A click on what can be seen of an object behind another one easily takes both. Where the other
    one's mask is not trusted, what both have goes to the one that it resembles more.
    """
    kept = list(answers)
    for i, query in enumerate(queries):
        taken = torch.zeros_like(answers[i].logits, dtype=torch.bool)
        for other, answer in zip(queries, answers, strict=True):
            if query.prompt is None or other.prompt is not None:
                continue
            both = (answers[i].logits > 0) & (answer.logits > 0)
            is_sure = is_trusted(expectation.config, expectation.tracks[other.row], answer)
            if both.any() and (is_sure or not expectation.is_rather(query.row, other.row, both)):
                taken |= both
        if taken.any():
            kept[i] = expectation.prompter.kept_off(query, answers[i], taken)
    return kept


def _sharing(
    expectation: Expectation, queries: list[Query], answers: list[Answer], given: list[Answer]
) -> list[Answer]:
    """Let the objects of a frame compete for each cell by soft aggregation.

    Objects that are lost take nothing from others: most of their answers show something else.
    Answers that are given stay as they are.
    """
    every = [*answers, *given]
    if len(every) < 2 or not answers:
        return answers
    prompted = torch.tensor([*(q.prompt is not None for q in queries), *(True for _ in given)])
    lost = torch.tensor(
        [expectation.tracks[q.row].state == "lost" for q in queries] + [False] * len(given)
    )
    # A person's word counts: what a prompt shows gives way to what other prompts show alone.
    rivals = torch.where(prompted[:, None], prompted, prompted | ~lost)
    rivals &= ~torch.eye(len(every), dtype=torch.bool)
    shared = compete(torch.stack([answer.logits for answer in every]), rivals)[: len(answers)]
    return [replace(answer, logits=one) for answer, one in zip(answers, shared, strict=True)]
