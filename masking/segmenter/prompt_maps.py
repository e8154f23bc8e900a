"""Prompts drawn as maps: where the clicks, the box and the earlier mask of `mini` are.

Shapes: N prompt sets of P points, h x w cells of a map, K channels of the keys (unit vectors whose
cosine is the similarity of two cells). Coordinates are (x, y) in pixels of the canvas.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masking.images.geometry import depth
from masking.segmenter.layers import as_tokens

STRIDES = (4, 8, 16)
"""Pixels of the canvas per cell of the features that `mini` computes with."""
SOFT = (0.02, 0.08, 0.3)
"""Widths of the soft distances to a click, as a share of the canvas' longer side."""
DISC = 2.5
"""Radius of the disc round a click, in cells of stride 4: 10 pixels."""
CLICK_DEPTHS = 3
"""Numbers that say how deep the clicks lie in a mask."""


class Prompt(NamedTuple):
    """N prompt sets in pixels of the canvas."""

    points: Tensor
    """(N, P, 2) float32 (x, y); the centre of the first pixel is (0.5, 0.5)."""
    labels: Tensor
    """(N, P) int64: 1 foreground, 0 background, -1 filler."""
    boxes: Tensor
    """(N, 4) float32 x1 y1 x2 y2; NaN: no box."""
    logits: Tensor | None
    """(N, H / 4, W / 4) float32 of an earlier answer, canvas H x W; a row of NaN: none."""


class PromptMaps(nn.Module):
    """Draws prompts at one stride; it has no parameters."""

    CHANNELS = 2 * (1 + len(SOFT)) + 2 + 2 + 4

    def forward(self, keys: Tensor, prompt: Prompt, stride: int) -> Tensor:
        """Draw prompts as (N, CHANNELS, h, w) float32, beside unit keys (N, K, h, w)."""
        n, _, h, w = keys.shape
        x = (torch.arange(w, device=keys.device) + 0.5) * stride
        y = (torch.arange(h, device=keys.device)[:, None] + 0.5) * stride
        earlier = _earlier_mask(prompt.logits, n, h, w, keys.device)
        kinds = [prompt.labels == label for label in (1, 0)]
        maps = [
            *_distances(prompt.points, kinds, x, y, stride),
            *_box(prompt.boxes, x, y),
            *earlier,
            *_similarities(keys, prompt.points / stride, kinds, *earlier),
        ]
        return torch.stack(maps, dim=-1).permute(0, 3, 1, 2)  # channels last


def _distances(
    points: Tensor, kinds: list[Tensor], x: Tensor, y: Tensor, stride: int
) -> list[Tensor]:
    """Draw discs round the clicks of each kind, and soft distances to the nearest, of any width."""
    px, py = points.unbind(-1)
    squared = (x - px[..., None, None]) ** 2 + (y - py[..., None, None]) ** 2
    far = squared.new_full((len(points), 1, len(y), len(x)), 1e9)  # there may be no click at all
    # A disc of less than a cell would fall between the centres of the coarse strides.
    radius = max(DISC * STRIDES[0], 0.75 * stride)
    maps = []
    for of_kind in kinds:
        some = torch.where(of_kind[..., None, None], squared, 1e9)
        nearest = torch.cat([some, far], dim=1).amin(dim=1)
        maps.append(((radius - nearest.sqrt()) / stride + 0.5).clamp(0, 1))
        for share in SOFT:
            width = share * max(len(x), len(y)) * stride
            # Not below e^-30: CPUs take a hundred times as long over denormal numbers.
            maps.append((nearest / (-2 * width**2)).clamp(min=-30).exp())
    return maps


