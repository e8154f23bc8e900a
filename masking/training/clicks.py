"""Simulated clicks, boxes and earlier masks for training, in batches.

The functions have no state and no random numbers of their own: they take uniform numbers in [0, 1),
and run on the device of their tensors without ever waiting for it.

Shapes: N masks of H x W pixels. Points are (x, y), a pixel's column and row, origin top left: pixel
(0, 0) is the point (0, 0). What is in `ignore` counts as neither right nor wrong.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from masking.images.geometry import depth

PERTURB_DRAWS = 8
"""Uniform numbers that `perturb` takes for each mask."""
_BOX_NOISE, _BOX_LIMIT = 0.1, 20.0  # SAM's: share of the side, pixels


def random_clicks(region: Tensor, draws: Tensor, centred: Tensor) -> Tensor:
    """Draw a point of each region: near its middle, or anywhere but seldom at its edge.

    Args:
        region: (N, H, W) bool, none of them empty (else the point is (0, 0)).
        draws: (N, H, W) float32 in [0, 1).
        centred: (N,) bool: the point is near the middle of the region.

    Returns:
        (N, 2) float32 (x, y).
    """
    weights = _weights(_inside(region), depth(region), centred)
    return _points(_draw_pixels(weights, draws), region.shape[2])


def corrective(
    truth: Tensor, prediction: Tensor, ignore: Tensor, draws: Tensor, centred: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw a click on what is wrong, as in SAM's training; on the object, if nothing is.

    The larger and deeper false negatives or false positives are, the likelier they are clicked.

    Args:
        truth: (N, H, W) bool, none of them empty outside `ignore`.
        prediction, ignore: (N, H, W) bool.
        draws: (N, H, W) float32 in [0, 1).
        centred: (N,) bool: the click is near the middle of the deepest error.

    Returns:
        Points (N, 2) float32 (x, y), and labels (N,) int64, 1 foreground, 0 background.
    """
    counts = ~ignore
    missed, excess = truth & ~prediction & counts, prediction & ~truth & counts
    wrong = missed | excess
    right = ~wrong.any(dim=2).any(dim=1)[:, None, None]
    missed = torch.where(right, truth & counts, missed)
    kinds = torch.stack([missed, excess])  # they do not overlap
    inside, depths = (
        weigh(kinds.flatten(0, 1)).view_as(kinds).sum(dim=0) for weigh in (_inside, depth)
    )
    places = _draw_pixels(_weights(inside, depths, centred), draws)
    labels = truth.flatten(1).gather(1, places[:, None])[:, 0].long()
    return _points(places, truth.shape[2]), labels


def _weights(inside: Tensor, depths: Tensor, centred: Tensor) -> Tensor:
    """Return the weights (N, H, W) by which pixels are drawn.

    For centred clicks they are a high power of the depth: in a disc, clicks lie at 0.06 of the
    radius from its middle, on average. At 0.2, the predicted IoU learns less from clicks in the
    very middle.
    """
    share = depths / depths.amax(dim=(1, 2), keepdim=True).clamp(min=1)
    return torch.where(centred[:, None, None], share**32, inside)


