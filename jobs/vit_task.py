"""ViT training as a task of the epoch loop: its settings, its data on this node, its steps."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from jobs.config import MAY_CHANGE, ConfigError, JobConfig
from jobs.fetch import cache_folder, fetch, localize
from jobs.ranks import Ranks
from jobs.storage import Location
from jobs.task import LoopConfig
from vit import data, rng
from vit.config import AugmentConfig, DatasetConfig, ModelConfig, OptimConfig
from vit.formats import DataError
from vit.model import VisionTransformer, build
from vit.optim import adamw, learning_rate
from vit.steps import Batch, choose_precision, evaluate, gradients, update


@dataclass(frozen=True, kw_only=True)
class TrainConfig(JobConfig, LoopConfig):
    """Settings of `jobs.train`."""

    data: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Files or folders of the data set, local or s3://; none: what the data set's name stands for,
    fetched if need be."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        """Check what no single group shows."""
        JobConfig.__post_init__(self)
        LoopConfig.__post_init__(self)
        if self.workers > self.batch_size:
            raise ConfigError(
                f"--workers {self.workers} is more than --batch-size {self.batch_size}:"
                " some workers would have nothing to do"
            )
        if self.optim.warmup_epochs >= self.epochs:
            raise ConfigError(
                f"--optim.warmup-epochs {self.optim.warmup_epochs} leaves nothing of"
                f" --epochs {self.epochs}"
            )


@dataclass(frozen=True)
class Resident:
    """A set of images where its pixels lie: on the device, or in host memory if they do not fit."""

    images: Tensor
    """(N, 3, S, S) uint8, perhaps shared with another set."""
    labels: Tensor
    """(N,) int64, where `images` are."""
    rows: Tensor
    """(n,) int64, where `images` are: the rows of the set."""
    device: torch.device
    """Where a batch is wanted."""

    def take(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of the set's `samples`, (B,) int64 on the CPU, on the device."""
        rows = self.rows[samples.to(self.images.device, non_blocking=True)]
        images, labels = self.images[rows], self.labels[rows]
        if self.device != images.device:  # pinned, the copies do not keep the host waiting
            images = images.pin_memory().to(self.device, non_blocking=True)
            labels = labels.pin_memory().to(self.device, non_blocking=True)
        return images, labels


def place(sets: dict[str, data.Images | None], device: torch.device) -> dict[str, Resident]:
    """Put the sets' pixels on the device, an array that two sets share only once.

    A GPU takes what leaves half of its free memory to the training; a CPU works on the pages that
    all processes of the node share.
    """
    moved: dict[int, tuple[Tensor, Tensor]] = {}
    placed = {}
    for name, images in sets.items():
        if images is None:
            continue
        if id(images.images) not in moved:
            where = device if _fits(images.images.nbytes, device) else torch.device("cpu")
            arrays = torch.from_numpy(images.images), torch.from_numpy(images.labels)
            moved[id(images.images)] = (arrays[0].to(where), arrays[1].to(where))
        pixels, labels = moved[id(images.images)]
        rows = torch.from_numpy(images.rows).to(pixels.device)
        placed[name] = Resident(pixels, labels, rows, device)
    return placed


def _fits(size: int, device: torch.device) -> bool:
    return device.type != "cuda" or size < torch.cuda.mem_get_info(device)[0] / 2


