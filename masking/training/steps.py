"""One training step of a promptable segmenter, and its evaluation by simulated clicks.

Training follows SAM (Kirillov et al., 2304.02643, appendix A): many prompts share an image's
embedding; a prompt starts as a click, a noisy box or a stale mask, then gets corrective clicks
from its error, each round with the logits of the last. Errors, targets and clicks live at the size
of the low-res logits, so a step never leaves its device.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.profiler import record_function

from masking.images.geometry import deepest, iou
from masking.segmenter.sam import Prompts, Segmenter
from masking.training.clicks import PERTURB_DRAWS, corrective, noisy_box, perturb, random_clicks
from masking.training.pairs import Pair

Precision = Literal["float32", "bfloat16"]
Decode = Callable[..., tuple[Tensor, Tensor]]
ENOUGH = 0.85
"""The IoU from which a mask is good enough (Sofiiuk et al., 2102.06583, among others)."""
FEW = 5
"""Clicks that an object gets in an evaluation, however good its mask is."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How prompts are simulated in training, and what the masks are judged by."""

    rounds: tuple[int, int] = (3, 5)
    """Fewest and most rounds of a step; each but the first adds a corrective click."""
    graded: int = 3
    """Rounds of a step that are learnt from: the first, the last and some between."""
    boxes: float = 0.15
    """Share of the prompts that start with a noisy box instead of a click."""
    stale: float = 0.15
    """Share that start with a click and a shifted, warped or wrong mask, as tracking gives them."""
    blind: float = 0.2
    """Share that never see their earlier logits."""
    centred: float = 0.5
    """Share whose clicks are near the middle of what they point at, as most people click and as an
    evaluation does; the others are anywhere on it."""
    focal: float = 20.0
    """Weight of the focal loss."""
    balance: float = 1.0
    """Of the focal loss: 1 counts object and background alike, however small the object is, which
    keeps a new network from answering "nothing"; 0 every cell alike, against the object's area:
    then masks of small objects do not come out too large."""
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
    """A rank's part of a global batch: B images with K objects each."""

    images: Tensor
    """(B, 3, S, S) uint8 RGB."""
    masks: Tensor
    """(B, K, S, S) bool."""
    ignore: Tensor
    """(B, S, S) bool: pixels that are neither right nor wrong."""
    seeds: Tensor
    """(B,) int64: what all randomness of an image hangs on."""
    global_size: int
    """Images of the global batch over all ranks."""


class Trainee(nn.Module):
    """A network whose forward pass is a whole conversation: encode once, then rounds of prompts.

    One forward pass is what DistributedDataParallel wants of a step.
    """

    def __init__(self, network: Any) -> None:
        """`network` is a `masking.segmenter.sam.Network` that is a module."""
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, talk: Callable[[tuple[Tensor, ...], Decode], Any]) -> Any:
        """Images (B, 3, S, S) float32; what `talk` makes of their features and the decoder."""
        with record_function("encode"):
            features = self.network.encode(images)
        return talk(features, self.network.decode)


def gradients(
    model: nn.Module,
    batch: Batch,
    config: PromptConfig,
    *,
    stride: int,
    rounds: int,
    graded: Collection[int],
    precision: Precision,
    world: int = 1,
) -> Tensor:
    """Forward and backward: leaves in `.grad` the gradient of the mean loss of the global batch.

    Args:
        model: a Trainee, maybe wrapped for data parallelism.
        stride: pixels of a cell of the low-res logits.
        rounds: of this step, the same on every rank.
        graded: those that are learnt from.
        world: ranks, whose gradients are averaged.

    Returns:
        (5,) float64 on the batch's device, detached: sums over images of the loss, of IoU after
        the first and after the last round, of the error of the predicted IoU; images.
    """
    device = batch.images.device

    def talk(features: tuple[Tensor, ...], decode: Decode) -> tuple[Tensor, Tensor]:
        return _Conversation(batch, config, stride).run(features, decode, rounds, graded)

    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        loss, sums = model(batch.images.float(), talk)
    with record_function("backward"):
        (loss * (world / batch.global_size)).backward()
    return sums


