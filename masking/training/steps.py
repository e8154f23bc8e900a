"""One training step of a promptable segmenter.

It follows SAM (Kirillov et al., 2304.02643, appendix A): many prompts share an image's embedding;
a prompt starts as a click, a noisy box or a stale mask, and gets a corrective click on its error in
each further round, with the logits of the round before. Errors, targets and clicks are computed at
the size of the low-resolution logits, on the device.

Shapes: B images of S x S pixels with K objects each, N = B * K prompts, h x w cells of the
low-resolution logits.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from masking.images.geometry import iou
from masking.training.clicks import PERTURB_DRAWS, corrective, noisy_box, perturb, random_clicks
from masking.training.noise import mix, noise

_KIND, _CLICK, _BOX, _STALE, _CENTRED, _BLIND, _CORRECTIVE = 1, 2, 3, 4, 5, 7, 100
"""Streams of random numbers of a prompt; each corrective round has its own, from the last on."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How prompts are simulated in training, and how the masks are graded."""

    rounds: tuple[int, int] = (3, 5)
    """Smallest and largest number of rounds in a step; each round after the first adds a corrective
    click."""
    graded: int = 3
    """Number of rounds of a step whose masks count in the loss: the first, the last and some
    between."""
    boxes: float = 0.15
    """Share of the prompts that start with a noisy box instead of a click."""
    stale: float = 0.15
    """Share of the prompts that start with a click and a shifted, warped or wrong mask, as tracking
    produces them."""
    blind: float = 0.2
    """Share of the prompts that never get the logits of the round before."""
    centred: float = 0.5
    """Share of the prompts whose clicks are near the middle of the region they are meant for, as
    most people click and as an evaluation does; other clicks are anywhere in it."""
    focal: float = 20.0
    """Weight of the focal loss."""
    balance: float = 1.0
    """Weight of the background in the focal loss, from 0 to 1. 1: it counts as much as the object,
    however small that is, which keeps a new network from predicting empty masks. 0: each cell
    counts as much as a cell of the object, which keeps masks of small objects from becoming too
    large."""
    dice: float = 1.0
    """Weight of the dice loss."""
    bce: float = 1.0
    """Weight of the plain binary cross-entropy."""
    iou: float = 1.0
    """Weight of the squared error of the predicted IoU."""

    def __post_init__(self) -> None:
        """Check ranges."""
        fewest, most = self.rounds
        if not 1 <= fewest <= most:
            raise ValueError(f"prompts.rounds is {self.rounds}; 1 <= fewest <= most is needed")
        if self.graded < 1:
            raise ValueError(f"prompts.graded is {self.graded}; at least 1 is needed")
        for name in ("focal", "dice", "bce", "iou"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"prompts.{name} is {getattr(self, name)}; at least 0 is needed")
        if self.boxes + self.stale > 1:
            raise ValueError(
                f"prompts.boxes and prompts.stale are {self.boxes} and {self.stale}; the two"
                " shares are at most 1 together"
            )
        for name in ("boxes", "stale", "blind", "centred", "balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"prompts.{name} is {getattr(self, name)}; a share is 0 to 1")


@dataclass(frozen=True)
class Batch:
    """A rank's part of a global batch."""

    images: Tensor
    """(B, 3, S, S) uint8 RGB."""
    masks: Tensor
    """(B, K, S, S) bool."""
    ignore: Tensor
    """(B, S, S) bool: pixels that are neither right nor wrong."""
    seeds: Tensor
    """(B,) int64: all randomness of an image depends on its seed."""
    global_size: int
    """Images of the global batch over all ranks."""


@dataclass(frozen=True)
class Rounds:
    """The rounds of prompts of one step, the same on every rank."""

    count: int
    """Number of rounds."""
    graded: Collection[int]
    """Rounds that are learnt from, counted from 0."""


class Trainee(nn.Module):
    """A network whose forward pass is a whole step: encode once, then rounds of prompts.

    DistributedDataParallel synchronises one forward pass a step.
    """

    def __init__(self, network: Any) -> None:
        """Wrap a `masking.segmenter.network.Network` that is a module."""
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, prompt: Callable[[tuple[Tensor, ...], Any], Any]) -> Any:
        """Encode images (B, 3, S, S) float32, and return `prompt(features, network)`."""
        with record_function("encode"):
            features = self.network.encode(images)
        return prompt(features, self.network)


