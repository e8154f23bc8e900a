"""One training step of the part of `mini` that follows objects through a clip.

The masks of a clip's first frame are given, or come from simulated clicks; those of its last frame
are known beforehand in some clips, as if a person had corrected it. On each further frame memory is
read, the decoder answers for all objects, which compete, and the answer is remembered.
Gradients pass through the decoder and through the keys with which memory is read, not through
remembered masks.

Shapes: B clips of T frames of S x S pixels, N objects of all clips, h x w cells of stride 4.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from masking.images.geometry import iou
from masking.segmenter.matching import compete, distances, recalled, sure_logits, weights
from masking.segmenter.mini import Mini
from masking.segmenter.prompt_maps import Prompt
from masking.training.clicks import PERTURB_DRAWS, corrective, perturb, random_clicks
from masking.training.noise import mix, noise
from masking.training.steps import PromptConfig, Trainee, mask_loss

_GIVEN, _CLICK, _STALE, _AWAY, _FIRST = 1, 2, 3, 4, 5
_FRAMES = 100  # streams of random numbers of each frame, from the last on
_POINT, _WRONG = 0.6, 0.04  # shares of tracked frames with a carried point, and with a wrong one
_APART_STREAM, _APART = 7, 0.2  # stream and share of clips whose objects do not compete
_ENDS_STREAM, _ENDS = 8, 0.25  # stream and share of clips whose last frame is known, too
_EXPECTED = 1.0  # weight of the loss of what memory expects


@dataclass(frozen=True)
class ClipBatch:
    """A rank's part of a global batch of clips."""

    images: Tensor
    """(B, T, 3, S, S) uint8 RGB."""
    labels: Tensor
    """(B, T, S, S) uint8: 0 no object, 1.. objects that are seen on the first frame, 255 void."""
    seeds: Tensor
    """(B,) int64: all randomness of a clip depends on its seed."""
    global_size: int
    """Clips of the global batch over all ranks."""


class ClipTrainee(Trainee):
    """A `Mini` whose forward pass is a whole step on clips."""

    def forward(self, follow: Callable[[Mini], Any]) -> Any:  # type: ignore[override]
        """Return `follow(network)`."""
        return follow(self.network)


def gradients(
    model: Any,
    batch: ClipBatch,
    config: PromptConfig,
    precision: Literal["float32", "bfloat16"],
    world: int = 1,
) -> Tensor:
    """Add the gradient of the global batch's mean loss to `.grad`, forward and backward.

    Returns:
        (4,) float64 sums over clips: of the loss, of the IoU on the frame after the first and on
        the last, and of the error of the predicted IoU; then the number of clips.
    """
    device = batch.images.device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        loss, sums = model(lambda network: follow(network, batch, config))
    (loss * (world / batch.global_size)).backward()
    return sums


