"""How far a mask can be trusted: the probability that it is right, from what is known of it.

A mask is right if its IoU with the truth is above 0.5. What is known of a mask when it is made (its
predicted IoU, how sharp it is, how far the prompted frames alone lead to expect it, and how much of
it belongs to other objects) is a row of numbers, the evidence. Logistic regressions on it give the
probability that the mask is right, and the IoU to expect. Agreement with all of memory, growth, and
the time since a prompt made neither of them better. `benchmarks.masking.calibration` fits them for
given weights, and puts the numbers into the metadata of these. Other weights are judged by
`ASSUMED`, which is fitted for `mini` without the part that follows objects.

Shapes: h x w pixels of low-resolution logits.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from masking.segmenter.matching import MAPS

EVIDENCE: dict[str, str] = {
    "predicted": "log odds of the IoU that the segmenter predicts",
    "stability": "log odds of the share of the mask that stays at a higher threshold",
    "prompted": "mean probability in the mask by the prompted frames alone",
    "others": "mean probability in the mask that a cell belongs to another object",
}
"""Evidence of a tracked mask, in this order."""
PROMPTED: dict[str, str] = {
    "predicted": EVIDENCE["predicted"],
    "stability": EVIDENCE["stability"],
    "clicks": "log of one plus the number of clicks",
}
"""Evidence of a prompted mask, in this order."""
Evidence = NDArray[np.float64]
"""(4,) or (3,)."""
TRACKED = 0.8
"""Least probability that a mask is right with which its state is `tracked`: with lower ones more
masks that are wrong were called tracked, with higher ones more right ones uncertain."""


def log_odds(share: float) -> float:
    """Return the log odds of a share, which counts as at least 0.01 and at most 0.99."""
    share = min(max(share, 0.01), 0.99)
    return float(np.log(share / (1 - share)))


def stability(logits: Tensor) -> float:
    """Return the log odds of the share of a mask (h, w) at a low threshold that stays at a high
    one, as SAM measures it."""
    return log_odds(float(((logits > 1).sum() + 1) / ((logits > -1).sum() + 1)))


def evidence_of_tracked(logits: Tensor, predicted: float, maps: Tensor | None) -> Evidence:
    """Return the numbers of `EVIDENCE`.

    Args:
        logits: (h, w) of the mask.
        predicted: IoU that the segmenter predicts for it.
        maps: (MAPS, rows, columns) of `masking.segmenter.matching.recalled`, on the host.
    """
    means = np.zeros(MAPS)
    if maps is not None:
        size = (maps.shape[-2], maps.shape[-1])
        mask = F.adaptive_avg_pool2d((logits > 0).float()[None], size)[0]
        total = (maps * mask).sum(dim=(1, 2)) / mask.sum().clamp(min=1e-6)
        means = total.double().numpy()
    _, prompted, others, *_ = means
    return np.array([log_odds(predicted), stability(logits), prompted, others])


def evidence_of_prompted(logits: Tensor, predicted: float, clicks: int) -> Evidence:
    """Return the numbers of `PROMPTED` for a mask (h, w) from a number of clicks."""
    return np.array([log_odds(predicted), stability(logits), np.log1p(clicks)])


@dataclass(frozen=True)
class Belief:
    """What is believed of a mask."""

    right: float
    """Probability that its IoU with the truth is above 0.5."""
    iou: float
    """Expected IoU with the truth."""


@dataclass(frozen=True)
class Calibration:
    """Weights of evidence, each row with a constant at its end."""

    right: tuple[float, ...]
    """Log odds that a tracked mask is right."""
    iou: tuple[float, ...]
    """Log odds of the IoU to expect of a tracked mask."""
    prompted_right: tuple[float, ...]
    """Log odds that a prompted mask is right."""
    prompted_iou: tuple[float, ...]
    """Log odds of the IoU to expect of a prompted mask."""
    gone: float
    """Probability that an object that is lost cannot be seen: that its empty mask is right."""

    def tracked(self, evidence: Evidence) -> Belief:
        """Return what is believed of a tracked mask."""
        return Belief(_share(evidence, self.right), _share(evidence, self.iou))

    def prompted(self, evidence: Evidence) -> Belief:
        """Return what is believed of a prompted mask."""
        right, iou = self.prompted_right, self.prompted_iou
        return Belief(_share(evidence, right), _share(evidence, iou))

    def text(self) -> str:
        """Return it as JSON, as the metadata of weights hold it under `calibration`."""
        return json.dumps({"evidence": [*EVIDENCE, *PROMPTED], **asdict(self)})

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Self | None:
        """Read it from the metadata of weights; None: they have none that fits."""
        try:
            found = json.loads(metadata["calibration"])
            if found.pop("evidence") != [*EVIDENCE, *PROMPTED]:
                return None
            gone = float(found.pop("gone"))
            rows = {name: tuple(map(float, row)) for name, row in found.items()}
            one = cls(**rows, gone=gone)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        sizes = [len(row) for row in (one.right, one.iou, one.prompted_right, one.prompted_iou)]
        tracked, prompted = len(EVIDENCE) + 1, len(PROMPTED) + 1
        return one if sizes == [tracked, tracked, prompted, prompted] else None


def _share(evidence: Evidence, weights: tuple[float, ...]) -> float:
    odds = float(evidence @ np.array(weights[:-1])) + weights[-1]
    return float(1 / (1 + np.exp(-min(max(odds, -30.0), 30.0))))


ASSUMED = Calibration(
    right=(1.37, 0.18, 1.30, 0.0, -1.16),
    iou=(0.89, 0.06, 0.50, 0.0, -0.94),
    prompted_right=(0.63, 1.24, 0.79, 1.46),
    prompted_iou=(0.27, 0.56, 0.02, 0.75),
    gone=0.75,
)
"""For weights that have no calibration of their own."""


def calibration_of(metadata: Mapping[str, str]) -> Calibration:
    """Return the calibration of weights, from their metadata, or else `ASSUMED`."""
    text = metadata.get("calibration")
    return ASSUMED if text is None else _read(text)


@lru_cache(maxsize=8)
def _read(text: str) -> Calibration:
    return Calibration.of({"calibration": text}) or ASSUMED
