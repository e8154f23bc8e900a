"""One training step and one evaluation of a classifier, on whatever device its tensors are."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from vit import rng
from vit.augment import augment, normalize
from vit.config import AugmentConfig, DatasetConfig, ModelConfig

Precision = Literal["float32", "bfloat16"]


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


def sums(logits: Tensor, labels: Tensor, loss_sum: Tensor) -> Tensor:
    """(3,) float64: sum of losses, correct predictions, samples. Counts below 2^53 are exact."""
    correct = (logits.argmax(dim=1) == labels).sum()
    count = torch.full((), labels.shape[0], dtype=torch.float64, device=labels.device)
    return torch.stack([loss_sum.double(), correct.double(), count])


def gradients(
    model: nn.Module,
    batch: Batch,
    shape: ModelConfig,
    augmentation: AugmentConfig,
    dataset: DatasetConfig,
    label_smoothing: float,
    precision: Precision,
    *,
    seed: int,
    epoch: int,
    step: int,
    world: int = 1,
) -> Tensor:
    """Forward and backward: leaves in `.grad` the gradient of the mean loss of the global batch.

    Gradients are averaged over ranks by DistributedDataParallel, so each rank's sum of losses is
    weighted by world / global_size: parts of unequal size then count sample by sample.

    Returns:
        (3,) float64, this rank's `sums`, detached, on the batch's device.
    """
    with record_function("augment"):
        images = augment(batch.images, augmentation, seed, epoch, batch.samples)
        inputs = normalize(images, dataset.mean, dataset.std)
    with record_function("forward"):
        draws = None
        if shape.drop_path_rate > 0:
            keys = (seed, "drop_path", step)
            draws = rng.uniform(batch.samples, 2 * shape.depth, *keys).T
            draws = draws.to(inputs.device, non_blocking=True)
        with autocast(inputs.device, precision):
            logits = model(inputs, draws)
        loss_sum = F.cross_entropy(
            logits.float(), batch.labels, label_smoothing=label_smoothing, reduction="sum"
        )
    with record_function("backward"):
        (loss_sum * (world / batch.global_size)).backward()
    return sums(logits.detach(), batch.labels, loss_sum.detach())


def update(model: nn.Module, optimizer: torch.optim.Optimizer, lr: float, clip: float) -> Tensor:
    """Clip the gradient's norm, take an optimizer step at `lr`, clear the gradient.

    Returns:
        () float32, the norm before clipping. It is not finite on every rank at once when the loss
        of any rank was not, because gradients are averaged before.
    """
    with record_function("optimizer"):
        limit = clip if clip > 0 else float("inf")
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit, foreach=True)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm.detach()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    take: Callable[[Tensor], tuple[Tensor, Tensor]],
    samples: Tensor,
    dataset: DatasetConfig,
    precision: Precision,
    device: torch.device,
    batch_size: int = 512,
) -> Tensor:
    """Loss without smoothing and correct predictions over `samples`, without padding.

    Args:
        model: a bare classifier (not wrapped for data parallelism: ranks may hold unequal parts).
        take: from samples (B,) to their images (B, 3, S, S) uint8 and labels (B,) on `device`.
        samples: (n,) int64 on the CPU: what this rank evaluates; may be empty.

    Returns:
        (3,) float64 on `device`: this rank's `sums`; add them over ranks once.
    """
    model.eval()
    total = torch.zeros(3, dtype=torch.float64, device=device)
    for part in samples.split(batch_size):
        images, labels = take(part)
        with autocast(device, precision):
            logits = model(normalize(images, dataset.mean, dataset.std))
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        total += sums(logits, labels, loss)
    model.train()
    return total


def choose_precision(model: nn.Module, inputs: Tensor) -> tuple[Precision, str]:
    """Decide between float32 and bfloat16 autocast for training, and say why.

    A GPU with bfloat16 gains from it. A CPU gains where AVX512_BF16 or AMX multiply it and the
    model is wide enough, so there three steps of each are timed; bfloat16 must win by 10 %.

    Args:
        model: the bare model; its gradients are cleared.
        inputs: (B, 3, S, S) float32, a batch of a rank's size on the model's device.
    """
    if inputs.device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "the GPU multiplies bfloat16"
        return "float32", "the GPU does not multiply bfloat16"
    if not torch.cpu._is_avx512_bf16_supported():
        return "float32", "the CPU has neither AVX512_BF16 nor AMX"
    seconds = {name: _probe(model, inputs, name) for name in ("float32", "bfloat16")}
    ratio = seconds["float32"] / seconds["bfloat16"]
    choice: Precision = "bfloat16" if ratio > 1.1 else "float32"
    return choice, f"bfloat16 ran at {ratio:.2f} times the speed of float32 in a probe"


def _probe(model: nn.Module, inputs: Tensor, precision: Literal["float32", "bfloat16"]) -> float:
    """Shortest of three forward and backward passes, in seconds, after one to warm up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        with autocast(inputs.device, precision):
            logits = model(inputs)
        logits.float().logsumexp(dim=1).sum().backward()
        times.append(time.perf_counter() - start)
        model.zero_grad(set_to_none=True)
    return min(times[1:])
