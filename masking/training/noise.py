"""Uniform random numbers that depend on nothing but a seed and a place, on any device."""

import torch
from torch import Tensor


def noise(seeds: Tensor, *shape: int) -> Tensor:
    """Return uniform numbers in [0, 1) for each seed.

    Args:
        seeds: (N,) int64.
        shape: shape of the numbers of each seed.

    Returns:
        (N, *shape) float32 on the device of the seeds.
    """
    count = torch.Size(shape).numel()
    places = torch.arange(count, device=seeds.device) * -0x61C8864680B583EB
    bits = mix(mix(seeds)[:, None] + places)
    return ((bits >> 40) & 0xFFFFFF).float().div(1 << 24).view(len(seeds), *shape)


def mix(x: Tensor) -> Tensor:
    """Scatter the bits of int64, one to one (splitmix64's finalizer, wrapping)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ _shift_right(x, shift)) * factor
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, shift: int) -> Tensor:
    """Shift int64 as if it had no sign: torch's own shift would copy the sign."""
    return (x >> shift) & ((1 << (64 - shift)) - 1)
