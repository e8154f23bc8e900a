"""What a memory of earlier frames expects of a new one, as training and tracking compute it.

Cells of a new frame are compared with cells of remembered frames whose masks are known (label
propagation, as in "Space-Time Correspondence as a Contrastive Random Walk", Jabri et al.,
2006.14613, and DINO's video evaluation, Caron et al., 2104.14294). A cell takes the shares of the
cells that it resembles. `mini` has keys that are trained for that, and a decoder that is trained to
correct what is expected of an object, and of the others, as in STM (Oh et al., 1904.00607).

Shapes: B clips, S remembered frames, N objects of all clips, C channels of keys, h x w cells of
stride 8, M = h * w.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masking.segmenter.layers import enlarge

TEMPERATURE = 0.07
"""Difference of two cosines by which the weights of remembered cells differ by a factor of e."""
RADIUS = 0.25
"""How far an object may move from a remembered frame, as a share of the map's longer side."""
SURE = 6.0
"""Logit of a cell that certainly belongs to an object; negated, of one that certainly does not."""
MAPS = 5
"""Maps of an object from memory; `recalled` lists them."""
FAR = -60.0
"""Exponent for cells that are too far apart, nearly 0 after exp(). Of a lower one float32 has no
normal exp(), for which CPUs take eight times as long."""


class Matching(nn.Module):
    """Keys of frames: unit vectors at stride 8 whose cosine says whether two cells match."""

    def __init__(self, middle: int, coarse: int, channels: int) -> None:
        """Build it with random weights, for features of `middle` and `coarse` channels."""
        super().__init__()
        self.middle = nn.Conv2d(middle, channels, 1)
        self.coarse = nn.Conv2d(coarse, channels, 1, bias=False)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Map the encoder's features of strides 4, 8 and 16 to keys (N, C, h, w) float32."""
        _, middle, coarse = features[:3]
        keys = self.middle(middle) + enlarge(self.coarse(coarse))
        return F.normalize(keys.float(), dim=1)


def weights(old: Tensor, new: Tensor, bias: Tensor) -> Tensor:
    """Return how much each cell of a new frame resembles each remembered cell.

    Args:
        old: (..., M, C) unit vectors of a remembered frame.
        new: (..., M, C) unit vectors of the new frame.
        bias: (M, M) from `distances`.

    Returns:
        (..., M, M) from 0 to 1, remembered cells by new ones; 1 for equal vectors.
    """
    return (old @ new.transpose(-2, -1) / TEMPERATURE + bias).exp()


def distances(grid: tuple[int, int], device: torch.device, radius: float = RADIUS) -> Tensor:
    """Return the (M, M) bias of pairs of cells: such that equal unit vectors have the weight 1, and
    cells farther apart than `radius`, as a share of the longer side, nearly 0."""
    y, x = places(grid, device)
    far = torch.hypot(y[:, None] - y, x[:, None] - x) > radius * max(grid)
    return torch.where(far, FAR, -1 / TEMPERATURE)


def places(grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the row and the column of each cell, (M,) float32 each."""
    axes = (torch.arange(n, device=device).float() for n in grid)
    y, x = torch.meshgrid(*axes, indexing="ij")
    return y.flatten(), x.flatten()


def sure_logits(expected: Tensor) -> Tensor:
    """Turn probabilities (..., h, w) into the logits that a decoder is prompted with."""
    return SURE * (2 * expected - 1)


def confidence(weight: Tensor) -> Tensor:
    """Turn sums of weights into about the largest cosine that they come from, from 0 to 1."""
    return (1 + TEMPERATURE * weight.clamp(min=1e-6).log()).clamp(0, 1.2)


def recalled(
    shares: Tensor, weight: Tensor, prompted_shares: Tensor, prompted_weight: Tensor, others: Tensor
) -> Tensor:
    """Return the maps from memory that the decoder takes.

    Args:
        shares: (N, h, w) where each object is expected, from all remembered frames, from 0 to 1.
        weight: (N, h, w) sums of weights of these frames.
        prompted_shares: (N, h, w) the same from the frames with prompts alone.
        prompted_weight: (N, h, w) sums of weights of these.
        others: (N, h, w) where the other objects of the video are expected.

    Returns:
        (N, MAPS, h, w) float32.
    """
    maps = (
        shares,
        prompted_shares,
        others,
        confidence(weight),
        confidence(prompted_weight),
    )
    return torch.stack(maps, dim=1)


def compete(logits: Tensor, rivals: Tensor) -> Tensor:
    """Let objects compete for each pixel: soft aggregation, as in STM (Oh et al., 1904.00607).

    The odds of an object are divided by one plus the odds of its rivals, so that the probabilities
    of all and of none of them have the sum 1.

    Args:
        logits: (N, ...) of each object by itself.
        rivals: (N, N) bool, which objects (columns) each (row) competes with; not with itself.

    Returns:
        (N, ...) logits; those of an object without rivals are unchanged.
    """
    flat = logits.flatten(1)
    odds = flat.clamp(-30, 30).exp()
    return (flat - torch.log1p(rivals.to(odds.dtype) @ odds)).view_as(logits)
