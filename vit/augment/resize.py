"""Pixels of a random resized crop: each sample has its own box, and all get one size."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resized_crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box out of each image and resize it: bilinear, antialiased, as Pillow does.

    Pixels are exactly those of torchvision's `resized_crop` for uint8 tensors on a CPU. On a CPU
    its kernel, which skips weights of zero, is called sample by sample: at 224 pixels that is
    several times faster than the matrix products that are used on a GPU.

    Args:
        images: (B, 3, H, W) uint8 on any device.
        boxes: (B, 4) int64 on the CPU: top, left, height, width in pixels, inside the image.
        size: side of the result in pixels.

    Returns:
        (B, 3, size, size) uint8, a new tensor.
    """
    if images.device.type != "cpu":
        return _by_matrices(images, boxes, size)
    result = images.new_empty((len(images), 3, size, size))
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        part = images[i : i + 1, :, top : top + height, left : left + width]
        result[i] = F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0]
    return result


def _by_matrices(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Do `resized_crop` for a whole batch, on any device; products must be float32, not TF32."""
    top, left, height, width = boxes.to(images.device, non_blocking=True).unbind(1)
    across, unit_across = _weights(left, width, images.shape[3], size)
    down, unit_down = _weights(top, height, images.shape[2], size)
    pixels = images.to(torch.float32) @ across.mT[:, None]
    pixels.mul_(unit_across).add_(0.5).floor_().clamp_(max=255)
    pixels = down[:, None] @ pixels
    return pixels.mul_(unit_down).add_(0.5).floor_().clamp_(max=255).to(torch.uint8)


def _weights(start: Tensor, length: Tensor, pixels: int, size: int) -> tuple[Tensor, Tensor]:
    """Weights that resize `length` pixels from `start`, of a side of `pixels`, to `size` pixels.

    They are whole numbers, scaled and rounded as in torch's kernel for bytes, so that sums of
    products are exact in float32, in any order, down to a quarter of the size.

    Returns:
        (B, size, pixels) float32, and (B, 1, 1, 1) float32, the unit of the weights, a power of 2.
    """
    start, length = (values.double()[:, None, None] for values in (start, length))
    scale = length / size
    support = scale.clamp(min=1)
    j = torch.arange(pixels, device=start.device) - start  # (B, 1, pixels), from the box's edge
    middle = scale * (torch.arange(size, device=start.device)[:, None] + 0.5)  # (B, size, 1)
    weights = (1 - ((j - middle + 0.5) / support).abs_()).clamp_(min=0)
    weights.mul_((j >= 0) & (j < length))
    weights.div_(weights.sum(2, keepdim=True))
    bits = torch.log2(32767.5 / weights.amax((1, 2), keepdim=True)).floor_().clamp_(max=22)
    whole = weights.mul_(torch.exp2(bits)).add_(0.5).floor_()
    return whole.to(torch.float32), torch.exp2(-bits).to(torch.float32)[:, None]