def _inside(region: Tensor) -> Tensor:
    """Return weights (N, H, W): 0 outside a region, about a quarter at its edge, 1 deep inside."""
    radius = max(1, max(region.shape[1:]) // 16)
    share, width = region[:, None].float(), 2 * radius + 1
    for size, padding in (((width, 1), (radius, 0)), ((1, width), (0, radius))):
        share = F.avg_pool2d(share, size, stride=1, padding=padding)
    return region * share[:, 0].square()


def _draw_pixels(weights: Tensor, draws: Tensor) -> Tensor:
    """Draw a pixel of each row by weight, (N,) int64.

    It has the shortest of the exponential times -log(draw) / weight, whose chance is in proportion
    to the weight (Efraimidis and Spirakis 2006): one argmax, and no sum.
    """
    negated_times = draws.clamp(min=2.0**-25).log() / weights
    return negated_times.flatten(1).argmax(dim=1)


def _points(places: Tensor, width: int) -> Tensor:
    """Convert flat indices (N,) of pixels to (N, 2) float32 (x, y)."""
    return torch.stack([places % width, places // width], dim=1).float()


def _bounds(masks: Tensor) -> Tensor:
    """Return (N, 4) float32 first column, first row, last column, last row of (N, H, W) bool."""
    firsts, lasts = [], []
    for dim in (1, 2):
        lines = masks.any(dim=dim)
        size = lines.shape[1]
        numbers = torch.arange(size, device=masks.device)
        firsts.append(torch.where(lines, numbers, size).amin(dim=1))
        lasts.append(torch.where(lines, numbers, -1).amax(dim=1))
    return torch.stack([*firsts, *lasts], dim=1).float()


def noisy_box(masks: Tensor, draws: Tensor) -> Tensor:
    """Return a box round each mask, as a person draws it in a hurry.

    The noise is SAM's (Kirillov et al. 2023, arXiv 2304.02643, appendix A): normal, with a
    standard deviation of a tenth of the side, at most 20 pixels.

    Args:
        masks: (N, H, W) bool, none of them empty.
        draws: (N, 4) float32 in [0, 1).

    Returns:
        (N, 4) float32 x1 y1 x2 y2: first and last column and row, clipped to the image.
    """
    edges = _bounds(masks)
    sides = (edges[:, 2:] - edges[:, :2] + 1).repeat(1, 2)
    normal = torch.erfinv((2 * draws - 1).clamp(-1 + 1e-6, 1 - 1e-6)) * math.sqrt(2)
    noise = (_BOX_NOISE * sides * normal).clamp(-_BOX_LIMIT, _BOX_LIMIT)
    height, width = masks.shape[1:]
    x, y = (edges + noise).view(-1, 2, 2).unbind(dim=2)
    ends = torch.stack([x.clamp(0, width - 1), y.clamp(0, height - 1)], dim=2)
    return torch.cat([ends.amin(dim=1), ends.amax(dim=1)], dim=1)


def perturb(masks: Tensor, draws: Tensor) -> Tensor:
    """Return logits of an earlier answer as tracking gives them: near the truth, or less near.

    The mask is moved, turned and scaled, mostly a little and sometimes a lot; its edge is softened
    and set too far in or out; a part is missing or too much; and the logits are large or small.

    Args:
        masks: (N, h, w) float32 in [0, 1] or bool, at the size of the logits; none of them empty.
        draws: (N, 8) float32 in [0, 1).

    Returns:
        (N, h, w) float32, above 0 where the object is expected.
    """
    masks = masks.float()
    edges = _bounds(masks >= masks.amax(dim=(1, 2), keepdim=True) / 2)
    start, extent = edges[:, :2], edges[:, 2:] - edges[:, :2] + 1
    soft = _moved(masks, start + (extent - 1) / 2, extent.amax(dim=1), draws[:, :4])
    soft = F.avg_pool2d(soft, 5, stride=1, padding=2)[:, 0]
    # A draw has 24 bits, which are enough for two numbers.
    radius, kind = (draws[:, 4:6] * 4096 % 1).unbind(dim=1)
    disc = _disc(soft, start + draws[:, 6:] * extent, (0.05 + 0.2 * radius) * extent.amax(dim=1))
    kind = kind[:, None, None]
    soft = torch.where(kind < 0.2, soft * (1 - disc), soft)
    soft = torch.where(kind > 0.8, torch.maximum(soft, disc), soft)
    shift, confidence = (draws[:, 4:6, None, None] * 2 - 1).unbind(dim=1)
    return 8 * confidence.exp() * (2 * soft - 1 - 0.5 * shift)


def _moved(masks: Tensor, centre: Tensor, extent: Tensor, draws: Tensor) -> Tensor:
    """Turn and scale masks about (N, 2) centres, then shift them; the result is (N, 1, h, w).

    Changes are fifth powers of uniform numbers: mostly small, at most 0.4 of the extent, 30 degrees
    and a factor of 1.4.
    """
    height, width = masks.shape[1:]
    change = (2 * draws - 1) ** 5
    angle, scale = change[:, 2] * (math.pi / 6), torch.exp(change[:, 3] * math.log(1.4))
    target = centre + 0.4 * change[:, :2] * extent[:, None]
    x, y = (_places(masks) - target[:, None, None]).unbind(dim=3)
    cos, sin = ((wave(angle) / scale)[:, None, None] for wave in (torch.cos, torch.sin))
    source_x = cos * x + sin * y + centre[:, 0, None, None]
    source_y = cos * y - sin * x + centre[:, 1, None, None]
    # grid_sample counts from -1 at the first pixel's outer edge to 1 at the last one's.
    grid = torch.stack([(2 * source_x + 1) / width - 1, (2 * source_y + 1) / height - 1], dim=3)
    return F.grid_sample(masks[:, None], grid, align_corners=False)


def _disc(maps: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Draw discs as (N, h, w) float32: 1 inside, 0 outside, soft over about four pixels."""
    distance = (_places(maps) - centres[:, None, None]).square().sum(dim=3).sqrt()
    return torch.sigmoid(radii[:, None, None] - distance)


def _places(maps: Tensor) -> Tensor:
    """Return the (x, y) of every pixel of maps (N, h, w), as (h, w, 2) float32."""
    rows, columns = (torch.arange(n, device=maps.device) for n in maps.shape[1:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=2).float()
