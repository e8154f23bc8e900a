"""Augmentation of a whole batch at once, with another choice for every sample.

It has two halves: `choose` draws where to crop, whether to flip and which operations to do at which
magnitude; `apply` does it. Pixels are those of torchvision's RandomCrop or RandomResizedCrop,
RandomHorizontalFlip and automatic augmentation on uint8 tensors, which make one choice a call.
`erase` and `mix`, which follow normalisation, choose and apply in one.

All draws for a sample are a function of (seed, epoch) and its index in the data set: they do not
depend on the rest of the batch, on the place in it, or on the device. They are made on the CPU,
where branches on them cost nothing: with `samples` on the CPU nothing waits for the device; on the
device they cost a copy to the CPU, and a wait.

Shapes: B samples, H and W pixels of a stored image, S (`size`) the side in pixels of the model's
images, K operations of a policy.
"""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import Tensor

from vit.augment import operations, policies
from vit.augment.resize import resized_crop
from vit.config import AugmentConfig
from vit.packing import Planned
from vit.rng import uniform

_TRIES = 10
"""Number of rectangles of random area and shape, of which the first that fits is taken."""


@dataclass(frozen=True)
class Choices:
    """What happens to each sample of a batch, in this order. All tensors are on the CPU."""

    box: Tensor
    """(B, 4) int64: top, left, height, width of the crop, in pixels of the padded image."""
    flip: Tensor
    """(B,) bool: whether the image is flipped left to right."""
    ops: Tensor
    """(B, K) int64: operations, one after the other, as positions in `operations.OPS`."""
    magnitudes: Tensor
    """(B, K) float32: signed magnitudes as torchvision's `_apply_op` takes them."""


def augment(
    images: Tensor, config: AugmentConfig, seed: int, epoch: int, samples: Tensor, size: int
) -> Tensor:
    """Crop and flip images, and apply the policy, as `config` says.

    Args:
        images: (B, 3, H, W) uint8 on any device; not changed.
        config: settings of the augmentation.
        seed: seed of the run.
        epoch: number of the pass over the data.
        samples: (B,) int64, the images' indices in the data set, preferably on the CPU.
        size: side of the result in pixels.

    Returns:
        (B, 3, size, size) uint8 on the device of `images`, a new tensor.

    Raises:
        ValueError: images or samples have another dtype or shape, or images are too small to crop.
    """
    result: Tensor = plan_augment(images, config, seed, epoch, samples, size).on(images)
    return result


def plan_augment(
    images: Tensor, config: AugmentConfig, seed: int, epoch: int, samples: Tensor, size: int
) -> Planned:
    """Plan `augment` for these images; takes its arguments and raises its errors."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {_described(images)}; expected (B, 3, H, W) torch.uint8")
    if samples.dtype != torch.int64 or samples.shape != images.shape[:1]:
        expected = f"({len(images)},) torch.int64, one index an image"
        raise ValueError(f"samples are {_described(samples)}; expected {expected}")
    height, width = images.shape[-2:]
    return _planned(config, choose(config, height, width, size, seed, epoch, samples), size)


def center_crop(images: Tensor, size: int) -> Tensor:
    """Cut out the middle of each image, as torchvision's CenterCrop does, for evaluation.

    Args:
        images: (B, 3, H, W) uint8.
        size: side of the result in pixels, at most H and W.

    Returns:
        (B, 3, size, size) uint8, a view of `images`.

    Raises:
        ValueError: the images are smaller.
    """
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise ValueError(
            f"images of {height}x{width} pixels are smaller than model.image_size {size};"
            " store them at least as large (dataset.store_size)"
        )
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def normalize(
    images: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute (images / 255 - mean) / std for each channel, in float32 as torchvision does.

    Args:
        images: (B, C, H, W) uint8.
        mean: mean of each of the C channels, in units of 0 to 1.
        std: standard deviation of each channel, in units of 0 to 1.
        dtype: dtype of the result.

    Returns:
        (B, C, H, W) of `dtype` on the device of `images`.
    """
    center, scale = _channels(mean, images.device), _channels(std, images.device)
    return images.to(torch.float32).div_(255).sub_(center).div_(scale).to(dtype)


