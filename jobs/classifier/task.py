"""Training a ViT classifier as a task of the epoch loop: settings, data on this node, steps."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from jobs.run.config import MAY_CHANGE, ConfigError
from jobs.run.device import choose_attention
from jobs.storage.cache import cache_folder, fetch, localize
from jobs.storage.location import Location
from jobs.training import steps
from jobs.training.ranks import Ranks
from jobs.training.task import LoopConfig, TrainingConfig, check_same_data, means, validation_metric
from jobs.weights.classifier import load_weights
from vit import rng
from vit.config import AugmentConfig, DatasetConfig, ModelConfig, OptimConfig
from vit.cost import evaluation_batch
from vit.data import sets as data
from vit.data.feed import place
from vit.data.reader import some
from vit.graphs import use_graphs
from vit.model import VisionTransformer, build
from vit.numerics import PROBED, Numerics, autocast, choose_numerics
from vit.optim import Optimizer, rate
from vit.steps import Batch, StepConfig, evaluate, gradients
from vit.votes import votes_of
from vit.weights import fit


@dataclass(frozen=True, kw_only=True)
class VitConfig(LoopConfig):
    """Data, model, augmentation and optimizer of a ViT, for `jobs.train` and `jobs.tune`."""

    data: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Files or folders of the data set, local or s3://. Default: the data set that --dataset.name
    names, downloaded if necessary."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    init_weights: str | None = None
    """Weights to start from, local or s3://: the folder of a run, its export/, or a safetensors
    file with timm's names. Position embeddings are resampled to the model's grid, a head for other
    classes is initialized at random, and everything else must fit. Default: random weights."""
    compile: bool = field(default=False, metadata=MAY_CHANGE)
    """Compile the model with torch.compile: this takes minutes before the first step, then makes
    steps faster on GPUs; a CPU gains little."""

    def __post_init__(self) -> None:
        """Check settings against each other."""
        LoopConfig.__post_init__(self)
        if self.batch_size % self.unit:
            raise ConfigError(
                f"--batch-size {self.batch_size} is odd; augment.mixup and augment.cutmix mix pairs"
            )
        check_stored(self.dataset, self.model)
        if self.optim.warmup_epochs >= self.epochs:
            raise ConfigError(
                f"--optim.warmup-epochs is {self.optim.warmup_epochs}; it must be less than"
                f" --epochs {self.epochs}"
            )

    @property
    def unit(self) -> int:
        """Samples that must be on the same rank: 2 where pairs are mixed, else 1."""
        return 2 if self.augment.mixes else 1


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingConfig, VitConfig):
    """Settings of `jobs.train`."""

    def __post_init__(self) -> None:
        """Check the settings of the job and of the ViT together."""
        TrainingConfig.__post_init__(self)
        VitConfig.__post_init__(self)
        if self.unit * self.workers > self.batch_size:
            raise ConfigError(
                f"--workers is {self.workers}; expected at most {self.batch_size // 2}, the number"
                f" of pairs in a batch of --batch-size {self.batch_size}"
            )


def check_stored(dataset: DatasetConfig, model: ModelConfig) -> None:
    """Check that images are stored at least as large as the model takes. Raises ConfigError."""
    if dataset.store_size is not None and dataset.store_size < model.image_size:
        raise ConfigError(
            f"--dataset.store-size {dataset.store_size} is less than --model.image-size"
            f" {model.image_size}; images must be stored at least as large as the model takes them"
        )


class VitTask:
    """A ViT classifier as a task of the epoch loop, on one rank."""

    def __init__(
        self, config: TrainConfig, dataset: data.Dataset, device: torch.device, ranks: Ranks
    ) -> None:
        """Move the data set to the device, if it fits there."""
        self.config, self.dataset, self.device, self.ranks = config, dataset, device, ranks
        self.averaged: nn.Module | None = None
        self.splits = place(
            {"train": dataset.train, "val": dataset.val, "test": dataset.test}, device
        )
        held = {"val": dataset.val, "test": dataset.test}
        classes = len(dataset.classes)
        self.votes = {name: votes_of(images, classes) for name, images in held.items() if images}
        self.steps_per_epoch = steps.steps_per_epoch(len(dataset.train), config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.warmup_steps = round(self.steps_per_epoch * config.optim.warmup_epochs)
        self.mixing_epochs = config.augment.mix_until * config.epochs if config.augment.mixes else 0

    def build(self) -> nn.Module:
        """Return the model with weights from the seed, or from `init_weights`.

        Raises AgreedError if those have changed since the driver checked them.
        """
        seed = rng.fold(self.config.seed, "init")
        model = build(self.config.model, len(self.dataset.classes), seed)
        if (source := self.config.init_weights) is not None:
            classes = self.dataset.classes
            fitted = self.ranks.each(lambda: fit(load_weights(source), model, classes))
            model.load_state_dict(fitted.tensors)
        return model.to(self.device)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return AdamW, or Muon and AdamW, with their groups of parameters."""
        assert isinstance(model, VisionTransformer)
        return Optimizer(model, self.config.optim)

    def average(self, model: nn.Module) -> nn.Module | None:
        """Return a copy for the average of the weights if `optim.ema_half_life` is set."""
        self.averaged = steps.start_average(model, self.config.optim.ema_half_life)
        return self.averaged

    def decide(self, model: nn.Module, batch: int) -> dict[str, Any]:
        """Choose precision, attention and memory layout, by a probe where it cannot be known."""
        size = self.config.model.image_size
        images = torch.zeros(min(batch, PROBED), 3, size, size, device=self.device)
        numerics, reason = choose_numerics(model, images, self.config.precision)
        return {
            "numerics": asdict(numerics),
            "because": reason,
            "data": self._contents(),
            "crops": self.dataset.crops,
        }

    def apply(self, model: nn.Module, facts: dict[str, Any]) -> None:
        """Apply the numerics; raises DataError when the data are not those of the first start."""
        check_same_data(facts["data"], self._contents())
        self.facts = facts
        self.numerics = Numerics(**facts["numerics"])
        for each in (model, self.averaged):
            if each is not None:
                self.numerics.prepare(each)
        if self.config.compile:
            model.compile(dynamic=False)
        self.chosen = self._choose_launches(model) if self.device.type == "cuda" else []

    def _choose_launches(self, model: nn.Module) -> list[str]:
        """Choose the kernel of attention, and whether to use CUDA graphs, by probes on this GPU.

        Neither changes the results by more than rounding, so each start chooses again.
        """
        config, shape = self.config, self.config.model
        count = config.batch_size // (self.ranks.world * config.optim.accumulate)
        images = torch.zeros(max(1, count), 3, shape.image_size, shape.image_size)
        images = images.to(self.device, non_blocking=True)
        draws = None
        if shape.drop_path_rate > 0:
            draws = torch.zeros(2 * shape.depth, len(images), device=self.device)

        def work() -> None:
            with autocast(self.device, self.numerics.precision):
                model(images, draws).float().sum().backward()
            model.zero_grad(set_to_none=True)

        lines = [choose_attention(work)] if self.numerics.precision == "bfloat16" else []
        dropout = shape.drop_rate or shape.attn_drop_rate
        if not (config.compile or dropout or config.optim.accumulate > 1 or self.ranks.world > 1):
            lines.append(use_graphs(model, images, draws, self.numerics.precision))
        return lines

    def describe(self) -> str:
        """Return the sizes of the sets, notes on the data, and the numerics."""
        sizes = {name: len(feed) for name, feed in self.splits.items()}
        sets = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
        classes = self.dataset.classes
        tracks = f" of {len(self.dataset.tracks):,} tracks" if self.dataset.tracks else ""
        return (
            f"images: {sets}{tracks}; {len(classes)} classes ({', '.join(some(classes, 10))})\n"
            + "".join(f"{note}\n" for note in self.dataset.notes)
            + f"{self.numerics} on {self.device.type}: {self.facts['because']}"
            + "".join(f"; {line}" for line in self.chosen)
        )

    def _contents(self) -> dict[str, Any]:
        """Return what the order of samples and the meaning of labels depend on."""
        sizes = {name: len(feed) for name, feed in self.splits.items()}
        return {**sizes, "classes": list(self.dataset.classes)}

    def gradients(self, model: nn.Module, epoch: int, index: int, step: int) -> Tensor:
        """Compute the gradient of this rank's part of batch `index` of `epoch`; see `Task`."""
        with record_function("data"):
            samples = self._samples(epoch, index)
            images, labels = self.splits["train"].take(samples, self._after(epoch, index))
        if self.config.model.drop_rate or self.config.model.attn_drop_rate:
            torch.manual_seed(rng.fold(self.config.seed, "dropout", step, self.ranks.rank))
        config = self.config
        part = Batch(images, labels, samples, config.batch_size)
        shared = StepConfig(
            config.model,
            config.augment,
            config.dataset,
            config.optim,
            self.numerics.precision,
            config.seed,
            self.ranks.world,
        )
        mixing = epoch < self.mixing_epochs
        return gradients(model, part, shared, epoch=epoch, step=step, mixing=mixing)

    def _samples(self, epoch: int, index: int) -> Tensor:
        """Return this rank's part of a batch, (b,) int64; in whole pairs while they are mixed."""
        n, size = len(self.dataset.train), self.config.batch_size
        samples = steps.batch(n, size, self.config.seed, epoch, index)
        unit = 2 if epoch < self.mixing_epochs else 1
        return steps.shard(samples, self.ranks.rank, self.ranks.world, unit)

    def _after(self, epoch: int, index: int) -> Iterator[Tensor]:
        """Yield this rank's parts of all later batches, to the end of the last epoch."""
        done = epoch * self.steps_per_epoch + index + 1
        for step in range(done, self.total_steps):
            yield self._samples(*divmod(step, self.steps_per_epoch))

    def update(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: nn.Module | None,
        step: int,
    ) -> Tensor:
        """Take a step at the schedule's learning rate, then move the average of the weights."""
        optim = self.config.optim
        norm = steps.update(model, optimizer, self._rate(step), optim.clip_norm)
        steps.update_average(average, model, optim.ema_half_life, self.config.batch_size, step)
        return norm

    def learning_rate(self, step: int) -> float:
        """Return AdamW's learning rate of a step."""
        return self.config.optim.lr * self._rate(step)

    def _rate(self, step: int) -> float:
        return rate(self.config.optim, step, self.total_steps, self.warmup_steps)

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> Tensor | None:
        """Return losses, correct predictions and images of this rank's part of a split, and the
        votes of its tracks; see `vit.steps.evaluate`."""
        if split not in self.splits:
            return None
        feed = self.splits[split]
        rows = steps.shard(torch.arange(len(feed)), self.ranks.rank, self.ranks.world)

        def take(part: Tensor) -> tuple[Tensor, Tensor]:
            return feed.take(part, rows[rows > part[-1]].split(len(part)))

        shape, precision = self.config.model, self.numerics.precision
        return evaluate(
            model,
            take,
            rows,
            shape.image_size,
            self.config.dataset,
            precision,
            self.device,
            evaluation_batch(shape),
            self.votes[split],
        )

    def score(self, row: dict[str, Any]) -> list[float]:
        """Return the validation accuracy; the lower loss decides between equal ones."""
        return [validation_metric(row, "accuracy"), -validation_metric(row, "loss")]

    def metrics(self, sums: list[float], prefix: str) -> dict[str, float]:
        """Return the mean loss and the accuracy of a split, and the accuracy of its tracks."""
        found = means(sums[:3], ("loss", "accuracy"), prefix)
        if len(sums) > 3:
            votes = self.votes["test" if prefix == "test" else "val"]
            assert votes is not None
            right = torch.tensor(sums[3:]).view(len(votes.labels), -1).argmax(1) == votes.labels
            found[f"{prefix}_track_accuracy"] = right.double().mean().item()
        return found


ARCHIVES = {
    "cifar10": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    "cifar100": (
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
}
"""By name of a data set: the URL of its archive, and the archive's SHA-256 in hex."""


class DataSettings(Protocol):
    """The settings that `load` reads: which data, and how large their images are stored."""

    @property
    def data(self) -> tuple[str, ...]:
        """Files or folders; none: the data set that `dataset.name` names."""

    @property
    def dataset(self) -> DatasetConfig:
        """The data set's name and how it is read."""

    @property
    def model(self) -> ModelConfig:
        """Its image_size is the stored size, unless `dataset.store_size` is set."""


def local_paths(config: DataSettings) -> list[Path]:
    """Return the data's files on this node; remote ones are downloaded into its cache."""
    if not config.data and config.dataset.name in ARCHIVES:
        url, checksum = ARCHIVES[config.dataset.name]
        return [fetch(url, sha256=checksum)]
    return [localize(Location.parse(path)) for path in config.data]


def load(config: DataSettings, *, hold_out: bool = True, training: bool = True) -> data.Dataset:
    """Map the data into memory; the first process of a node downloads and decodes them."""
    return data.load(
        config.dataset,
        local_paths(config),
        config.model.image_size,
        cache_folder(),
        hold_out=hold_out,
        training=training,
    )
