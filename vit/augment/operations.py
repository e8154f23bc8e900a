"""The operations of automatic augmentation, each sample of a batch with its own.

Pixels are those of torchvision's functions on uint8 tensors (interpolation nearest, fill 0), which
take one magnitude a call and so need a loop over the samples. Here each kind of operation takes all
of its samples of the batch at once: a policy changes about half the samples in each of its steps,
so doing every operation to every sample and selecting would cost many times more than indexing.

Shapes: B samples, N the samples of one kind of operation, H and W pixels.
"""

import functools
import itertools
import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.packing import Planned

OPS: Final = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize"),
    *("AutoContrast", "Equalize", "Invert"),
)
"""torchvision's names of the operations, in the order of its tables."""

_KINDS: Final = {
    "Identity": "none",
    **dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"), "affine"),
    **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), "blend"),
    **dict.fromkeys(("Posterize", "Solarize", "Invert"), "bits"),
    "AutoContrast": "stretch",
    "Equalize": "equalize",
}
"""Kind of each operation: operations of one kind, neighbours here, are done together."""

_SORTED: Final = list(_KINDS)
_RANKS: Final = [_SORTED.index(op) for op in OPS]


def operate(images: Tensor, ops: Tensor, magnitudes: Tensor) -> Tensor:
    """Do one operation to each sample.

    Args:
        images: (B, 3, H, W) uint8 on any device; not changed.
        ops: (B,) int64 on the CPU: positions in OPS.
        magnitudes: (B,) float32 on the CPU, signed, as torchvision's `_apply_op` takes them.

    Returns:
        (B, 3, H, W) uint8 on the device of `images`.
    """
    done: Tensor = planned(ops, magnitudes, *images.shape[-2:]).on(images)
    return done


def planned(ops: Tensor, magnitudes: Tensor, height: int, width: int) -> Planned:
    """Plan `operate` for images of `height` and `width` pixels."""
    # Samples are sorted by operation and put back afterwards. Both copy whole samples, on a CPU
    # many times faster than writing the results of each operation to their places.
    ranks = [_RANKS[op] for op in ops.tolist()]
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    names = [_SORTED[ranks[sample]] for sample in order]
    groups = [(kind, list(group)) for kind, group in itertools.groupby(names, _KINDS.__getitem__)]
    index = torch.tensor(order, dtype=torch.int64)
    sizes = [len(group) for _, group in groups]
    settings = [
        _SETTINGS[kind](group, amounts, height, width) if kind in _SETTINGS else amounts
        for (kind, group), amounts in zip(
            groups, torch.split(magnitudes[index], sizes), strict=True
        )
    ]

    def run(images: Tensor, index: Tensor, back: Tensor, *settings: Tensor) -> Tensor:
        parts = torch.split(images.index_select(0, index), sizes)
        results = [
            _DO[kind](part, group, each)
            for (kind, group), part, each in zip(groups, parts, settings, strict=True)
        ]
        return torch.cat(results or [images]).index_select(0, back)

    return Planned((index, index.argsort(), *settings), run)


# The functions below take (N, 3, H, W) uint8 images, N names of operations (sorted as in _SORTED)
# and, on the device of the images, what _SETTINGS computes; else (N,) float32 magnitudes.
#
# Geometry. Coordinates are centred: (x, y) of a pixel's middle, in pixels, origin at the middle of
# the image.


def _inverse_matrix(
    name: str, magnitude: float, height: int, width: int
) -> tuple[float, float, float, float, float, float]:
    """Matrix from (x, y, 1) in the result to (x, y) in the source, row by row."""
    match name:
        case "ShearX":  # the first row stays where it is, as in the paper
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


