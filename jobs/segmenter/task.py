"""Training a promptable segmenter as a task of the epoch loop: settings, data, steps."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.masks import pairs as masked
from jobs.run.config import ConfigError
from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.network import pretrained, start
from jobs.storage.cache import localize
from jobs.storage.location import Location
from jobs.training import steps
from jobs.training.checkpoints import Checkpoints
from jobs.training.ranks import Ranks
from masking.segmenter.sam import Segmenter, resolve
from masking.training.compose import Sample, sample
from masking.training.pairs import ImageError, Pairs, survey
from masking.training.steps import Batch, Trainee, gradients, measure, summarize
from vit import rng


@dataclass(frozen=True)
class Sets:
    """The pairs of both sets."""

    train: Pairs
    val: Pairs


def load(config: FinetuneConfig) -> Sets:
    """Find the pairs on this node, and hold some back."""
    cv2.setNumThreads(0)  # torch's threads have the cores
    found = survey(local(config.data, config.pairs.longest), config.pairs)
    if config.val:
        return Sets(found, survey(local(config.val, config.pairs.longest), config.pairs))
    order = rng.permutation(len(found), "val", config.seed).numpy()
    # One image says little, and may be one that cannot be used.
    count = max(1, min(FEWEST_HELD, len(found) // 5), round(config.val_fraction * len(found)))
    if count >= len(found):
        raise ConfigError(f"--data has {len(found)} images; none is left to train on")
    kept, held = (np.sort(part).tolist() for part in (order[count:], order[:count]))
    return Sets(found.subset(kept), found.subset(held))


def local(paths: Sequence[str], longest: int) -> list[Path]:
    """The same files on this node; of a COCO file in S3 its folder with the images comes along.

    Of a mask run some frames of its videos, the longer side at most `longest` pixels (0: any).
    """
    return [_local(Location.parse(path), longest) for path in paths]


def _local(place: Location, longest: int) -> Path:
    if masked.is_run(place):
        return masked.as_pairs(place, longest)
    if place.local_path is not None or not place.name.endswith(".json"):
        return localize(place)
    folder, name = place.parent, place.name
    if folder.name == "annotations":  # COCO's own layout has the images beside this folder
        folder, name = folder.parent, f"annotations/{name}"
    return localize(folder) / name


class SegmentTask:
    """A promptable segmenter as a task of the epoch loop, on one rank."""

    def __init__(
        self, config: FinetuneConfig, sets: Sets, device: torch.device, ranks: Ranks
    ) -> None:
        """Nothing is read yet."""
        self.config, self.sets, self.device, self.ranks = config, sets, device, ranks
        self.steps_per_epoch = steps.steps_per_epoch(len(sets.train), config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.warmup_steps = round(self.steps_per_epoch * config.warmup_epochs)
        self.ahead = Ahead(self._compose, max(1, int(config.cpus_per_worker)))

    def build(self) -> nn.Module:
        """The network to start from; raises AgreedError when it cannot be had."""
        torch.manual_seed(rng.fold(self.config.seed, "init"))
        checkpoints = Checkpoints(Location.parse(self.config.out) / "checkpoints", token="")
        last = self.ranks.first(checkpoints.latest)
        saved = None if last is None else self.ranks.each(lambda: checkpoints.read(last).weights)
        network = self.ranks.each(lambda: start(self.config, saved))
        self.stride: int = network.mask_stride
        return Trainee(network).to(self.device).to(memory_format=torch.channels_last)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW: the encoder at its share of the rate, no decay of biases and norms."""
        assert isinstance(model, Trainee)
        slow = {id(p) for p in pretrained(model.network, self.config)}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter in model.parameters():
            if parameter.requires_grad:
                peak = self.config.lr * (self.config.encoder_lr if id(parameter) in slow else 1)
                decay = self.config.weight_decay if parameter.ndim > 1 else 0.0
                groups.setdefault((peak, decay), []).append(parameter)
        return torch.optim.AdamW(
            [
                {"params": found, "peak": peak, "lr": peak, "weight_decay": decay}
                for (peak, decay), found in groups.items()
            ],
            fused=True,
        )

    def average(self, model: nn.Module) -> nn.Module | None:
        """A place for the average of the weights, if there is a half-life."""
        return steps.start_average(model) if self.config.ema_half_life > 0 else None

    def decide(self, model: nn.Module, batch: int) -> dict[str, Any]:
        """Choose the precision: bfloat16 wherever the processor multiplies it."""
        precision = resolve(self.config.precision, self.device)
        return {"precision": precision, "data": self._contents()}

    def settle(self, model: nn.Module, facts: dict[str, Any]) -> None:
        """Take over the precision; raises ValueError when the data are not those of the start."""
        if facts["data"] != self._contents():
            raise ValueError(
                f"the data changed since the run was started: {facts['data']} then,"
                f" {self._contents()} now; bring back what was there, or start in another --out"
            )
        self.precision: Literal["float32", "bfloat16"] = facts["precision"]

    def _contents(self) -> dict[str, int]:
        return {"train": len(self.sets.train), "val": len(self.sets.val)}

    def describe(self) -> str:
        """What was settled."""
        sizes = self._contents()
        return (
            f"images: {sizes['train']:,} train, {sizes['val']:,} val\n"
            f"{self.precision} on {self.device.type}"
        )

    def gradients(self, model: nn.Module, epoch: int, index: int, step: int) -> Tensor:
        """Gradient of this rank's part of batch `index` of `epoch`."""
        prompts = self.config.prompts
        draw = np.random.default_rng((self.config.seed % _SEEDS, step))
        fewest, most = prompts.rounds
        rounds = int(draw.integers(fewest, most + 1))
        between = draw.permutation(np.arange(1, rounds - 1))[: max(0, prompts.graded - 2)]
        graded = {0, *map(int, between), *((rounds - 1,) if prompts.graded > 1 else ())}
        parts = self.ahead.take(epoch, index, self.steps_per_epoch)
        images, masks, ignore, seeds = (part.to(self.device, non_blocking=True) for part in parts)
        return gradients(
            model,
            Batch(images, masks, ignore, seeds, self.config.batch_size),
            prompts,
            stride=self.stride,
            rounds=rounds,
            graded=graded,
            precision=self.precision,
            world=self.ranks.world,
        )

    def _compose(self, epoch: int, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """This rank's part of a batch: images, masks, ignore, seeds; a function of its place."""
        n, seed = len(self.sets.train), self.config.seed % _SEEDS
        rows = steps.batch(n, self.config.batch_size, seed, epoch, index)
        rows = steps.shard(rows, self.ranks.rank, self.ranks.world)
        made = [self._sample(epoch, row) for row in rows.tolist()]
        images = torch.from_numpy(np.stack([each.image for each in made])).permute(0, 3, 1, 2)
        masks, ignore = (
            torch.from_numpy(np.stack([getattr(each, name) for each in made]))
            for name in ("masks", "ignore")
        )
        parts = (images, masks, ignore, rows + (epoch << 32) + (seed << 48))
        return tuple(part.pin_memory() if self.device.type == "cuda" else part for part in parts)  # type: ignore[return-value]

    def _sample(self, epoch: int, row: int) -> Sample:
        """A sample about image `row`, or about the next one that can be used."""
        pairs = self.sets.train
        for other in range(row, row + len(pairs)):
            try:
                where = (self.config.seed % _SEEDS, epoch, other % len(pairs))
                return sample(pairs, self.config.compose, *where)
            except ImageError as error:
                reason = error
        raise reason

    def update(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: nn.Module | None,
        step: int,
    ) -> Tensor:
        """A step at the schedule's learning rate, then the average of the weights."""
        norm = steps.update(model, optimizer, self._rate(step), self.config.clip_norm)
        if average is not None:
            half_life, size = self.config.ema_half_life, self.config.batch_size
            steps.update_average(average, model, half_life, size, step)
        return norm

    def learning_rate(self, step: int) -> float:
        """The decoder's learning rate of a step."""
        return self.config.lr * self._rate(step)

    def _rate(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return 1 - (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> Tensor | None:
        """Sums of this rank's part of the images that are held back; there is no test set."""
        if split == "test":
            return None
        assert isinstance(model, Trainee)
        rows = steps.shard(
            torch.from_numpy(spread(len(self.sets.val), self.config.val_images)),
            self.ranks.rank,
            self.ranks.world,
        )
        segmenter = Segmenter(model.network, self.device, self.precision)
        total = np.zeros(5)
        for row in rows.tolist():
            with suppress(ImageError):  # the check before the training spoke of it
                total += summarize(measure(segmenter, self.sets.val[row], CLICKS))
        return torch.from_numpy(total).to(self.device)

    def score(self, row: dict[str, Any]) -> list[float]:
        """Mean IoU over one, three and five clicks, of the averaged weights if there are any."""
        prefix = "ema" if "ema_miou_1" in row else "val"
        return [sum(row[f"{prefix}_miou_{clicks}"] for clicks in (1, 3, 5)) / 3]

    def metrics(self, sums: list[float], prefix: str) -> dict[str, float]:
        """Named means over images in training, over masks in validation."""
        *values, count = sums
        training = ("loss", "iou_first", "iou_last", "score_error")
        names = training if prefix == "train" else ("miou_1", "miou_3", "miou_5", "clicks_to_85")
        return {
            f"{prefix}_{name}": value / max(count, 1)
            for name, value in zip(names, values, strict=True)
        }


FEWEST_HELD = 8
"""Images that are held back at least, where that leaves four in five to train on."""
CLICKS = 10
"""Most simulated clicks on an object; one that is not masked well after them counts as all."""
AHEAD = 2
"""Batches that are composed before they are asked for."""
_SEEDS = 1 << 15
"""A sample's own seed has room for so many of --seed beside epoch and row."""


def spread(total: int, most: int) -> NDArray[np.int64]:
    """Rows of up to `most` of `total` images, evenly spread: files come source by source."""
    count = min(most, total)
    rows: NDArray[np.int64] = np.linspace(0, total - 1, count).round().astype(np.int64)
    return rows


class Ahead:
    """Batches composed by threads ahead of the training; OpenCV and NumPy free Python's lock."""

    def __init__(self, compose: Callable[[int, int], tuple[Tensor, ...]], threads: int) -> None:
        """`compose` makes batch `index` of `epoch`."""
        self._compose = compose
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="compose")
        self._ready: OrderedDict[int, Future[tuple[Tensor, ...]]] = OrderedDict()

    def take(self, epoch: int, index: int, per_epoch: int) -> tuple[Tensor, ...]:
        """The batch of a place, and start on those that come after it."""
        place = epoch * per_epoch + index
        for stale in [other for other in self._ready if not place <= other <= place + AHEAD]:
            self._ready.pop(stale).cancel()
        for coming in range(place, place + AHEAD + 1):
            if coming not in self._ready:
                where = divmod(coming, per_epoch)
                self._ready[coming] = self._pool.submit(self._compose, *where)
        return self._ready[place].result()
