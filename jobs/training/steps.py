"""What the steps of any training share: the samples of a batch, the update, the averaged weights.

Which samples make a global batch is a function of (seed, epoch, step), never of the number of
workers; a rank takes its part of it.
"""

import copy
import functools

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from vit import rng
from vit.data.decode import DataError


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return how many whole global batches `n` samples make; an epoch leaves out the rest.

    Raises:
        DataError: `n` samples do not make one batch.
    """
    if not 0 < batch_size <= n:
        raise DataError(
            f"batch_size is {batch_size}, the training set has {n} images; "
            "a batch must be at least 1 and at most as large as the set"
        )
    return n // batch_size


def batch(n: int, batch_size: int, seed: int, epoch: int, step: int) -> Tensor:
    """Return the samples of global batch `step` of `epoch`, whatever the number of workers.

    Returns:
        (batch_size,) int64 positions in 0..n-1 on the CPU: a slice of the epoch's permutation.

    Raises:
        DataError: `n` samples do not make one batch.
        IndexError: the epoch has no such step.
    """
    steps = steps_per_epoch(n, batch_size)
    if not 0 <= step < steps:
        raise IndexError(f"step {step} of an epoch of {steps} steps")
    return _order(n, seed, epoch)[step * batch_size : (step + 1) * batch_size].clone()


@functools.lru_cache(maxsize=2)  # decoding ahead is in the next epoch before this one is over
def _order(n: int, seed: int, epoch: int) -> Tensor:
    return rng.permutation(n, seed, "order", epoch)


def shard(indices: Tensor, rank: int, world: int, unit: int = 1) -> Tensor:
    """Return rank `rank`'s part of `indices` (n,): contiguous, without padding.

    The parts of ranks 0..world-1 put together are `indices`, for every `world`; their sizes differ
    by at most `unit`, and a part is empty where there are more ranks than units. With `unit` 2,
    which must divide n, neighbours stay together. Evaluation shards torch.arange(n).
    """
    return indices.view(-1, unit).tensor_split(world)[rank].flatten()


def update(model: nn.Module, optimizer: torch.optim.Optimizer, rate: float, clip: float) -> Tensor:
    """Clip the gradient's norm, take an optimizer step, clear the gradient.

    Args:
        model: the model whose gradient is in `.grad`.
        optimizer: each of its groups has a `peak`, the learning rate at the top of the schedule.
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


def start_average(model: nn.Module, half_life: float) -> nn.Module | None:
    """Return a copy of a bare model for the average of its weights; None if `half_life` is 0."""
    return copy.deepcopy(model).requires_grad_(False).eval() if half_life > 0 else None


@torch.no_grad()
def update_average(
    average: nn.Module | None, model: nn.Module, half_life: float, batch_size: int, step: int
) -> None:
    """Move the average of the weights towards the weights after optimizer step `step` (0-based).

    A step's share halves every `half_life` samples, whatever the batch; in the beginning it is
    never below 9 / (step + 10), so that the initial weights are soon forgotten (as in TensorFlow's
    ExponentialMovingAverage).

    Args:
        average: made by `start_average`; float32. None: nothing is done.
        model: the bare model; it has no buffers.
        half_life: samples after which a step's share has halved.
        batch_size: samples of a global batch.
    """
    if average is None:
        return
    kept = min(0.5 ** (batch_size / half_life), (step + 1) / (step + 10))
    mine: list[Tensor] = list(average.parameters())
    torch._foreach_lerp_(mine, list(model.parameters()), 1 - kept)