@functools.lru_cache(maxsize=16)
def _frame(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates of the pixels, x (W,) and y (H, 1); half of width and height, (2, 1, 1, 1)."""
    x = torch.arange(width, dtype=torch.float32) - (width - 1) / 2
    y = torch.arange(height, dtype=torch.float32) - (height - 1) / 2
    half = torch.tensor([width / 2, height / 2]).view(2, 1, 1, 1)
    x, y, half = (values.to(device, non_blocking=True) for values in (x, y[:, None], half))
    return x, y, half


def _matrices(names: list[str], magnitudes: Tensor, height: int, width: int) -> Tensor:
    """Compute inverse matrices on the CPU, (N, 6) float32."""
    steps = zip(names, magnitudes.tolist(), strict=True)
    return torch.tensor([_inverse_matrix(*step, height, width) for step in steps])


def _affine(images: Tensor, names: list[str], matrices: Tensor) -> Tensor:
    """Shear, shift or rotate: take the nearest pixel, 0 where there is none.

    Coordinates are torchvision's to the last bit, so that halfway between two pixels the same one
    is taken. Its matrix product is not used: TF32 or autocast would change its results.
    """
    height, width = images.shape[-2:]
    x, y, half = _frame(height, width, images.device)
    a, b, shift = (matrices.view(-1, 2, 3, 1, 1) / half).unbind(2)  # (N, 2, 1, 1) each
    grid = (a * x + b * y).add_(shift).permute(0, 2, 3, 1)  # (N, H, W, 2)
    pixels = F.grid_sample(images.to(torch.float32), grid, "nearest", "zeros", align_corners=False)
    return pixels.to(torch.int16).to(torch.uint8)


# Colour


def _to_bytes(pixels: Tensor) -> Tensor:
    """Clamp in place and cut off the fraction, as torchvision does."""
    # By way of int16: on a CPU four times faster than from float straight to bytes.
    return pixels.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _blend(images: Tensor, names: list[str], magnitudes: Tensor) -> Tensor:
    """Move away from another image (magnitude above 0) or towards it (below, to -1).

    The other image is black for Brightness, gray for Color, the mean gray for Contrast, blurred for
    Sharpness. torchvision does not sharpen images of one or two rows or columns; here these may
    become one level darker.
    """
    sizes = [names.count(name) for name in ("Brightness", "Color", "Contrast", "Sharpness")]
    magnitude = magnitudes[:, None, None, None]
    pixels = images.to(torch.float32)
    _, color, contrast, sharp = torch.split(magnitude, sizes)
    blurred = _blurred(pixels[len(names) - sizes[3] :]).mul_(sharp)
    colored = slice(sizes[0], len(names) - sizes[3])
    gray, gray_of_contrast = torch.split(_gray(pixels[colored]), sizes[1:3])
    mean = gray_of_contrast.mean((1, 2, 3), keepdim=True)
    pixels.mul_(1 + magnitude)
    parts = torch.split(pixels, sizes)
    parts[1].sub_(gray.mul_(color))
    parts[2].sub_(mean.mul_(contrast))
    parts[3].sub_(blurred)
    return _to_bytes(pixels)


def _gray(pixels: Tensor) -> Tensor:
    """Convert to grey levels, (N, 1, H, W) float32, whole numbers."""
    red, green, blue = torch.split(pixels, 1, dim=1)
    return (0.2989 * red).add_(0.587 * green).add_(0.114 * blue).trunc_()


def _blurred(pixels: Tensor) -> Tensor:
    """Average 3x3 pixels with weight 5 in the middle, else 1, and round; the border stays.

    Sums of bytes are exact in float32 and no sum / 13 is a tie, so this rounds as a convolution
    does, at a third of the time.
    """
    rows = (pixels[..., :-2, :] + pixels[..., 1:-1, :]).add_(pixels[..., 2:, :])
    total = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    total.add_(pixels[..., 1:-1, 1:-1], alpha=4)
    blurred = pixels.clone()
    blurred[..., 1:-1, 1:-1] = total.div_(13).round_()
    return blurred


def _bit_settings(names: list[str], magnitudes: Tensor, height: int, width: int) -> Tensor:
    """Compute on the CPU, (N, 3) uint8: the bits that are kept, the least value that is inverted,
    and the bits that are flipped to invert it."""
    settings = [
        (256 - 2 ** (8 - int(amount)), 0, 0)
        if name == "Posterize"
        else (255, math.ceil(amount) if name == "Solarize" else 0, 255)
        for name, amount in zip(names, magnitudes.tolist(), strict=True)
    ]
    return torch.tensor(settings, dtype=torch.uint8)


def _bits(images: Tensor, names: list[str], settings: Tensor) -> Tensor:
    """Posterize keeps as many leading bits as the magnitude says, 1 to 8; Solarize inverts values
    from the magnitude, 0 to 255, upwards; Invert inverts all.
    """
    kept, threshold, flipped = settings[:, None, None, None].unbind(4)
    # x ^ 255 is 255 - x; four times faster on a CPU than torch.where.
    inverted = (images >= threshold).to(torch.uint8).mul_(flipped)
    return (images & kept).bitwise_xor_(inverted)


def _stretch(images: Tensor, names: list[str], magnitudes: Tensor) -> Tensor:
    """AutoContrast: stretch each channel to 0..255; one of a single value stays."""
    low = images.amin((2, 3), keepdim=True).to(torch.float32)
    high = images.amax((2, 3), keepdim=True).to(torch.float32)
    flat = low == high
    scale = (255 / (high - low)).masked_fill_(flat, 1)
    return _to_bytes(images.to(torch.float32).sub_(low.masked_fill_(flat, 0)).mul_(scale))


def _equalize(images: Tensor, names: list[str], magnitudes: Tensor) -> Tensor:
    """Level the histogram of each channel through a table of 256 bytes, as Pillow does.

    A channel with fewer than 255 pixels below its brightest value stays as it is.
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


def _unchanged(images: Tensor, names: list[str], magnitudes: Tensor) -> Tensor:
    return images


_DO: Final = {
    "affine": _affine,
    "blend": _blend,
    "bits": _bits,
    "stretch": _stretch,
    "equalize": _equalize,
    "none": _unchanged,
}
_SETTINGS: Final = {"affine": _matrices, "bits": _bit_settings}
"""What is computed of the magnitudes on the CPU, by kind of operation."""
