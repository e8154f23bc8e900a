"""The gradient of a training step and the evaluation of a classifier, on any device."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from vit import rng
from vit.augment.augment import center_crop, normalize, plan_augment, plan_erase, plan_mix
from vit.config import AugmentConfig, DatasetConfig, ModelConfig, OptimConfig
from vit.numerics import Precision, autocast
from vit.packing import send
from vit.votes import Votes


@dataclass(frozen=True)
class Batch:
    """A rank's part of a global batch."""

    images: Tensor
    """(B, 3, S, S) uint8, before augmentation."""
    labels: Tensor
    """(B,) int64."""
    samples: Tensor
    """(B,) int64 on the CPU: indices in the training set, on which all randomness depends."""
    global_size: int
    """Number of samples of the global batch, over all ranks."""


@dataclass(frozen=True)
class StepConfig:
    """Settings that all steps of a training share."""

    model: ModelConfig
    augment: AugmentConfig
    dataset: DatasetConfig
    optim: OptimConfig
    precision: Precision
    """Precision of the forward pass."""
    seed: int
    """Seed of all randomness."""
    world: int = 1
    """Number of ranks."""


def _sums(loss: Tensor, correct: Tensor, labels: Tensor) -> Tensor:
    """Pack sum of losses, correct predictions and samples into (3,) float64, exact below 2^53."""
    count = torch.full((), labels.shape[0], dtype=torch.float64, device=labels.device)
    return torch.stack([loss.double(), correct.sum().double(), count])


def gradients(
    model: nn.Module, batch: Batch, config: StepConfig, *, epoch: int, step: int, mixing: bool
) -> Tensor:
    """Run forward and backward passes; `.grad` then has the mean loss's gradient.

    The mean is over the global batch. Gradients are averaged over ranks by DistributedDataParallel,
    so each rank's sum of losses is weighted by world / global_size: parts of unequal size then
    count sample by sample. The batch goes through the model in `config.optim.accumulate` parts;
    ranks exchange gradients in the last one.

    Args:
        model: a classifier, bare or wrapped for data parallelism.
        batch: this rank's part of the global batch.
        config: settings of the training.
        epoch: epoch of the batch, on which augmentation depends.
        step: step of the training, on which stochastic depth depends.
        mixing: whether neighbours in the batch are mixed; its size must then be even.

    Returns:
        (3,) float64, detached, on the batch's device: this rank's sum of losses, correct
        predictions, samples.
    """
    parts = _parts(batch, config.optim.accumulate, unit=2 if mixing else 1)
    total = torch.zeros(3, dtype=torch.float64, device=batch.images.device)
    for number, part in enumerate(parts, start=1):
        more = number < len(parts) and isinstance(model, DistributedDataParallel)
        with record_function("augment"):
            inputs, share, draws = _inputs(part, config, epoch, step, mixing)
        with model.no_sync() if more else nullcontext():  # type: ignore[operator]
            with record_function("forward"):
                with autocast(inputs.device, config.precision):
                    logits = model(inputs, draws)
                smoothing = config.optim.label_smoothing
                loss, counts = _loss(logits.float(), part.labels, share, smoothing)
            with record_function("backward"):
                (loss * (config.world / batch.global_size)).backward()
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
    batch: Batch, config: StepConfig, epoch: int, step: int, mixing: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Augment and normalise a batch; all that is drawn for it goes to the device in one copy.

    Returns:
        (B, 3, S, S) float32; the share of each sample's own label, (B,), if samples are mixed; and
        (2L, B) uniform numbers for stochastic depth, if the model has it.
    """
    how, seed, samples, size = config.augment, config.seed, batch.samples, config.model.image_size
    drawn = (seed, epoch, samples)
    plans = [plan_augment(batch.images, how, *drawn, size)]
    if how.erasing > 0:
        plans.append(plan_erase(size, size, how, *drawn))
    if mixing:
        plans.append(plan_mix(size, size, how, *drawn))
    tensors = [tensor for plan in plans for tensor in plan.tensors]
    sent = iter(send([*tensors, *_drop_path_draws(samples, config, step)], batch.images.device))
    images = plans[0].run(batch.images, *islice(sent, len(plans[0].tensors)))
    inputs = normalize(images, config.dataset.mean, config.dataset.std)
    if how.erasing > 0:
        inputs = plans[1].run(inputs, *islice(sent, len(plans[1].tensors)))
    share = None
    if mixing:
        inputs, share = plans[-1].run(inputs, *islice(sent, len(plans[-1].tensors)))
    return inputs, share, next(sent, None)


def _drop_path_draws(samples: Tensor, config: StepConfig, step: int) -> list[Tensor]:
    """Draw (2L, B) uniform numbers for stochastic depth; none if the model does not have it."""
    if config.model.drop_path_rate == 0:
        return []
    return [rng.uniform(samples, 2 * config.model.depth, config.seed, "drop_path", step).T]


def _loss(
    logits: Tensor, labels: Tensor, share: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Sum the losses, () float32, and count as `_sums` does.

    A mixed sample counts as correct by the share of the label that was predicted. The loss is
    linear in the target, so a mixture of two smoothed losses is the loss of smoothed, then mixed
    targets.
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
    votes: Votes | None = None,
) -> Tensor:
    """Sum the loss, without smoothing, and count correct predictions over `samples`.

    Args:
        model: a bare classifier (not wrapped for data parallelism: ranks may hold unequal parts).
        take: returns images (B, 3, S, S) uint8 and labels (B,) int64 of samples (B,), on `device`.
        samples: (n,) int64 on the CPU, this rank's part of a set; may be empty.
        size: side in pixels of the model's images; larger images are cut to their centre.
        dataset: its `mean` and `std` normalise images.
        precision: precision of the forward pass.
        device: device of the model.
        batch_size: samples that go through the model at a time; the last batch may be smaller.
        votes: the T tracks of the set; None: it has none.

    Returns:
        (3,) float64 on `device`: this rank's sum of losses, correct predictions, samples. With
        `votes`, those of each track and class (`vit.votes`) follow: (3 + T * C,).
    """
    model.eval()
    total = torch.zeros(3, dtype=torch.float64, device=device)
    counted = total.new_zeros(0) if votes is None else votes.zeros(device)
    for part in samples.split(batch_size) if len(samples) else ():
        images, labels = take(part)
        inputs = normalize(center_crop(images, size), dataset.mean, dataset.std)
        with autocast(device, precision):
            logits = model.forward(inputs)  # not through torch.compile: the last batch is smaller
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        total += _sums(loss, logits.argmax(dim=1) == labels, labels)
        if votes is not None:
            votes.count(counted, part, logits.float())
    model.train()
    return torch.cat([total, counted.flatten()])
