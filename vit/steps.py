"""One training step and one evaluation of a classifier, on whatever device its tensors are."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from vit import rng
from vit.augment import augment, center_crop, erase, mix, normalize
from vit.config import AugmentConfig, DatasetConfig, ModelConfig, OptimConfig
from vit.model import Attention

Precision = Literal["float32", "bfloat16"]
PROBED = 32
"""Samples that a probe takes: enough to tell, and a large model takes seconds for each."""


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


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a forward pass runs at `precision`; parameters stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


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


def update(model: nn.Module, optimizer: torch.optim.Optimizer, rate: float, clip: float) -> Tensor:
    """Clip the gradient's norm, take an optimizer step, clear the gradient.

    Args:
        rate: learning rate as a share of each group's `peak`.
        clip: largest norm; 0: no clipping.

    Returns:
        () float32, the norm before clipping. It is not finite on every rank at once when the loss
        of any rank was not, because gradients are averaged before.
    """
    with record_function("optimizer"):
        limit = clip if clip > 0 else float("inf")
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit, foreach=True)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["peak"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm.detach()


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


@dataclass(frozen=True)
class Numerics:
    """How a model is computed: what changes its speed, and its results by rounding only."""

    precision: Precision
    fused_attention: bool
    """Attention through torch's fused kernel, or as plain products."""
    channels_last: bool
    """Memory layout of the stem's convolutions."""

    def __str__(self) -> str:
        attention = "fused" if self.fused_attention else "plain"
        channels = "last" if self.channels_last else "first"
        return f"{self.precision}, {attention} attention, channels {channels}"

    def prepare(self, model: nn.Module) -> None:
        """Set a bare model up, and this process: float32 shall be that in convolutions, too."""
        if self.precision == "float32":
            torch.backends.cudnn.allow_tf32 = False
        for module in model.modules():
            if isinstance(module, Attention):
                module.fused = self.fused_attention
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=layout)


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself: to emulate it takes many times as long."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def choose_numerics(
    model: nn.Module, inputs: Tensor, precision: Literal["auto", "float32", "bfloat16"]
) -> tuple[Numerics, str]:
    """Decide how to compute, and say why: on a GPU by what it can do, on a CPU by a probe.

    A GPU with bfloat16 gains from it, the fused kernel and channels last. On a CPU it hangs on the
    processor and on the shape, so ways are timed; what is not the plain choice (float32, fused,
    channels first) must win by 5 %. A precision that is asked for comes with what mostly suits
    it, without a probe: the same on every start of every run.

    Args:
        model: the bare model; its gradients are cleared.
        inputs: (B, 3, S, S) float32 on the model's device, of which `PROBED` are looked at.
        precision: one that is wanted, or auto.
    """
    cuda = inputs.device.type == "cuda"
    if precision != "auto":
        fused = cuda or precision == "float32"
        return Numerics(precision, fused, channels_last=cuda), "--precision says so"
    if cuda:
        chosen: Precision = "bfloat16" if multiplies_bfloat16(inputs.device) else "float32"
        return Numerics(chosen, True, True), f"the GPU multiplies {chosen}"
    precisions: list[Precision] = ["float32"]
    if multiplies_bfloat16(inputs.device):
        precisions.append("bfloat16")
    few = inputs[:PROBED]
    ways = [Numerics(name, fused, False) for name in precisions for fused in (True, False)]
    seconds = {way: _probe(model, few, way) for way in ways}
    last = replace(min(seconds, key=seconds.__getitem__), channels_last=True)
    seconds[last] = _probe(model, few, last)
    plain, best = ways[0], min(seconds, key=seconds.__getitem__)
    if seconds[best] > 0.95 * seconds[plain]:
        return plain, "no other way was faster in a probe"
    return best, f"{seconds[plain] / seconds[best]:.2f} times as fast as {plain} in a probe"


def _probe(model: nn.Module, inputs: Tensor, numerics: Numerics) -> float:
    """Shorter of two forward and backward passes on a CPU, after one to warm up.

    In seconds of CPU time: what else runs on the machine must not decide.
    """
    numerics.prepare(model)
    times = []
    for _ in range(3):
        start = time.process_time()
        with autocast(inputs.device, numerics.precision):
            logits = model.forward(inputs)
        logits.float().logsumexp(dim=1).sum().backward()
        times.append(time.process_time() - start)
        model.zero_grad(set_to_none=True)
    return min(times[1:])