class VitTask:
    """A ViT classifier as a task of the epoch loop, on one rank."""

    def __init__(
        self, config: TrainConfig, dataset: data.Dataset, device: torch.device, ranks: Ranks
    ) -> None:
        """Put the data set on the device, as uint8, if it fits there; else beside it."""
        self.config, self.dataset, self.device, self.ranks = config, dataset, device, ranks
        self.splits = place(
            {"train": dataset.train, "val": dataset.val, "test": dataset.test}, device
        )
        self.steps_per_epoch = data.steps_per_epoch(len(dataset.train), config.batch_size)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.warmup_steps = round(self.steps_per_epoch * config.optim.warmup_epochs)
        self.precision: Literal["float32", "bfloat16"] = "float32"

    def build(self) -> nn.Module:
        """The model with the weights that follow from the seed."""
        seed = rng.fold(self.config.seed, "init")
        return build(self.config.model, len(self.dataset.classes), seed).to(self.device)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW with its groups."""
        assert isinstance(model, VisionTransformer)
        return adamw(model, self.config.optim, model.no_weight_decay())

    def decide(self, model: nn.Module, batch: int) -> dict[str, Any]:
        """Choose the precision, by a probe if the config leaves it open."""
        precision, reason = self.config.precision, "--precision says so"
        if precision == "auto":
            size = self.config.model.image_size
            images = torch.zeros(batch, 3, size, size, device=self.device)
            precision, reason = choose_precision(model, images)
        return {"precision": precision, "because": reason, "data": self._contents()}

    def settle(self, facts: dict[str, Any]) -> None:
        """Take over the precision; raises DataError when the data are not those of the start."""
        if facts["data"] != self._contents():
            raise DataError(
                f"the data changed since the run was started: {facts['data']} then,"
                f" {self._contents()} now; bring back what was there, or start in another --out"
            )
        self.facts = facts
        self.precision = facts["precision"]

    def describe(self) -> str:
        """What was settled."""
        sizes = {name: len(resident.rows) for name, resident in self.splits.items()}
        sets = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
        classes = len(self.dataset.classes)
        return (
            f"images: {sets}; {classes} classes\n"
            f"{self.precision} on {self.device.type}: {self.facts['because']}"
        )

    def _contents(self) -> dict[str, Any]:
        """What the order of samples and the meaning of labels hang on."""
        sizes = {name: len(resident.rows) for name, resident in self.splits.items()}
        return {**sizes, "classes": list(self.dataset.classes)}

    def gradients(self, model: nn.Module, epoch: int, index: int, step: int) -> Tensor:
        """Gradient of this rank's part of batch `index` of `epoch`."""
        with record_function("data"):
            n, size = len(self.dataset.train), self.config.batch_size
            samples = data.batch(n, size, self.config.seed, epoch, index)
            samples = data.shard(samples, self.ranks.rank, self.ranks.world)
            images, labels = self.splits["train"].take(samples)
        if self.config.model.drop_rate or self.config.model.attn_drop_rate:
            torch.manual_seed(rng.fold(self.config.seed, "dropout", step, self.ranks.rank))
        return gradients(
            model,
            Batch(images, labels, samples, self.config.batch_size),
            self.config.model,
            self.config.augment,
            self.config.dataset,
            self.config.optim.label_smoothing,
            self.precision,
            seed=self.config.seed,
            epoch=epoch,
            step=step,
            world=self.ranks.world,
        )

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
        """An AdamW step at the schedule's learning rate."""
        return update(model, optimizer, self.learning_rate(step), self.config.optim.clip_norm)

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step."""
        return learning_rate(self.config.optim, step, self.total_steps, self.warmup_steps)

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> Tensor | None:
        """Sums of this rank's part of a split."""
        if split not in self.splits:
            return None
        take = self.splits[split].take
        rows = torch.arange(len(self.splits[split].rows))
        rows = data.shard(rows, self.ranks.rank, self.ranks.world)
        return evaluate(model, take, rows, self.config.dataset, self.precision, self.device)

    def score(self, row: dict[str, Any]) -> list[float]:
        """Accuracy; of equal ones the lower loss."""
        return [row["val_accuracy"], -row["val_loss"]]

    def metrics(self, sums: list[float], prefix: str) -> dict[str, float]:
        """Loss and accuracy of a split."""
        loss, correct, count = sums
        return {f"{prefix}_loss": loss / count, f"{prefix}_accuracy": correct / count}


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
"""Where a data set lies that was not given, and its SHA-256."""


def local_paths(config: TrainConfig) -> list[Path]:
    """The data's files on this node; what is remote or not given is fetched into its cache."""
    if not config.data and config.dataset.name in ARCHIVES:
        url, checksum = ARCHIVES[config.dataset.name]
        return [fetch(url, sha256=checksum)]
    return [localize(Location.parse(path)) for path in config.data]


def load(config: TrainConfig) -> data.Dataset:
    """Map the data into memory; the first process of a node brings and decodes them."""
    paths = local_paths(config)
    return data.load(config.dataset, paths, config.model.image_size, cache_folder())
