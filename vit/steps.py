"""One training step and one evaluation of a classifier, on whatever device its tensors are."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from vit import rng
from vit.augment.augment import augment, center_crop, erase, mix, normalize
from vit.config import AugmentConfig, DatasetConfig, ModelConfig, OptimConfig
from vit.numerics import Precision, autocast


@dataclass(frozen=True)
class Batch:
    """A rank's part of a global batch."""

    images: Tensor
    """(B, 3, S, S) uint8, before augmentation."""
    labels: Tensor
    """(B,) int64."""
    samples: Tensor
    """(B,) int64 on the CPU: indices in the training set, which all randomness hangs on."""
    global_size: int
    """Samples of the global batch over all ranks."""


def _sums(loss: Tensor, correct: Tensor, labels: Tensor) -> Tensor:
    """(3,) float64: sum of losses, correct predictions, samples. Counts below 2^53 are exact."""
    count = torch.full((), labels.shape[0], dtype=torch.float64, device=labels.device)
    return torch.stack([loss.double(), correct.sum().double(), count])


def gradients(
    model: nn.Module,
    batch: Batch,
    shape: ModelConfig,
    augmentation: AugmentConfig,
    dataset: DatasetConfig,
    optim: OptimConfig,
    precision: Precision,
    *,
    seed: int,
    epoch: int,
    step: int,
    mixing: bool = False,
    world: int = 1,
) -> Tensor:
    """Forward and backward: leaves in `.grad` the gradient of the mean loss of the global batch.

    Gradients are averaged over ranks by DistributedDataParallel, so each rank's sum of losses is
    weighted by world / global_size: parts of unequal size then count sample by sample. The batch
    goes through the model in `optim.accumulate` parts; ranks speak to each other in the last.

    Args:
        mixing: whether neighbours in the batch are mixed now; its size must then be even.

    Returns:
        (3,) float64, detached, on the batch's device: this rank's sum of losses, correct
        predictions, samples.
    """
    parts = _parts(batch, optim.accumulate, unit=2 if mixing else 1)
    total = torch.zeros(3, dtype=torch.float64, device=batch.images.device)
    for number, part in enumerate(parts, start=1):
        alone = number < len(parts) and isinstance(model, DistributedDataParallel)
        with record_function("augment"):
            inputs, share = _inputs(part, augmentation, dataset, shape, seed, epoch, mixing)
        with model.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with record_function("forward"):
                draws = _drop_path_draws(part.samples, shape, seed, step, inputs.device)
                with autocast(inputs.device, precision):
                    logits = model(inputs, draws)
                loss, counts = _loss(logits.float(), part.labels, share, optim.label_smoothing)
            with record_function("backward"):
                (loss * (world / batch.global_size)).backward()
        total += counts
    return total


def _parts(batch: Batch, parts: int, unit: int) -> list[Batch]:
    """Cut a batch into parts of about the same size, in whole units of neighbours."""
    if parts == 1:
        return [batch]
    units = torch.arange(len(batch.samples) // unit).tensor_split(parts)
    sizes = [unit * len(part) for part in units if len(part)]
    pieces = zip(
        *(x.split(sizes) for x in (batch.images, batch.labels, batch.samples)), strict=True
    )
    return [Batch(images, labels, samples, batch.global_size) for images, labels, samples in pieces]


def _inputs(
    batch: Batch,
    config: AugmentConfig,
    dataset: DatasetConfig,
    shape: ModelConfig,
    seed: int,
    epoch: int,
    mixing: bool,
) -> tuple[Tensor, Tensor | None]:
    """What the model sees, and the share of a sample's own label where samples are mixed."""
    images = augment(batch.images, config, seed, epoch, batch.samples, shape.image_size)
    inputs = normalize(images, dataset.mean, dataset.std)
    if config.erasing > 0:
        inputs = erase(inputs, config, seed, epoch, batch.samples)
    return mix(inputs, config, seed, epoch, batch.samples) if mixing else (inputs, None)


def _drop_path_draws(
    samples: Tensor, shape: ModelConfig, seed: int, step: int, device: torch.device
) -> Tensor | None:
    if shape.drop_path_rate == 0:
        return None
    draws = rng.uniform(samples, 2 * shape.depth, seed, "drop_path", step).T
    return draws.to(device, non_blocking=True)


def _loss(
    logits: Tensor, labels: Tensor, share: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Sum of the losses, and the counts; a mixed sample is right by the share of the label named.

    The loss is linear in the target, so mixing two smoothed losses is smoothing first, then mixing.
    """
    own = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    correct = (logits.detach().argmax(dim=1) == labels).double()
    if share is not None:
        partners = labels.view(-1, 2).flip(1).flatten()
        other = F.cross_entropy(logits, partners, label_smoothing=smoothing, reduction="none")
        own = share * own + (1 - share) * other
        right = (logits.detach().argmax(dim=1) == partners).double()
        correct = share * correct + (1 - share) * right
    loss = own.sum()
    return loss, _sums(loss.detach(), correct, labels)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    take: Callable[[Tensor], tuple[Tensor, Tensor]],
    samples: Tensor,
    size: int,
    dataset: DatasetConfig,
    precision: Precision,
    device: torch.device,
    batch_size: int,
) -> Tensor:
    """Loss without smoothing and correct predictions over `samples`, without padding.

    Args:
        model: a bare classifier (not wrapped for data parallelism: ranks may hold unequal parts).
        take: from samples (B,) to their images (B, 3, S, S) uint8 and labels (B,) on `device`.
        samples: (n,) int64 on the CPU: what this rank evaluates; may be empty.
        size: S of the model; larger images are cut to their centre.
        batch_size: samples that go through the model at a time.

    Returns:
        (3,) float64 on `device`: this rank's sum of losses, correct predictions, samples.
    """
    model.eval()
    total = torch.zeros(3, dtype=torch.float64, device=device)
    for part in samples.split(batch_size) if len(samples) else ():
        images, labels = take(part)
        inputs = normalize(center_crop(images, size), dataset.mean, dataset.std)
        with autocast(device, precision):
            logits = model.forward(inputs)  # not through torch.compile: the last batch is smaller
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        total += _sums(loss, logits.argmax(dim=1) == labels, labels)
    model.train()
    return total
