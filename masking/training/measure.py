"""Evaluation of a segmenter by simulated clicks: the IoU of its masks after each click."""

import numpy as np
import torch
from numpy.typing import NDArray

from masking.images.geometry import deepest, iou
from masking.segmenter.sam import Prompts, Segmenter
from masking.training.pair import Pair

ENOUGH = 0.85
"""The IoU from which a mask is good enough (Sofiiuk et al., 2102.06583, among others)."""
FEW = 5
"""Clicks that an object gets at least, however good its mask is."""


def measure(
    segmenter: Segmenter, pair: Pair, clicks: int, enough: float = ENOUGH
) -> NDArray[np.float64]:
    """Return the IoU of each object after each of up to `clicks` simulated clicks.

    Each is the click of `masking.images.geometry.deepest`. The first takes the best of three masks
    as its answer, the others the single mask, with the logits of the one before. An object whose
    mask is good enough after five clicks, or has no error left, gets no more.

    Returns:
        (K, clicks); the last IoU is repeated for an object that gets no more clicks.
    """
    embeddings = segmenter.encode(pair.image[None])
    truth, void = torch.from_numpy(pair.masks), torch.from_numpy(pair.ignore)
    masks = torch.zeros_like(truth)
    points: list[list[tuple[int, int]]] = [[] for _ in truth]
    labels: list[list[int]] = [[] for _ in truth]
    logits: list[NDArray[np.float32] | None] = [None] * len(truth)
    ious = np.zeros((len(truth), clicks))
    for number in range(clicks):
        if number:
            ious[:, number] = ious[:, number - 1]
        clicked = []
        for k in range(len(truth)):
            if number >= FEW and ious[k, number - 1] >= enough:
                continue
            click = deepest(pair.masks[k], masks[k].numpy() if number else None, pair.ignore)
            if click is not None:
                points[k].append(click[:2])
                labels[k].append(click[2])
                clicked.append(k)
        if not clicked:
            continue
        prompts = Prompts.of(
            embeddings.frame_size,
            [points[k] for k in clicked],
            [labels[k] for k in clicked],
            mask_input=[logits[k] for k in clicked],
        )
        answer = segmenter.decode(embeddings, prompts, "single" if number else "best")
        for row, k in enumerate(clicked):
            masks[k] = answer.masks[row, 0].cpu()
            logits[k] = answer.low_res_logits[row, 0].cpu().numpy()
        ious[clicked, number] = iou(truth[clicked], masks[clicked], void).numpy()
    return ious


def summarize(ious: NDArray[np.float64], enough: float = ENOUGH) -> NDArray[np.float64]:
    """Sum over objects what `measure` returned.

    Returns:
        (5,): IoU after 1, 3 and 5 clicks; the clicks that it took to be good enough (all of them,
        if it never was); the number of objects.
    """
    good = ious >= enough
    took = np.where(good.any(axis=1), good.argmax(axis=1) + 1, ious.shape[1])
    return np.array([*ious[:, [0, 2, 4]].sum(axis=0), took.sum(), len(ious)])
