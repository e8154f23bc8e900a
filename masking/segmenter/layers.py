"""Layers that `mini`'s encoder and decoder are built of; maps are channels last in memory."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every cell; it copies no channels-last memory.

    It computes in the precision of its input, with statistics in float32: autocast would copy to
    float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to the same shape."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if x.is_cuda:  # its kernels take one precision for all; a CPU's take float32 beside others
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, weight, bias, self.eps)
        return y.permute(0, 3, 1, 2)


class Residual(nn.Module):
    """A 3x3 convolution, ReLU and a 1x1 convolution, added to the input; optionally normed."""

    def __init__(self, width: int, norm: bool) -> None:
        """Build a block of `width` channels; `norm`: with a `ChannelNorm` in front."""
        super().__init__()
        self.norm = ChannelNorm(width) if norm else nn.Identity()
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.outer = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to the same shape."""
        return x + self.outer(F.relu(self.inner(self.norm(x)), inplace=True))


class Attention(nn.Module):
    """Attention of every cell to all others, pooled two by two; added to the input.

    Pooling makes it four times as cheap (Wang et al., 2106.13797, PVT v2). Training multiplies
    matrices itself: torch's fused kernel has a slow bfloat16 backward on CPUs.
    """

    def __init__(self, width: int, heads: int) -> None:
        """Build a block of `width` channels, split into `heads`."""
        super().__init__()
        self.heads = heads
        self.norm = ChannelNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to the same shape; h and w are even."""
        n, c, h, w = x.shape
        y = self.norm(x)
        q = self.query(as_tokens(y)).view(n, h * w, self.heads, -1).transpose(1, 2)
        k, v = (
            self.key_value(as_tokens(F.avg_pool2d(y, 2)))
            .view(n, h * w // 4, 2, self.heads, -1)
            .permute(2, 0, 3, 1, 4)
        )
        if x.is_cuda or not torch.is_grad_enabled():
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * (q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        y = self.out(y.transpose(1, 2).reshape(n, h * w, c))
        return x + y.view(n, h, w, c).permute(0, 3, 1, 2)


def as_tokens(x: Tensor) -> Tensor:
    """Return (N, C, h, w) as (N, h * w, C), a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def enlarge(x: Tensor) -> Tensor:
    """Return maps at twice their size, bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
