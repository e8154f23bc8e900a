"""Augmentation of a whole batch at once, with another choice for every sample.

Two halves: `choose` decides (where to crop, whether to flip, which operations at which magnitude),
`apply` carries it out. Only `choose` knows what a policy is; another policy (RandAugment,
TrivialAugment) is another way to fill `Choices.ops` and `Choices.magnitudes`.

Pixels come out as from torchvision's RandomCrop, RandomHorizontalFlip and AutoAugment on uint8
tensors (interpolation nearest, fill 0), which draw one choice a call and so want a loop over the
samples. Here each operation takes, in one go, the samples of the batch that want it: a policy
changes about half the samples in each of its steps, so doing every operation to every sample and
selecting would cost many times more than the indexing.

Shapes: B samples, N the samples of one operation, H and W pixels, K steps of the policy.
"""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.config import AugmentConfig
from vit.rng import uniform

OPS: Final = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize"),
    *("AutoContrast", "Equalize", "Invert"),
)
"""Names of the operations, torchvision's; `Choices.ops` holds positions in this tuple."""

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

_KIND: Final = {
    **{op: op for op in OPS},
    **dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"), "affine"),
    **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), "blend"),
}
"""Operations of one kind, neighbours in OPS, are done as one."""


@dataclass(frozen=True)
class Choices:
    """What happens to each sample of a batch, in this order. All tensors are on the CPU."""

    crop: Tensor
    """(B, 2) int64: top, left of the crop in the padded image, in pixels."""
    flip: Tensor
    """(B,) bool: flipped left to right."""
    ops: Tensor
    """(B, K) int64: the operations, one after the other, as positions in OPS."""
    magnitudes: Tensor
    """(B, K) float32, signed: what torchvision's `_apply_op` takes as magnitude."""


def augment(
    images: Tensor, config: AugmentConfig, seed: int, epoch: int, samples: Tensor
) -> Tensor:
    """Crop, flip and policy, as `config` says.

    The result of a sample is a function of its pixels, (seed, epoch) and its index alone: neither
    the rest of the batch, nor its place in it, nor the device changes it.

    The choices are made on the CPU, where it is free to branch on them. Pass `samples` on the CPU
    and nothing waits for the device; on the device they cost one copy back, a wait.

    Args:
        images: (B, 3, H, W) uint8 on any device; not changed.
        config: what to do.
        seed: of the run.
        epoch: of the pass over the data.
        samples: (B,) int64, the images' indices in the data set, best on the CPU.

    Returns:
        (B, 3, H, W) uint8 on the device of `images`, a new tensor.

    Raises:
        ValueError: images or samples are of another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {_described(images)}; expected (B, 3, H, W) torch.uint8")
    if samples.dtype != torch.int64 or samples.shape != images.shape[:1]:
        expected = f"({len(images)},) torch.int64, one index an image"
        raise ValueError(f"samples are {_described(samples)}; expected {expected}")
    height, width = images.shape[-2:]
    return apply(images, config, choose(config, height, width, seed, epoch, samples))


def normalize(
    images: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(images / 255 - mean) / std per channel, computed in float32 as torchvision does.

    Args:
        images: (B, C, H, W) uint8.
        mean: of each of the C channels, in units of 0 to 1.
        std: likewise.
        dtype: of the result.

    Returns:
        (B, C, H, W) of `dtype` on the device of `images`.
    """
    center, scale = (
        torch.tensor(value).to(images.device, non_blocking=True)[:, None, None]
        for value in (mean, std)
    )
    return images.to(torch.float32).div_(255).sub_(center).div_(scale).to(dtype)


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


# Choosing


def choose(
    config: AugmentConfig, height: int, width: int, seed: int, epoch: int, samples: Tensor
) -> Choices:
    """Draw what happens to each sample of (B,) `samples`; arguments as in `augment`.

    Draws are used by position (0, 1: crop; 2: flip; from 3 on: the policy), so switching one part
    off leaves the choices of the others as they are.
    """
    # float64: in float32 the largest draw, 1 - 2^-24, times 9 would round up to 9.
    draws = uniform(samples.cpu(), 8, seed, "augment", epoch).double()
    ops, magnitudes = _choose_ops(config, height, width, draws[:, 3:])
    return Choices(
        crop=(draws[:, :2] * (2 * config.crop_padding + 1)).long(),
        flip=draws[:, 2] < config.hflip,
        ops=ops,
        magnitudes=magnitudes,
    )