@functools.lru_cache(maxsize=16)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Copy values to a device, (C, 1, 1) float32; cached, as all batches use them."""
    return torch.tensor(values).to(device, non_blocking=True)[:, None, None]


def erase(inputs: Tensor, config: AugmentConfig, seed: int, epoch: int, samples: Tensor) -> Tensor:
    """Erase a random rectangle of some samples: torchvision's RandomErasing (Zhong et al. 2020).

    It covers 0.02 to 0.33 of the image's area at a ratio of height to width of 0.3 to 3.3.
    Arguments that are not listed are those of `augment`.

    Args:
        inputs: (B, C, H, W) normalised images on any device; not changed.
        config: `erasing` is the probability.

    Returns:
        (B, C, H, W), a new tensor with 0, the mean colour, in the rectangles.
    """
    height, width = inputs.shape[-2:]
    result: Tensor = plan_erase(height, width, config, seed, epoch, samples).on(inputs)
    return result


def plan_erase(
    height: int, width: int, config: AugmentConfig, seed: int, epoch: int, samples: Tensor
) -> Planned:
    """Plan `erase` for images of `height` and `width` pixels."""
    draws = uniform(samples.cpu(), 3 + 2 * _TRIES, seed, "erase", epoch).double()
    most = height - 1, width - 1  # never a whole side, as in torchvision
    sides, fits = _sides(draws[:, 3:], (0.02, 0.33), (0.3, 3.3), height * width, most)
    sides = sides * (fits & (draws[:, 0] < config.erasing))[:, None]
    edges = _edges(_placed(draws[:, 1:3], sides, height, width))
    return Planned((edges,), lambda inputs, edges: inputs.masked_fill(_inside(edges, inputs), 0))


def mix(
    inputs: Tensor, config: AugmentConfig, seed: int, epoch: int, samples: Tensor
) -> tuple[Tensor, Tensor]:
    """Mix each sample with its neighbour in the batch: 0 with 1, 2 with 3 and so on.

    Mixup (Zhang et al. 2018) averages the two, CutMix (Yun et al. 2019) pastes a box of the other
    in, as torchvision's MixUp and CutMix do with one draw for a whole batch; here each sample has
    its own kind and share. The two samples of a pair must be the same on any number of workers. The
    loss takes `share` of the sample's own label and 1 - share of its neighbour's. Arguments that
    are not listed are those of `augment`.

    Args:
        inputs: (B, C, H, W) normalised images on any device, B even; not changed.
        config: `mixup`, `cutmix` (one of them above 0) and `mix_prob`.

    Returns:
        (B, C, H, W), a new tensor, and (B,) float32 on its device: the share of each sample itself.

    Raises:
        ValueError: B is odd, or `mixup` and `cutmix` are both 0.
    """
    height, width = inputs.shape[-2:]
    found: tuple[Tensor, Tensor]
    found = plan_mix(height, width, config, seed, epoch, samples).on(inputs)
    return found


def plan_mix(
    height: int, width: int, config: AugmentConfig, seed: int, epoch: int, samples: Tensor
) -> Planned:
    """Plan `mix` for images of `height` and `width` pixels; raises its errors."""
    if len(samples) % 2:
        raise ValueError(f"a batch of {len(samples)} cannot be mixed in pairs; it must be even")
    if config.mixup == config.cutmix == 0:
        raise ValueError("augment.mixup and augment.cutmix are both 0; one must be above")
    draws = uniform(samples.cpu(), 5, seed, "mix", epoch).double()
    share, boxes = _mixture(config, draws, height, width)
    free = 1 - boxes[:, 2:].prod(1) / (height * width)

    def run(inputs: Tensor, outside: Tensor, edges: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        outside = outside.to(inputs.dtype)[:, None, None, None]
        weight = outside.masked_fill(_inside(edges, inputs), 0)  # (B, 1, H, W), of the own pixels
        partners = inputs.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        return torch.lerp(partners, inputs, weight), own

    return Planned((share, _edges(boxes), (share * free).float()), run)


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


# Choosing. Draws are float64 in [0, 1): in float32 the largest, 1 - 2^-24, times 9 rounds up to 9.


def choose(
    config: AugmentConfig,
    height: int,
    width: int,
    size: int,
    seed: int,
    epoch: int,
    samples: Tensor,
) -> Choices:
    """Draw the choices for each of (B,) `samples`; takes the arguments of `augment`.

    Draws are used by position (0, 1: crop; 2: flip; from 3 onwards: the policy), so that switching
    one part off does not change the choices of the others.
    """
    samples = samples.cpu()
    count = 3 + policies.draws(config)
    draws = uniform(samples, count, seed, "augment", epoch).double()
    if config.crop == "resized":
        shapes = uniform(samples, 2 * _TRIES, seed, "crop", epoch).double()
        box = _resized_boxes(config, height, width, shapes, draws[:, :2])
    else:
        height, width = _padded(config.crop_padding, height, width, size)
        box = _placed(draws[:, :2], torch.full((len(samples), 2), size), height, width)
    ops, magnitudes = policies.choose(config, size, draws[:, 3:])
    return Choices(box=box, flip=draws[:, 2] < config.hflip, ops=ops, magnitudes=magnitudes)


def _padded(padding: int, height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of an image with its padding; raises ValueError if below `size`."""
    if min(height, width) + 2 * padding < size:
        raise ValueError(
            f"images of {height}x{width} pixels with augment.crop_padding {padding} are smaller"
            f" than model.image_size {size}; raise dataset.store_size or the padding"
        )
    return height + 2 * padding, width + 2 * padding