class _Conversation:
    """The rounds of one step. N = B x K prompts; all maps are (N, h, w) of the low-res logits."""

    def __init__(self, batch: Batch, config: PromptConfig, stride: int) -> None:
        self.config, self.stride = config, stride
        b, k, height, width = batch.masks.shape
        self.images, self.n = b, b * k
        device = batch.masks.device
        self.frames = torch.arange(b, device=device).repeat_interleave(k)
        share = F.avg_pool2d(batch.masks.view(self.n, 1, height, width).float(), stride)[:, 0]
        void = F.avg_pool2d(batch.ignore[:, None].float(), stride)[:, 0]
        self.target = share
        self.weight = (1 - void)[self.frames]
        self.truth = share >= share.amax(dim=(1, 2), keepdim=True).clamp(max=0.5)
        self.ignore = (self.weight < 0.5) & ~self.truth
        self.seeds = _mix(_mix(batch.seeds)[:, None] + torch.arange(k, device=device)).flatten()
        self.full = batch.masks.view(self.n, height, width)
        self.centred = self._noise(5, 1)[:, 0] < config.centred

    def _noise(self, what: int, *shape: int) -> Tensor:
        return noise(self.seeds + what, *shape)

    def _pixels(self, cells: Tensor) -> Tensor:
        """Cells of the logits to the pixels at their centres."""
        return (cells + 0.5) * self.stride - 0.5

    def run(
        self, features: tuple[Tensor, ...], decode: Decode, rounds: int, graded: Collection[int]
    ) -> tuple[Tensor, Tensor]:
        """All rounds; returns the sum of losses over images, and the sums of a batch."""
        points, labels, boxes, logits = self._start(rounds)
        # A lone click may mean several things: the single mask would learn a mean of them.
        ambiguous = boxes.isnan().all(dim=1) & logits.isnan().all(dim=2).all(dim=1)
        features = tuple(part[self.frames] for part in features)  # once for all rounds
        h, w = self.truth.shape[-2:]
        blind = self._noise(7, 1)[:, 0] < self.config.blind
        losses, ious, misses = [], [], []
        for number in range(rounds):
            with torch.set_grad_enabled(number in graded), record_function("decode"):
                answer, scores = decode(features, None, points, labels, boxes, logits)
            reached = iou(self.truth[:, None], answer.detach() > 0, self.ignore[:, None])
            if number in graded:
                single = (~ambiguous).float() if number == 0 else torch.ones_like(scores[:, 0])
                losses.append(self._loss(answer, scores, reached, single))
                misses.append((scores.detach() - reached).abs().mean())
            # As in use: the best of three by its own judgement at first, then the single mask.
            chosen = (
                1 + scores[:, 1:].argmax(dim=1) if number == 0 else torch.zeros_like(labels[:, 0])
            )
            rows = torch.arange(self.n, device=chosen.device)
            current = answer.detach()[rows, chosen]
            ious.append(reached[rows, chosen])
            if number + 1 < rounds:
                draws = self._noise(100 + number, h, w)
                at, label = corrective(self.truth, current > 0, self.ignore, draws, self.centred)
                points[:, number + 1] = self._pixels(at)
                labels[:, number + 1] = label
                logits = torch.where(blind[:, None, None], torch.nan, current)
        loss = torch.stack(losses).mean(dim=0).view(self.images, -1).mean(dim=1).sum()
        per = self.n // self.images
        facts = [loss.detach(), ious[0].sum() / per, ious[-1].sum() / per]
        facts += [torch.stack(misses).mean() * self.images, torch.full_like(loss, self.images)]
        return loss, torch.stack(facts).double().detach()

    def _start(self, rounds: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The prompts of the first round: points and labels (filler behind), boxes, logits."""
        device, (h, w) = self.truth.device, self.truth.shape[-2:]
        kind = self._noise(1, 1)[:, 0]
        boxed = kind < self.config.boxes
        stale = (kind >= self.config.boxes) & (kind < self.config.boxes + self.config.stale)
        points = torch.zeros(self.n, rounds, 2, device=device)
        labels = torch.full((self.n, rounds), -1, device=device)
        at = random_clicks(self.truth & ~self.ignore, self._noise(2, h, w), self.centred)
        points[:, 0] = self._pixels(at)
        labels[:, 0] = torch.where(boxed, -1, 1)
        boxes = noisy_box(self.full, self._noise(3, 4))
        boxes = torch.where(boxed[:, None], boxes, torch.nan)
        logits = perturb(self.target, self._noise(4, PERTURB_DRAWS))
        return points, labels, boxes, torch.where(stale[:, None, None], logits, torch.nan)

    def _loss(self, logits: Tensor, scores: Tensor, reached: Tensor, single: Tensor) -> Tensor:
        """(N,): of the single mask where `single` (N,) is 1, of the best of the three, and of all
        predicted IoUs."""
        losses = mask_loss(logits, self.target, self.weight, self.config)
        masks = single * losses[:, 0] + losses[:, 1:].amin(dim=1)
        return masks + self.config.iou * (scores - reached).square().sum(dim=1)


def mask_loss(logits: Tensor, target: Tensor, weight: Tensor, config: PromptConfig) -> Tensor:
    """Loss of each mask: focal (Lin et al., 1708.02002) and dice (Milletari et al., 1606.04797).

    Args:
        logits: (N, K, h, w) float32.
        target: (N, h, w) float32, the share of a cell that is the object.
        weight: (N, h, w) float32, the share of a cell that counts.

    Returns:
        (N, K) float32.
    """
    t, inside = target[:, None].expand_as(logits), (target * weight)[:, None]
    outside, every = ((1 - target) * weight)[:, None], weight[:, None]
    p = torch.sigmoid(logits)
    cross = F.binary_cross_entropy_with_logits(logits, t, reduction="none")
    focal = (p - t).square() * cross
    object_area, rest = (part.sum(dim=(2, 3)) + 1e-3 for part in (inside, outside))
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


def _mix(x: Tensor) -> Tensor:
    """A bijection of int64 that scatters its bits (splitmix64's finalizer, wrapping)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ _right(x, shift)) * factor
    return x ^ _right(x, 31)


def _right(x: Tensor, shift: int) -> Tensor:
    """Shift int64 as if it had no sign: torch's own would copy it."""
    return (x >> shift) & ((1 << (64 - shift)) - 1)


def noise(seeds: Tensor, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1) that hang on nothing but seed and place.

    Args:
        seeds: (N,) int64.
        shape: of the numbers of each.

    Returns:
        (N, *shape) float32 on the device of the seeds.
    """
    count = torch.Size(shape).numel()
    places = torch.arange(count, device=seeds.device) * -0x61C8864680B583EB
    bits = _mix(_mix(seeds)[:, None] + places)
    return ((bits >> 40) & 0xFFFFFF).float().div(1 << 24).view(len(seeds), *shape)


def measure(
    segmenter: Segmenter, pair: Pair, clicks: int, enough: float = ENOUGH
) -> NDArray[np.float64]:
    """IoU of each object after each of up to `clicks` simulated clicks, `clicks.deepest`.

    As in use: of the first click the best of three masks, then the single mask, each with the
    logits of the one before. An object whose mask is good enough after five gets no more.

    Returns:
        (K, clicks): of an object that gets no more, the last IoU stays.
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
        asked = [k for k in range(len(truth)) if number < FEW or ious[k, number - 1] < enough]
        for k in list(asked):
            click = deepest(pair.masks[k], masks[k].numpy() if number else None, pair.ignore)
            if click is None:  # nothing is wrong
                asked.remove(k)
                continue
            points[k].append(click[:2])
            labels[k].append(click[2])
        if not asked:
            continue
        prompts = Prompts.of(
            embeddings.frame_size,
            [points[k] for k in asked],
            [labels[k] for k in asked],
            mask_input=[logits[k] for k in asked],
        )
        found = segmenter.decode(embeddings, prompts, "single" if number else "best")
        for row, k in enumerate(asked):
            masks[k] = found.masks[row, 0].cpu()
            logits[k] = found.low_res_logits[row, 0].cpu().numpy()
        ious[asked, number] = iou(truth[asked], masks[asked], void).numpy()
    return ious


def summarize(ious: NDArray[np.float64], enough: float = ENOUGH) -> NDArray[np.float64]:
    """(5,) sums over objects of what `measure` found: IoU after 1, 3 and 5 clicks, the clicks that
    it took to be good enough (all of them, if it never was), and how many objects there are."""
    good = ious >= enough
    took = np.where(good.any(axis=1), good.argmax(axis=1) + 1, ious.shape[1])
    return np.array([*ious[:, [0, 2, 4]].sum(axis=0), took.sum(), len(ious)])
