"""Randomness without state: every draw is a function of seed, stream, epoch or step, and sample.

A generator that advances would make an augmentation depend on how many draws came before it on
this process, so on the number of workers and on every restart. Here a draw is a hash of its
coordinates and is the same wherever and whenever it is computed. This is the idea of counter-based
generators (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

import functools
import hashlib
import struct

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def fold(*parts: int | str) -> int:
    """Hash any ints and strings to one non-negative 63-bit seed, e.g. for a torch.Generator."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    (value,) = struct.unpack("<Q", hashlib.blake2b(text.encode(), digest_size=8).digest())
    return int(value >> 1)


def _mix(x: Tensor) -> Tensor:
    """Hash 32-bit integers, held in int64, by lowbias32 (C. Wellons, 2018), a bijection.

    Products wrap modulo 2^64 on every device; only their low 32 bits are kept.
    """
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def uniform(samples: Tensor, draws: int, *key: int | str) -> Tensor:
    """Draw uniform numbers in [0, 1), a row for each sample.

    Args:
        samples: (B,) int64 indices of samples in their data set, below 2^32.
        draws: how many numbers each sample gets; more draws do not change the first ones.
        key: what else the draws depend on, such as seed, name of the stream, epoch, step.

    Returns:
        (B, draws) float32 on the device of `samples`, multiples of 2^-24.
    """
    seed = fold(*key)
    rows = _mix(_mix((samples & _MASK) ^ (seed & _MASK)) ^ (seed >> 32))
    bits = _mix(rows[:, None] ^ _columns(draws, seed, samples.device))
    return (bits >> 8).to(torch.float32) * 2.0**-24


@functools.lru_cache(maxsize=64)
def _columns(draws: int, seed: int, device: torch.device) -> Tensor:
    """Hashes of the columns, (draws,) int64; cached, as all batches of an epoch share them."""
    columns = torch.arange(1, draws + 1, device=device, dtype=torch.int64)
    return _mix((columns * 0x9E3779B9 + (seed >> 31)) & _MASK)


def permutation(n: int, *key: int | str) -> Tensor:
    """Draw a permutation of range(n) as a function of `key`: (n,) int64 on the CPU."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(fold(*key)))