def _placed(draws: Tensor, sides: Tensor, height: int, width: int) -> Tensor:
    """Place boxes of (B, 2) `sides`, height and width, in the image by (B, 2) draws: (B, 4)."""
    room = torch.tensor([height + 1, width + 1]) - sides
    return torch.cat([(draws * room).long(), sides], dim=1)


def _sides(
    draws: Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    area: int,
    most: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Choose the sides of the first rectangles that fit, of _TRIES for each sample.

    Args:
        draws: (B, 2 * _TRIES), for area and ratio in turn; the area is uniform, and so is the
            logarithm of the ratio.
        scale: smallest and largest area, as shares of `area`.
        ratio: smallest and largest ratio of first to second side.
        area: area of the image in pixels.
        most: largest first and second side in pixels.

    Returns:
        (B, 2) int64, first and second side in pixels, and (B,) bool: whether any rectangle fits.
    """
    areas, ratios = draws.unflatten(1, (_TRIES, 2)).unbind(2)
    areas = area * (scale[0] + areas * (scale[1] - scale[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = (low + ratios * (high - low)).exp_()
    sides = torch.stack([areas * ratios, areas / ratios], dim=2).sqrt_().round_().long()
    fits = ((sides > 0) & (sides <= torch.tensor(most))).all(2)
    first = fits.to(torch.uint8).argmax(1)[:, None, None].expand(-1, 1, 2)
    return sides.gather(1, first)[:, 0], fits.any(1)


def _resized_boxes(
    config: AugmentConfig, height: int, width: int, shapes: Tensor, places: Tensor
) -> Tensor:
    """Choose RandomResizedCrop's boxes, (B, 4), by draws for `_sides` and `_placed`."""
    ratio = config.crop_ratio
    sides, fits = _sides(shapes, config.crop_scale, ratio, height * width, (width, height))
    # Where none fits, the largest rectangle of an allowed ratio is cut from the middle.
    high, wide = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    middle = torch.tensor([(height - high) // 2, (width - wide) // 2, high, wide])
    return torch.where(fits[:, None], _placed(places, sides.flip(1), height, width), middle)


def _mixture(
    config: AugmentConfig, draws: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Choose how samples of `height` and `width` pixels are mixed.

    The draws, (B, 5), are for: whether to mix, mixup or CutMix, share, y and x of the box's centre.

    Returns:
        (B,) float64, the share of the sample itself outside the box, and (B, 4) int64, the box,
        which is empty for mixup.
    """
    odds = {(True, True): 0.5, (False, True): 1.0, (True, False): 0.0}
    cut = draws[:, 1] < odds[config.mixup > 0, config.cutmix > 0]
    alpha = np.where(cut, config.cutmix, config.mixup)
    share = torch.from_numpy(betaincinv(alpha, alpha, draws[:, 2].numpy()))
    share = torch.where(draws[:, 0] < config.mix_prob, share, 1)
    half = ((1 - share).sqrt() * 0.5)[:, None] * torch.tensor([height, width])
    centre = (draws[:, 3:] * torch.tensor([height, width])).long()
    near = (centre - half.long()).clamp_(min=0)
    far = (centre + half.long()).minimum(torch.tensor([height, width]))
    boxes = torch.cat([near, far - near], dim=1) * cut[:, None]
    return torch.where(cut, 1, share), boxes


# Applying


def apply(images: Tensor, config: AugmentConfig, choices: Choices, size: int) -> Tensor:
    """Apply `choices` to (B, 3, H, W) uint8 images; returns (B, 3, size, size), a new tensor."""
    result: Tensor = _planned(config, choices, size).on(images)
    return result


def _planned(config: AugmentConfig, choices: Choices, size: int) -> Planned:
    """Plan `apply`."""
    steps = [
        operations.planned(*step, size, size)
        for step in zip(choices.ops.unbind(1), choices.magnitudes.unbind(1), strict=True)
    ]

    def run(images: Tensor, box: Tensor, flip: Tensor, *rest: Tensor) -> Tensor:
        if config.crop == "resized":
            images = resized_crop(images, box, size)
        else:
            images = _crop(images, config.crop_padding, box[:, :2], size)
        images, left = _flip(images, flip), iter(rest)
        for step in steps:
            images = step.run(images, *itertools.islice(left, len(step.tensors)))
        return images

    flip = choices.flip.to(torch.uint8).neg()
    return Planned((choices.box, flip, *(x for step in steps for x in step.tensors)), run)


def _crop(images: Tensor, padding: int, corner: Tensor, size: int) -> Tensor:
    """Cut squares out of the zero-padded images at (B, 2) corners (top, left); a new tensor."""
    canvas = F.pad(images, (padding,) * 4).contiguous()
    batch, channels, height, width = canvas.shape
    top, left = corner[:, :, None, None].unbind(1)
    plane = torch.arange(batch * channels, device=images.device).view(batch, channels, 1)
    y = top + torch.arange(size, device=images.device)  # (B, 1, S)
    starts = (plane * height + y) * width + left  # (B, 3, S)
    # The rows of this view are all runs of `size` bytes, which overlap: each row of the result is
    # a copy of a run, on a CPU three times faster than a gather of bytes.
    runs = canvas.as_strided((max(canvas.numel() - size + 1, 0), size), (1, 1))
    return runs.index_select(0, starts.flatten()).view(batch, channels, size, size)


def _flip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror images left to right where `flip`, (B,) uint8, is 255; elsewhere it is 0."""
    # Bitwise, as torch.where is four times slower on bytes.
    return images ^ ((images ^ images.flip(-1)) & flip[:, None, None, None])


def _edges(boxes: Tensor) -> Tensor:
    """Return (2, B, 2) int64 of (B, 4) boxes: top and left, then bottom and right."""
    return torch.stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def _inside(edges: Tensor, images: Tensor) -> Tensor:
    """Mark the pixels in boxes, given by their (2, B, 2) edges: (B, 1, H, W) bool."""
    (top, left), (bottom, right) = (edge.unbind(1) for edge in edges[..., None])  # (B, 1) each
    y = torch.arange(images.shape[2], device=images.device)
    x = torch.arange(images.shape[3], device=images.device)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)  # (B, H), (B, W)
    return torch.logical_and(rows[:, None, :, None], columns[:, None, None, :])