def _choose_ops(
    config: AugmentConfig, height: int, width: int, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """`Choices.ops` and `Choices.magnitudes` for (B, 5) draws: sub-policy, 2 x use, 2 x sign."""
    if config.policy == "none":
        return torch.empty((len(draws), 0), dtype=torch.int64), torch.empty((len(draws), 0))
    table = _cifar10_table(height, width)
    row = (draws[:, 0] * len(AUTOAUGMENT_CIFAR10)).long()
    ops, probabilities, magnitudes, signed = (column.index_select(0, row) for column in table)
    used = draws[:, 1:3] < probabilities
    negative = signed & (draws[:, 3:5] < 0.5)
    return ops * used, torch.where(negative, -magnitudes, magnitudes) * used


@functools.lru_cache
def _cifar10_table(height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(25, 2) each: operation, probability, magnitude without sign, whether a sign is drawn."""
    limits = _signed_limits(height, width)
    steps = [step for policy in AUTOAUGMENT_CIFAR10 for step in policy]
    ops = [OPS.index(op) for op, _, _ in steps]
    probabilities = [probability for _, probability, _ in steps]
    magnitudes = [0.0 if level is None else _magnitude(op, level, limits) for op, _, level in steps]
    signed = [op in limits for op, _, _ in steps]
    return (
        torch.tensor(ops).view(-1, 2),
        torch.tensor(probabilities, dtype=torch.float64).view(-1, 2),
        torch.tensor(magnitudes, dtype=torch.float32).view(-1, 2),
        torch.tensor(signed).view(-1, 2),
    )


def _signed_limits(height: int, width: int) -> dict[str, float]:
    """The magnitude at level 9 of those operations that go both ways."""
    limits = dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.9)
    shift = 150.0 / 331.0  # of the paper's 331 pixels; a fraction of the side elsewhere
    return limits | {
        "ShearX": 0.3,
        "ShearY": 0.3,
        "TranslateX": shift * width,
        "TranslateY": shift * height,
        "Rotate": 30.0,
    }


def _magnitude(op: str, level: int, limits: dict[str, float]) -> float:
    """The magnitude at a level 0 to 9, to the last bit of torchvision's float32 linspace."""
    if op == "Posterize":
        return 8.0 - round(level / (9 / 4))
    start, end = (255.0, 0.0) if op == "Solarize" else (0.0, limits[op])
    return float(torch.linspace(start, end, 10)[level])


# Applying


def apply(images: Tensor, config: AugmentConfig, choices: Choices) -> Tensor:
    """Do to each of (B, 3, H, W) uint8 images what `choices` says; returns a new tensor."""
    images = _flip(_crop(images, config.crop_padding, choices.crop), choices.flip)
    for ops, magnitudes in zip(choices.ops.unbind(1), choices.magnitudes.unbind(1), strict=True):
        images = _apply_ops(images, ops, magnitudes)
    return images


def _apply_ops(images: Tensor, ops: Tensor, magnitudes: Tensor) -> Tensor:
    """One step of a policy: (B,) operations with their (B,) magnitudes, both on the CPU.

    The images are sorted by operation and put back afterwards: both copy whole samples, many times
    faster on a CPU than writing the results of each operation to their places.
    """
    order = ops.argsort(stable=True)
    names = [OPS[op] for op in ops[order].tolist()]
    groups = [(kind, list(group)) for kind, group in itertools.groupby(names, _KIND.__getitem__)]
    sizes = [len(group) for _, group in groups]
    parts = torch.split(_pick(images, order), sizes), torch.split(magnitudes[order], sizes)
    results = [
        _DO[kind](part, group, amounts)
        for (kind, group), part, amounts in zip(groups, *parts, strict=True)
    ]
    return _pick(torch.cat(results or [images]), order.argsort())


def _pick(images: Tensor, index: Tensor) -> Tensor:
    """images[index] for an index on the CPU."""
    return images.index_select(0, index.to(images.device, non_blocking=True))


def _column(values: Tensor, images: Tensor) -> Tensor:
    """(N,) CPU numbers as (N, 1, 1, 1) on the images' device."""
    return values.to(images.device, non_blocking=True)[:, None, None, None]


def _crop(images: Tensor, padding: int, corner: Tensor) -> Tensor:
    """Cut (H, W) out of the zero-padded images at (B, 2) CPU corners (top, left); a new tensor."""
    batch, channels, height, width = images.shape
    canvas = F.pad(images, (padding,) * 4)
    top, left = corner.to(images.device, non_blocking=True)[:, :, None, None].unbind(1)
    plane = torch.arange(batch * channels, device=images.device).view(batch, channels, 1)
    y = top + torch.arange(height, device=images.device)  # (B, 1, H)
    starts = (plane * canvas.shape[2] + y) * canvas.shape[3] + left  # (B, 3, H)
    # All runs of `width` bytes, overlapping, as the rows of a view: each row of the result is one
    # copy of a run, on a CPU three times faster than a gather of bytes.
    runs = canvas.as_strided((max(canvas.numel() - width + 1, 0), width), (1, 1))
    return runs.index_select(0, starts.flatten()).view(images.shape)


def _flip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror left to right where (B,) `flip`, on the CPU, says so."""
    # Bitwise, as torch.where is four times slower on bytes.
    mask = _column(flip.to(torch.uint8).neg(), images)
    return images ^ ((images ^ images.flip(-1)) & mask)


# The operations: functions of (N, 3, H, W) uint8, the N names of what to do (sorted as in OPS) and
# (N,) float32 magnitudes on the CPU.
#
# Geometry. Coordinates are centred: (x, y) of a pixel's middle, in pixels, origin at the middle of
# the image.


def _inverse_matrix(
    name: str, magnitude: float, height: int, width: int
) -> tuple[float, float, float, float, float, float]:
    """From (x, y, 1) in the result to (x, y) in the source, row by row."""
    match name:
        case "ShearX":  # leaves the first row where it is, as in the paper
            return 1, magnitude, magnitude * height / 2, 0, 1, 0
        case "ShearY":
            return 1, 0, 0, magnitude, 1, magnitude * width / 2
        case "TranslateX":
            return 1, 0, -int(magnitude), 0, 1, 0
        case "TranslateY":
            return 1, 0, 0, 0, 1, -int(magnitude)
        case _:  # Rotate, in degrees, counter-clockwise
            cosine, sine = math.cos(math.radians(magnitude)), math.sin(math.radians(magnitude))
            return cosine, -sine, 0, sine, cosine, 0


def _affine(images: Tensor, names: list[str], magnitudes: Tensor) -> Tensor:
    """Shear, shift or rotate: take the nearest pixel, 0 where there is none.

    Coordinates pass through grid_sample's range of -1 to 1 as torchvision's do, so that halfway
    between two pixels the same one is taken (to the last bit of torchvision's matrix product,
    which is not used here: TF32 or autocast would spoil it).
    """
    height, width = images.shape[-2:]
    steps = zip(names, magnitudes.tolist(), strict=True)
    rows = [_inverse_matrix(*step, height, width) for step in steps]
    inverse = _column(torch.tensor(rows, dtype=torch.float32), images).view(-1, 2, 3, 1, 1)
    sizes = torch.tensor([width, height]).to(images.device, non_blocking=True)[:, None, None]
    half = sizes / 2
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
    a, b, shift = (inverse / half[:, None]).unbind(2)
    source = (a * x + b * y).add_(shift).add_(1).mul_(half).sub_(0.5).round_()  # (N, 2, H, W)
    # Into a frame with a border of one black pixel, where all that lies outside ends up.
    column, row = source.add_(1).clamp_(min=0).minimum(sizes + 1).unbind(1)
    index = row.mul_(width + 2).add_(column).long().flatten(1)[:, None]  # (N, 1, HW)
    bordered = F.pad(images, (1, 1, 1, 1)).flatten(2)
    return bordered.gather(2, index.expand(-1, 3, -1)).view_as(images)


# Colour


def _to_bytes(pixels: Tensor) -> Tensor:
    """Clamp, in place, and cut off the fraction, as torchvision does."""
    # By way of int16: on a CPU four times faster than from float straight to bytes.
    return pixels.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _blend(images: Tensor, names: list[str], magnitudes: Tensor) -> Tensor:
    """Move away from another image (magnitude above 0) or towards it (below, to -1).

    The other image is black for Brightness, gray for Color, the mean gray for Contrast, blurred for
    Sharpness (torchvision leaves images of one or two rows or columns alone there; these may come
    out one level darker).
    """
    sizes = [names.count(name) for name in ("Brightness", "Color", "Contrast", "Sharpness")]
    pixels = images.to(torch.float32)
    bright, color, contrast, sharp = torch.split(pixels, sizes)
    mean = _gray(contrast).mean((1, 2, 3), keepdim=True)
    others = [torch.zeros_like(bright), _gray(color).expand_as(color), mean.expand_as(contrast)]
    other = torch.cat([*others, _blurred(sharp)])
    magnitude = _column(magnitudes, images)
    return _to_bytes(pixels.mul_(1 + magnitude).sub_(other.mul_(magnitude)))


def _gray(pixels: Tensor) -> Tensor:
    """(N, 1, H, W) float32, whole numbers."""
    red, green, blue = torch.split(pixels, 1, dim=1)
    return (0.2989 * red).add_(0.587 * green).add_(0.114 * blue).trunc_()


def _blurred(pixels: Tensor) -> Tensor:
    """Mean of 3x3 pixels, weights 1 and 5 in the middle, rounded; the border stays.

    Sums of bytes are exact in float32 and no sum / 13 is a tie, so this rounds as a convolution
    does, at a third of the time.
    """
    rows = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    blurred = pixels.clone()
    inner = blurred[..., 1:-1, 1:-1]
    inner.mul_(4).add_(total).div_(13).round_()
    return blurred


def _posterize(images: Tensor, names: list[str], magnitudes: Tensor) -> Tensor:
    """Keep the leading bits, as many as the magnitude says, 1 to 8."""
    masks = (255 << (8 - magnitudes.to(torch.int32))).to(torch.uint8)
    return images & _column(masks, images)


def _solarize(images: Tensor, names: list[str], magnitudes: Tensor) -> Tensor:
    """Invert from the magnitude, 0 to 255, upwards."""
    threshold = _column(magnitudes.ceil().to(torch.uint8), images)
    # x ^ 255 is 255 - x; four times faster on a CPU than torch.where.
    return (images >= threshold).to(torch.uint8).mul_(255).bitwise_xor_(images)


def _autocontrast(images: Tensor, names: list[str], magnitudes: Tensor) -> Tensor:
    """Stretch each channel to 0..255; one of a single value stays."""
    low = images.amin((2, 3), keepdim=True).to(torch.float32)
    high = images.amax((2, 3), keepdim=True).to(torch.float32)
    flat = low == high
    scale = (255 / (high - low)).masked_fill_(flat, 1)
    return _to_bytes(images.to(torch.float32).sub_(low.masked_fill_(flat, 0)).mul_(scale))


def _equalize(images: Tensor, names: list[str], magnitudes: Tensor) -> Tensor:
    """Level the histogram of each channel through a table of 256 bytes, as Pillow does.

    A channel stays where all pixels but those of its brightest value number fewer than 255.
    """
    values = images.flatten(0, 1).flatten(1).long()  # (3N, HW)
    ones = torch.ones_like(values, dtype=torch.int32)
    # Not bincount: on CUDA it waits for the device to learn the largest value.
    counts = ones.new_zeros((len(values), 256)).scatter_add_(1, values, ones)
    brightest = counts.gather(1, images.amax((2, 3)).long().view(-1, 1))
    step = (values.shape[1] - brightest) // 255
    darker = counts.cumsum(1, dtype=torch.int32) - counts
    table = ((darker + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    identity = torch.arange(256, device=images.device, dtype=torch.int32)
    table = torch.where(step == 0, identity, table).to(torch.uint8)
    return table.gather(1, values).view_as(images)


def _invert(images: Tensor, names: list[str], magnitudes: Tensor) -> Tensor:
    return 255 - images


def _identity(images: Tensor, names: list[str], magnitudes: Tensor) -> Tensor:
    return images


_DO: Final = {
    "Identity": _identity,
    "affine": _affine,
    "blend": _blend,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": _invert,
}
