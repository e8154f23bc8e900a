"""Training a promptable segmenter as a task of the epoch loop: its batches and its steps."""

import math
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.data import Sets, spread
from jobs.segmenter.memory import plan_memory
from jobs.segmenter.network import pretrained_parameters, starting_network
from jobs.storage.location import Location
from jobs.training import steps
from jobs.training.checkpoints import Checkpoints
from jobs.training.ranks import Ranks
from jobs.training.task import check_same_data, means, validation_metric
from masking.segmenter.sam import Segmenter, resolve
from masking.training.compose import Sample, sample
from masking.training.measure import measure, summarize
from masking.training.pairs import ImageError
from masking.training.steps import Batch, Rounds, Trainee, gradients
from vit import rng

CLICKS = 10
"""Most simulated clicks on an object; one that is not masked well after them counts as all."""
PREFETCHED = 2
"""Batches that are composed ahead of the one in use."""
_SEEDS = 1 << 15
"""Number of different values of --seed: a sample's seed holds it beside epoch and row."""


class SegmentTask:
    """A promptable segmenter as a task of the epoch loop, on one rank."""

    def __init__(
        self, config: FinetuneConfig, sets: Sets, device: torch.device, ranks: Ranks
    ) -> None:
        """Prepare threads that compose samples; no image is read yet.

        OpenCV and NumPy release Python's lock.
        """
        self.config, self.sets, self.device, self.ranks = config, sets, device, ranks
        self.steps_per_epoch = steps.steps_per_epoch(len(sets.train), config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.warmup_steps = round(self.steps_per_epoch * config.warmup_epochs)
        self._seed = config.seed % _SEEDS
        self.composers = ThreadPoolExecutor(
            max(1, int(config.cpus_per_worker)), thread_name_prefix="compose"
        )
        self.batches = Prefetcher(self._compose)
        self._memory = ""

    def build(self) -> nn.Module:
        """Return the network to start from; raises AgreedError if its weights cannot be loaded."""
        torch.manual_seed(rng.fold(self.config.seed, "init"))
        checkpoints = Checkpoints(Location.parse(self.config.out) / "checkpoints", token="")
        last = self.ranks.first(checkpoints.latest)
        saved = None if last is None else self.ranks.each(lambda: checkpoints.read(last).weights)
        network = self.ranks.each(lambda: starting_network(self.config, saved))
        return Trainee(network).to(self.device).to(memory_format=torch.channels_last)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return AdamW with a learning rate of the pretrained encoder, without decay of vectors."""
        assert isinstance(model, Trainee)
        slow = {id(p) for p in pretrained_parameters(model.network, self.config)}
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
        """Return a copy for the average of the weights if `ema_half_life` is set."""
        return steps.start_average(model, self.config.ema_half_life)

    def decide(self, model: nn.Module, batch: int) -> dict[str, Any]:
        """Choose the precision: bfloat16 if the processor multiplies it."""
        precision = resolve(self.config.precision, self.device)
        return {"precision": precision, "data": self._contents()}

    def apply(self, model: nn.Module, facts: dict[str, Any]) -> None:
        """Apply the precision; raises DataError when the data are not those of the first start."""
        check_same_data(facts["data"], self._contents())
        self.precision: Literal["float32", "bfloat16"] = facts["precision"]
        if self.device.type == "cuda" and not self.config.clips:
            assert isinstance(model, Trainee)
            part = math.ceil(self.config.batch_size / self.ranks.world)
            self._memory = plan_memory(model, self.config, part, self.precision)

    def _contents(self) -> dict[str, int]:
        """Return the sizes of the sets, which the order of samples depends on."""
        return {"train": len(self.sets.train), "val": len(self.sets.val)}

    def describe(self) -> str:
        """Return the sizes of the sets, and the precision."""
        sizes = self._contents()
        return (
            f"images: {sizes['train']:,} train, {sizes['val']:,} val\n"
            f"{self.precision} on {self.device.type}"
            + (f"\n{self._memory}" if self._memory else "")
        )

    def gradients(self, model: nn.Module, epoch: int, index: int, step: int) -> Tensor:
        """Compute the gradient of this rank's part of batch `index` of `epoch`; see `Task`."""
        prompts = self.config.prompts
        draw = np.random.default_rng((self._seed, step))
        fewest, most = prompts.rounds
        rounds = int(draw.integers(fewest, most + 1))
        between = draw.permutation(np.arange(1, rounds - 1))[: max(0, prompts.graded - 2)]
        graded = {0, *map(int, between), *((rounds - 1,) if prompts.graded > 1 else ())}
        parts = self.batches.take(epoch, index, self.steps_per_epoch)
        images, masks, ignore, seeds = (part.to(self.device, non_blocking=True) for part in parts)
        return gradients(
            model,
            Batch(images, masks, ignore, seeds, self.config.batch_size),
            prompts,
            Rounds(rounds, graded),
            self.precision,
            self.ranks.world,
        )

    def _compose(self, epoch: int, index: int) -> tuple[Tensor, ...]:
        """Compose this rank's part of a batch: images, masks, ignore, seeds.

        It depends only on the seed, the epoch and the index. The images are (b, 3, S, S) uint8,
        masks and ignore bool, the seeds (b,) int64, one for every sample.
        """
        n, seed = len(self.sets.train), self._seed
        rows = steps.batch(n, self.config.batch_size, seed, epoch, index)
        rows = steps.shard(rows, self.ranks.rank, self.ranks.world)
        made = list(self.composers.map(partial(self._sample, epoch), rows.tolist()))
        images = torch.from_numpy(np.stack([each.image for each in made])).permute(0, 3, 1, 2)
        masks, ignore = (
            torch.from_numpy(np.stack([getattr(each, name) for each in made]))
            for name in ("masks", "ignore")
        )
        parts = (images, masks, ignore, rows + (epoch << 32) + (seed << 48))
        return tuple(part.pin_memory() if self.device.type == "cuda" else part for part in parts)

    def _sample(self, epoch: int, row: int) -> Sample:
        """Compose a sample from image `row`, or from the next one that can be used."""
        pairs = self.sets.train
        for other in range(row, row + len(pairs)):
            try:
                where = (self._seed, epoch, other % len(pairs))
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
        """Take a step at the schedule's learning rate, then move the average of the weights."""
        config = self.config
        norm = steps.update(model, optimizer, self._rate(step), config.clip_norm)
        steps.update_average(average, model, config.ema_half_life, config.batch_size, step)
        return norm

    def learning_rate(self, step: int) -> float:
        """Return the decoder's learning rate of a step."""
        return self.config.lr * self._rate(step)

    def _rate(self, step: int) -> float:
        """Return the learning rate as a share of its peak: a linear rise, then a linear fall."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return 1 - (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> Tensor | None:
        """Return (5,) sums over this rank's part of the images held back; there is no test set."""
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
            with suppress(ImageError):  # reported by the check before the training
                total += summarize(measure(segmenter, self.sets.val[row], CLICKS))
        return torch.from_numpy(total).to(self.device)

    def score(self, row: dict[str, Any]) -> list[float]:
        """Return the mean IoU over one, three and five clicks."""
        return [sum(validation_metric(row, f"miou_{clicks}") for clicks in (1, 3, 5)) / 3]

    def metrics(self, sums: list[float], prefix: str) -> dict[str, float]:
        """Return means over images in training, over masks in validation."""
        training = ("loss", "iou_first", "iou_last", "score_error")
        names = training if prefix == "train" else ("miou_1", "miou_3", "miou_5", "clicks_to_85")
        return means(sums, names, prefix)


class Prefetcher:
    """Has batches composed ahead of the training, several at a time."""

    def __init__(self, compose: Callable[[int, int], tuple[Tensor, ...]]) -> None:
        """Call `compose(epoch, index)` for each batch, in a thread of its own."""
        self._compose = compose
        self._pool = ThreadPoolExecutor(PREFETCHED + 1, thread_name_prefix="batch")
        self._ready: OrderedDict[int, Future[tuple[Tensor, ...]]] = OrderedDict()

    def take(self, epoch: int, index: int, per_epoch: int) -> tuple[Tensor, ...]:
        """Return batch `index` of `epoch`, and start to compose those that come after it."""
        number = epoch * per_epoch + index
        wanted = range(number, number + PREFETCHED + 1)
        for stale in [other for other in self._ready if other not in wanted]:
            self._ready.pop(stale).cancel()
        for coming in wanted:
            if coming not in self._ready:
                where = divmod(coming, per_epoch)
                self._ready[coming] = self._pool.submit(self._compose, *where)
        return self._ready[number].result()