def _box(boxes: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
    """Draw the inside of the box and the distance to its edge, positive inside; 0 without a box."""
    x1, y1, x2, y2 = (side[:, None, None] for side in boxes.unbind(1))
    inside = torch.minimum(torch.minimum(x - x1, x2 - x), torch.minimum(y - y1, y2 - y))
    inside = inside.nan_to_num(0)
    return [(inside > 0).to(inside.dtype), torch.tanh(inside / 32)]


def _earlier_mask(
    logits: Tensor | None, n: int, h: int, w: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the earlier mask from -1 to 1, and 1 where there is one; (N, h, w) each, else 0."""
    if logits is None:
        nothing = torch.zeros(n, h, w, device=device)
        return nothing, nothing
    given = logits.isfinite().all(dim=2).all(dim=1)
    p = torch.sigmoid(logits.nan_to_num(0).clamp(-30, 30))[:, None]
    p = F.avg_pool2d(p, logits.shape[-1] // w)[:, 0]
    known = given[:, None, None].expand(n, h, w).to(p.dtype)
    return (2 * p - 1) * known, known


def _similarities(
    keys: Tensor, points: Tensor, kinds: list[Tensor], mask: Tensor, known: Tensor
) -> list[Tensor]:
    """Return the cosine of every cell with what each kind of click is on, and with two means.

    The largest cosine counts where a kind has several clicks. The means are of the inside and of
    the outside of the earlier mask. A cosine is 0 where there is nothing to compare with.
    """
    n, _, h, w = keys.shape
    flat = as_tokens(keys)
    x, y = points.unbind(-1)
    grid = torch.stack([2 * x / w - 1, 2 * y / h - 1], dim=-1)[:, None]
    clicked = F.grid_sample(keys.float(), grid, align_corners=False, padding_mode="border")[:, :, 0]
    shares = torch.stack([1 + mask, 1 - mask], dim=-1).view(n, h * w, 2)
    means = flat.transpose(1, 2) @ shares.to(flat.dtype)
    wanted = F.normalize(torch.cat([clicked, means.float()], dim=2), dim=1)
    cosine = flat @ wanted.to(flat.dtype)  # (N, h * w, P + 2)
    maps = []
    for of_kind in kinds:
        hit = torch.where(of_kind[:, None], cosine[..., :-2], -1)
        largest = F.pad(hit, (0, 1), value=-1.0).amax(dim=-1)
        maps.append(torch.where(of_kind.any(dim=1)[:, None], largest, 0))
    maps += cosine[..., -2:].unbind(-1)
    foreground, background, inside, outside = (part.view(n, h, w).float() for part in maps)
    return [foreground, background, inside * known, outside * known]


def click_depths(p: Tensor, prompt: Prompt) -> Tensor:
    """Measure how deep the clicks lie in each mask, at stride 8: at stride 4 it takes four times
    as long.

    Args:
        p: (N, M, H / 4, W / 4) probabilities of M masks, on a canvas of H x W pixels.
        prompt: the clicks.

    Returns:
        (N, M, CLICK_DEPTHS) float32: the depth of the deepest and of the least deep positive click
        as shares of the mask's greatest depth; and that depth as a share of the map's longer side.
    """
    n, outputs = p.shape[:2]
    halved = F.avg_pool2d(p, 2)
    depths = depth((halved > 0.5).flatten(0, 1)).view_as(halved)
    most = depths.amax(dim=(2, 3))
    h, w = depths.shape[2:]
    x, y = (prompt.points / STRIDES[1]).long().unbind(dim=-1)  # (N, P)
    cells = (y.clamp(0, h - 1) * w + x.clamp(0, w - 1))[:, None].expand(n, outputs, -1)
    share = depths.flatten(2).gather(2, cells) / most[..., None].clamp(min=1)  # (N, M, P)
    positive = (prompt.labels == 1)[:, None]
    deepest = F.pad(torch.where(positive, share, 0), (0, 1)).amax(dim=2)
    least = F.pad(torch.where(positive, share, 1), (0, 1), value=1.0).amin(dim=2)
    return torch.stack([deepest, least, most / max(h, w)], dim=2)