def gradients(
    model: nn.Module,
    batch: Batch,
    config: PromptConfig,
    rounds: Rounds,
    precision: Literal["float32", "bfloat16"],
    world: int = 1,
) -> Tensor:
    """Add the gradient of the global batch's mean loss to `.grad`, forward and backward.

    Args:
        model: a `Trainee`, wrapped for data parallelism or not.
        batch: this rank's part of the global batch.
        config: how prompts are simulated and graded.
        rounds: the rounds of this step.
        precision: bfloat16 is autocast.
        world: number of ranks, whose gradients are averaged.

    Returns:
        (5,) float64 on the batch's device, detached. Sums over images of the loss, of the IoU after
        the first and after the last round, and of the error of the predicted IoU; then the number
        of images.
    """

    def prompt(features: tuple[Tensor, ...], network: Any) -> tuple[Tensor, Tensor]:
        return _Prompting(batch, config, network.mask_stride).run(features, network.decode, rounds)

    device = batch.images.device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        loss, sums = model(batch.images.float(), prompt)
    with record_function("backward"):
        (loss * (world / batch.global_size)).backward()
    return sums


class _Prompting:
    """The targets of one step, and its rounds of prompts. All maps are (N, h, w)."""

    def __init__(self, batch: Batch, config: PromptConfig, stride: int) -> None:
        self.config, self.stride = config, stride
        b, k, height, width = batch.masks.shape
        self.images, self.n = b, b * k
        device = batch.masks.device
        self.frames = torch.arange(b, device=device).repeat_interleave(k)
        self.full = batch.masks.view(self.n, height, width)
        self.target = F.avg_pool2d(self.full[:, None].float(), stride)[:, 0]
        void = F.avg_pool2d(batch.ignore[:, None].float(), stride)[:, 0]
        self.weight = (1 - void)[self.frames]
        self.truth = self.target >= self.target.amax(dim=(1, 2), keepdim=True).clamp(max=0.5)
        self.ignore = (self.weight < 0.5) & ~self.truth
        self.seeds = mix(mix(batch.seeds)[:, None] + torch.arange(k, device=device)).flatten()
        self.centred = self._noise(_CENTRED, 1)[:, 0] < config.centred

    def _noise(self, stream: int, *shape: int) -> Tensor:
        return noise(self.seeds + stream, *shape)

    def _pixels(self, cells: Tensor) -> Tensor:
        """Convert cells of the logits to the pixels at their centres."""
        return (cells + 0.5) * self.stride - 0.5

    def run(
        self,
        features: tuple[Tensor, ...],
        decode: Callable[..., tuple[Tensor, Tensor]],
        rounds: Rounds,
    ) -> tuple[Tensor, Tensor]:
        """Decode all rounds; return the sum of losses over images, and the sums of `gradients`."""
        points, labels, boxes, logits = self._first_prompts(rounds.count)
        # A click by itself may mean several things: the single mask would learn a mean of them.
        ambiguous = boxes.isnan().all(dim=1) & logits.isnan().all(dim=2).all(dim=1)
        features = tuple(part[self.frames] for part in features)  # once for all rounds
        blind = self._noise(_BLIND, 1)[:, 0] < self.config.blind
        rows = torch.arange(self.n, device=labels.device)
        losses, ious, score_errors = [], [], []
        for number in range(rounds.count):
            graded = number in rounds.graded
            with torch.set_grad_enabled(graded), record_function("decode"):
                answer, scores = decode(features, None, points, labels, boxes, logits)
            reached = iou(self.truth[:, None], answer.detach() > 0, self.ignore[:, None])
            if graded:
                single = (~ambiguous).float() if number == 0 else torch.ones_like(scores[:, 0])
                losses.append(self._loss(answer, scores, reached, single))
                score_errors.append((scores.detach() - reached).abs().mean())
            # As in use: the best of three by its own judgement at first, then the single mask.
            chosen = (
                1 + scores[:, 1:].argmax(dim=1) if number == 0 else torch.zeros_like(labels[:, 0])
            )
            current = answer.detach()[rows, chosen]
            ious.append(reached[rows, chosen])
            if number + 1 < rounds.count:
                draws = self._noise(_CORRECTIVE + number, *self.truth.shape[-2:])
                at, label = corrective(self.truth, current > 0, self.ignore, draws, self.centred)
                points[:, number + 1] = self._pixels(at)
                labels[:, number + 1] = label
                logits = torch.where(blind[:, None, None], torch.nan, current)
        loss = torch.stack(losses).mean(dim=0).view(self.images, -1).mean(dim=1).sum()
        objects = self.n // self.images
        sums = [loss.detach(), ious[0].sum() / objects, ious[-1].sum() / objects]
        sums += [torch.stack(score_errors).mean() * self.images, torch.full_like(loss, self.images)]
        return loss, torch.stack(sums).double().detach()

    def _first_prompts(self, rounds: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the first round's points and labels (then filler), boxes and logits."""
        device, (h, w) = self.truth.device, self.truth.shape[-2:]
        kind = self._noise(_KIND, 1)[:, 0]
        boxed = kind < self.config.boxes
        stale = (kind >= self.config.boxes) & (kind < self.config.boxes + self.config.stale)
        points = torch.zeros(self.n, rounds, 2, device=device)
        labels = torch.full((self.n, rounds), -1, device=device)
        at = random_clicks(self.truth & ~self.ignore, self._noise(_CLICK, h, w), self.centred)
        points[:, 0] = self._pixels(at)
        labels[:, 0] = torch.where(boxed, -1, 1)
        boxes = noisy_box(self.full, self._noise(_BOX, 4))
        boxes = torch.where(boxed[:, None], boxes, torch.nan)
        logits = perturb(self.target, self._noise(_STALE, PERTURB_DRAWS))
        return points, labels, boxes, torch.where(stale[:, None, None], logits, torch.nan)

    def _loss(self, logits: Tensor, scores: Tensor, reached: Tensor, single: Tensor) -> Tensor:
        """Return the loss (N,) of each prompt.

        It is that of the single mask where `single` (N,) is 1, of the best of the three, and of
        all predicted IoUs.
        """
        losses = mask_loss(logits, self.target, self.weight, self.config)
        masks = single * losses[:, 0] + losses[:, 1:].amin(dim=1)
        return masks + self.config.iou * (scores - reached).square().sum(dim=1)


def mask_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    config: PromptConfig,
    area: Tensor | None = None,
) -> Tensor:
    """Return the loss of each mask: focal (Lin et al., 1708.02002), dice (Milletari et al.,
    1606.04797) and binary cross-entropy.

    Args:
        logits: (N, M, h, w) float32 of M masks.
        target: (N, h, w) float32, the share of a cell that is the object.
        weight: (N, h, w) float32, the share of a cell that counts.
        config: the weights of the losses.
        area: (N,) float32, the size of each object for the focal loss; None: that in the target.

    Returns:
        (N, M) float32.
    """
    t, inside = target[:, None].expand_as(logits), (target * weight)[:, None]
    outside, every = ((1 - target) * weight)[:, None], weight[:, None]
    p = torch.sigmoid(logits)
    cross = F.binary_cross_entropy_with_logits(logits, t, reduction="none")
    focal = (p - t).square() * cross
    object_area, rest = (part.sum(dim=(2, 3)) + 1e-3 for part in (inside, outside))
    if area is not None:
        object_area = area[:, None]
    against = rest**config.balance * object_area ** (1 - config.balance)
    kinds = [
        (focal * part).sum(dim=(2, 3)) / area
        for part, area in ((inside, object_area), (outside, against))
    ]
    overlap = (p * inside).sum(dim=(2, 3))
    total = (p * every).sum(dim=(2, 3)) + inside.sum(dim=(2, 3))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    plain = (cross * every).sum(dim=(2, 3)) / (every.sum(dim=(2, 3)) + 1e-3)
    return config.focal * (kinds[0] + kinds[1]) / 2 + config.dice * dice + config.bce * plain