def follow(network: Mini, batch: ClipBatch, config: PromptConfig) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses over clips, and the sums of `gradients`."""
    return _Following(network, batch, config).run()


class _Following:
    """A batch of clips that is followed frame by frame."""

    def __init__(self, network: Mini, batch: ClipBatch, config: PromptConfig) -> None:
        assert network.memory is not None
        self.network, self.part, self.config = network, network.memory, config
        b, t = batch.images.shape[:2]
        self.clips, self.frames = b, t
        with torch.no_grad():
            features = network.encode(batch.images.flatten(0, 1).float())
        self.features = tuple(part.unflatten(0, (b, t)) for part in features)
        keys = self.part.matching(features).unflatten(0, (b, t))
        self.grid = (keys.shape[-2], keys.shape[-1])
        self.keys = keys.flatten(3).transpose(2, 3)  # (B, T, M, C)
        device = batch.images.device
        present = [
            (clip, number)
            for clip in range(b)
            for number in batch.labels[clip, 0].unique().tolist()
            if 0 < number < 255
        ]
        self.rows = torch.tensor([clip for clip, _ in present], device=device)
        numbers = torch.tensor([number for _, number in present], device=device)
        full = batch.labels[self.rows] == numbers[:, None, None, None]  # (N, T, S, S)
        stride = network.mask_stride
        self.target = F.avg_pool2d(full.float(), stride)  # (N, T, h, w)
        void = F.avg_pool2d((batch.labels == 255).float(), stride)
        self.weight = (1 - void)[self.rows]
        most = self.target.amax(dim=(2, 3), keepdim=True).clamp(max=0.5)
        self.truth = (self.target >= most) & (self.target > 0)
        self.ignore = (self.weight < 0.5) & ~self.truth
        self.stride = stride
        self.seeds = mix(batch.seeds)[self.rows] + numbers
        self.seeds = mix(self.seeds)
        self.bias = distances(self.grid, device)
        ends = noise(mix(batch.seeds) + _ENDS_STREAM, 1)[:, :1] < _ENDS
        self.last_known = ends[self.rows].float()  # (N, 1)
        self.last_shares = self._pooled(self.target[:, -1])
        self.centred = self._noise(_FIRST, 1)[:, 0] < config.centred
        # Some objects are followed as if the others of their clip were not known.
        together = noise(mix(batch.seeds) + _APART_STREAM, 1)[:, 0] >= _APART
        same = (self.rows[:, None] == self.rows) & together[self.rows]
        self.rivals = same & ~torch.eye(len(same), dtype=torch.bool, device=device)

    def _noise(self, stream: int, *shape: int) -> Tensor:
        return noise(self.seeds + stream, *shape)

    def _pixels(self, cells: Tensor) -> Tensor:
        return (cells + 0.5) * self.stride - 0.5

    def _of(self, frame: int) -> tuple[Tensor, ...]:
        return tuple(part[self.rows, frame] for part in self.features)

    def run(self) -> tuple[Tensor, Tensor]:
        """Follow all objects; see `follow`."""
        shares = [self._pooled(self._first())]
        losses, reached_ious, errors = [], [], []
        for frame in range(1, self.frames):
            maps = self._recall(frame, shares)
            logits, score = self._decode(frame, maps)
            fought = compete(logits[:, 0], self.rivals)
            reached = iou(self.truth[:, frame], fought.detach() > 0, self.ignore[:, frame])
            seen = self.truth[:, frame].flatten(1).any(dim=1)
            reached = torch.where(seen, reached, 0)
            losses.append(self._loss(frame, fought, maps, score, reached))
            errors.append((score[:, 0].detach() - reached).abs())
            reached_ious.append(torch.where(seen, reached, torch.nan))
            shares.append(self._pooled(torch.sigmoid(fought.detach())))
        loss = torch.stack(losses).mean(dim=0)
        per_clip = loss.new_zeros(self.clips).index_add(0, self.rows, loss)
        counts = loss.new_zeros(self.clips).index_add(0, self.rows, torch.ones_like(loss))
        total = (per_clip / counts.clamp(min=1)).sum()
        ious = (reached_ious[at].nanmean().nan_to_num() for at in (0, -1))  # none may be seen
        sums = [total.detach(), *(self.clips * mean for mean in ious)]
        sums += [torch.stack(errors).mean() * self.clips, torch.full_like(total, self.clips)]
        return total, torch.stack(sums).double().detach()

    def _pooled(self, p: Tensor) -> Tensor:
        """Return probabilities (N, h, w) as shares of the cells of memory, (N, M)."""
        return F.adaptive_avg_pool2d(p[:, None].float(), self.grid)[:, 0].flatten(1)

    @torch.no_grad()
    def _first(self) -> Tensor:
        """Return the probabilities (N, h, w) of the first frame: the truth, a faulty one, or the
        answer to a click or two."""
        truth, target = self.truth[:, 0], self.target[:, 0]
        h, w = truth.shape[-2:]
        n = len(truth)
        points = torch.zeros(n, 2, 2, device=truth.device)
        labels = torch.full((n, 2), -1, device=truth.device)
        inside = truth & ~self.ignore[:, 0]
        at = random_clicks(inside, self._noise(_CLICK, h, w), self.centred)
        points[:, 0], labels[:, 0] = self._pixels(at), 1
        boxes = torch.full((n, 4), torch.nan, device=truth.device)
        features, rows = self._of(0), torch.arange(n, device=truth.device)
        logits, scores = self.network.decode(features, None, points, labels, boxes, None)
        answer = logits[rows, 1 + scores[:, 1:].argmax(dim=1)]
        at, label = corrective(
            truth, answer > 0, self.ignore[:, 0], self._noise(_AWAY, h, w), self.centred
        )
        points[:, 1], labels[:, 1] = self._pixels(at), label
        logits, _ = self.network.decode(features, None, points, labels, boxes, answer)
        kind = self._noise(_GIVEN, 1)[:, :1, None]
        given = torch.where(kind < 0.5, torch.sigmoid(answer), torch.sigmoid(logits[:, 0]))
        noisy = torch.sigmoid(perturb(target, self._noise(_STALE, PERTURB_DRAWS)))
        # A first answer that shows something else would teach to follow another thing.
        wrong = iou(truth, given > 0.5, self.ignore[:, 0]) < 0.5
        given = torch.where(wrong[:, None, None], target, given)
        return torch.where(kind < 0.7, given, torch.where(kind < 0.8, noisy, target))

    def _recall(self, frame: int, shares: list[Tensor]) -> Tensor:
        """Return the maps from memory (N, MAPS, h / 2, w / 2): of the first frame, the last two,
        and the clip's end where that is known."""
        prompted, weight = self._resembling(frame, 0, shares[0])
        if frame < self.frames - 1:
            more, heavier = self._resembling(frame, self.frames - 1, self.last_shares)
            prompted = prompted + self.last_known * more
            weight = weight + self.last_known * heavier
        total, total_weight = prompted, weight
        for old in range(max(1, frame - 2), frame):
            more, heavier = self._resembling(frame, old, shares[old])
            total, total_weight = total + more, total_weight + heavier
        mean = total / total_weight.clamp(min=1e-20)
        others = (self.rivals.float() @ mean).clamp(max=1)
        parts = (mean, total_weight, prompted / weight.clamp(min=1e-20), weight, others)
        return recalled(*(part.unflatten(1, self.grid) for part in parts))

    def _resembling(self, frame: int, old: int, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each cell of a frame the sums (N, M) of the shares of the cells of an older
        frame, times how much these resemble it, and of how much they do."""
        new = self.keys[:, frame]
        with torch.autocast(new.device.type, enabled=False):
            pair = weights(self.keys[:, old], new, self.bias)  # (B, M, M)
            rows = zip(self.rows.tolist(), shares, strict=True)
            found = torch.stack([pair[row].T @ part for row, part in rows])
            return found, pair.sum(dim=1)[self.rows]

    def _decode(self, frame: int, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, 1, h, w) and predicted IoU (N, 1) on a frame."""
        truth, ignore = self.truth[:, frame], self.ignore[:, frame]
        n, h, w = truth.shape
        stream = _FRAMES * (frame + 1)
        kind = self._noise(stream, 1)[:, 0]
        inside = truth & ~ignore
        seen = inside.flatten(1).any(dim=1)
        expected = F.interpolate(maps[:, :1], (h, w), mode="bilinear")[:, 0]
        away = F.max_pool2d(truth[:, None].float(), 13, 1, 6)[:, 0].bool() & ~truth & ~ignore
        wrong = (kind < _WRONG) & away.flatten(1).any(dim=1)
        region = torch.where(wrong[:, None, None], away, inside)
        at = random_clicks(region, self._noise(stream + 1, h, w), self.centred)
        pointed = (kind < _POINT) & (seen | wrong)
        points, labels = self._pixels(at)[:, None], torch.where(pointed, 1, -1)[:, None]
        boxes = torch.full((n, 4), torch.nan, device=truth.device)
        prompt = Prompt(points + 0.5, labels, boxes, sure_logits(expected))
        return self.part.decoder(self._of(frame), prompt, maps)

    def _loss(
        self, frame: int, logits: Tensor, maps: Tensor, score: Tensor, reached: Tensor
    ) -> Tensor:
        """Return the loss (N,) of the answers on a frame."""
        target, weight = self.target[:, frame], self.weight[:, frame]
        # Both sides count by the object's size on the first frame: it may not be seen on this one.
        area = (self.target[:, 0] * self.weight[:, 0]).sum(dim=(1, 2)).clamp(min=16)
        config = replace(self.config, balance=0.0)
        masks = mask_loss(logits[:, None], target, weight, config, area)[:, 0]
        coarse = F.adaptive_avg_pool2d(target, self.grid)
        share = maps[:, 0].float().clamp(1e-4, 1 - 1e-4)
        cross = -(coarse * share.log() + (1 - coarse) * (1 - share).log())
        ratio = self.grid[0] * self.grid[1] / target[0].numel()
        expected = _EXPECTED * cross.sum(dim=(1, 2)) / (area * ratio).clamp(min=4)
        scores = self.config.iou * (score[:, 0] - reached).square()
        return masks + expected + scores
