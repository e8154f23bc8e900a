"""Automatic augmentation: which operations a sample gets, and how strong.

Three kinds of policy, as in torchvision: AutoAugment (Cubuk et al. 2019) draws one of 25 pairs of
operations, each with its own probability and level; RandAugment (Cubuk et al. 2020) draws some
operations, all at one level; TrivialAugment (Mueller and Hutter 2021; its wide ranges) draws one
operation and its level. A level is a row's position in a table of magnitudes.

Shapes: B samples, K operations one after the other.
"""

import functools
from typing import Final

import torch
from torch import Tensor

from vit.augment.operations import OPS
from vit.config import AugmentConfig

AUTOAUGMENT_CIFAR10: Final = (
    (("Invert", 0.1, None), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, None), ("Equalize", 0.9, None)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, None), ("Equalize", 0.5, None)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, None), ("AutoContrast", 0.4, None)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, None)),
    (("Equalize", 0.2, None), ("AutoContrast", 0.6, None)),
    (("Equalize", 0.2, None), ("Equalize", 0.6, None)),
    (("Color", 0.9, 9), ("Equalize", 0.6, None)),
    (("AutoContrast", 0.8, None), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, None)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, None), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, None), ("Invert", 0.1, None)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, None)),
)
"""Cubuk et al. 2019, table 7: sub-policies of two steps (operation, probability, level 0 to 9)."""

AUTOAUGMENT_IMAGENET: Final = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, None)),
    (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, None), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, None), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, None)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, None)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, None), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, None)),
    (("Equalize", 0.0, None), ("Equalize", 0.8, None)),
    (("Invert", 0.6, None), ("Equalize", 1.0, None)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, None)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, None)),
    (("Color", 0.4, 0), ("Equalize", 0.6, None)),
    (("Equalize", 0.4, None), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, None)),
    (("Invert", 0.6, None), ("Equalize", 1.0, None)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
)
"""Cubuk et al. 2019, table 9, as torchvision has it."""

SIGNED: Final = frozenset(OPS[1:10])
"""Operations whose magnitude has a sign: geometry and blends."""

_SPACE: Final = 14
"""RandAugment and TrivialAugment draw from the first 14 of OPS, which are all but Invert."""


def draws(config: AugmentConfig) -> int:
    """Number of uniform draws that `choose` takes for a sample."""
    match config.policy:
        case "none":
            return 0
        case "randaugment":
            return 2 * config.randaugment_ops  # operation and sign of each
        case "trivialaugment":
            return 3  # operation, level, sign
        case _:
            return 5  # sub-policy, use of each step, sign of each step


def choose(config: AugmentConfig, size: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the operations of each sample.

    Args:
        config: its `policy`, and the settings of RandAugment.
        size: side of the images in pixels, on which shifts of some policies depend.
        uniform: (B, draws(config)) float64 in [0, 1).

    Returns:
        (B, K) int64, positions in OPS, and (B, K) float32, signed magnitudes as torchvision's
        `_apply_op` takes them.
    """
    match config.policy:
        case "none":
            return torch.empty((len(uniform), 0), dtype=torch.int64), torch.empty(len(uniform), 0)
        case "randaugment":
            ops, signs = (uniform.unflatten(1, (-1, 2)) * _factors(_SPACE, 2)).long().unbind(2)
            magnitudes = _magnitudes(31, size, False)[ops, config.randaugment_magnitude]
            return ops, _sign(ops, magnitudes, signs == 0)
        case "trivialaugment":
            ops, levels, signs = (uniform * _factors(_SPACE, 31, 2)).long().split(1, dim=1)
            return ops, _sign(ops, _magnitudes(31, size, True)[ops, levels], signs == 0)
        case "autoaugment-cifar10" | "autoaugment-imagenet":
            return _autoaugment(config.policy, size, uniform)


@functools.lru_cache
def _factors(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _sign(ops: Tensor, magnitudes: Tensor, negative: Tensor) -> Tensor:
    """Negate magnitudes where `negative`, if the operation's magnitude has a sign."""
    return torch.where(negative & _signed()[ops], -magnitudes, magnitudes)


@functools.lru_cache
def _signed() -> Tensor:
    return torch.tensor([op in SIGNED for op in OPS])


def _autoaugment(policy: str, size: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
    table = _sub_policies(policy, size)
    row = (uniform[:, 0] * len(table[0])).long()
    ops, probabilities, magnitudes = (column.index_select(0, row) for column in table)
    used = uniform[:, 1:3] < probabilities
    return ops * used, _sign(ops, magnitudes, uniform[:, 3:5] < 0.5) * used


@functools.lru_cache
def _sub_policies(policy: str, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tables, (25, 2) each: operation, probability, magnitude without sign."""
    pairs = AUTOAUGMENT_CIFAR10 if policy == "autoaugment-cifar10" else AUTOAUGMENT_IMAGENET
    steps = [step for pair in pairs for step in pair]
    ops = torch.tensor([OPS.index(op) for op, _, _ in steps])
    levels = torch.tensor([level or 0 for _, _, level in steps])
    probabilities = torch.tensor([chance for _, chance, _ in steps], dtype=torch.float64)
    magnitudes = _magnitudes(10, size, False)[ops, levels]
    return ops.view(-1, 2), probabilities.view(-1, 2), magnitudes.view(-1, 2)


@functools.lru_cache
def _magnitudes(levels: int, size: int, wide: bool) -> Tensor:
    """Magnitudes without sign, (15, levels) float32, of each of OPS; bit for bit torchvision's.

    Args:
        levels: number of levels.
        size: side of the images in pixels.
        wide: whether the ranges are those of TrivialAugment.
    """
    # 150 of 331 pixels in the paper: a fraction of the side, except in TrivialAugment.
    shift = 32.0 if wide else 150.0 / 331.0 * size
    blend, shear, rotate, bits = (0.99, 0.99, 135.0, 6) if wide else (0.9, 0.3, 30.0, 4)
    most = dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), blend)
    most |= {"ShearX": shear, "ShearY": shear, "Rotate": rotate}
    most |= {"TranslateX": shift, "TranslateY": shift}
    rows = {op: torch.linspace(0.0, limit, levels) for op, limit in most.items()}
    rows["Solarize"] = torch.linspace(255.0, 0.0, levels)
    rows["Posterize"] = 8 - (torch.arange(levels) / ((levels - 1) / bits)).round()
    return torch.stack([rows.get(op, torch.zeros(levels)) for op in OPS])
