"""EfficientNet-Lite0 up to its last block: the trunk of `mini`'s encoder."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (
    # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Stages as in github.com/tensorflow/tpu, efficientnet/lite."""
TAPS = {1: 24, 2: 40, 4: 112, 6: 320}
"""Stages whose output is used, at strides 4, 8, 16 and 32, and their channels."""


class Inverted(nn.Module):
    """MobileNetV2's inverted residual, BatchNorm folded away: timm's `InvertedResidual`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        """Expand by a 1x1 convolution, filter each channel, project by a 1x1 convolution."""
        super().__init__()
        inner = inputs * expansion
        self.expand = nn.Conv2d(inputs, inner, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(inner, inner, kernel, stride, groups=inner)
        self.project = nn.Conv2d(inner, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, outputs, h / stride, w / stride)."""
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        if y.device.type == "cpu" and torch.is_grad_enabled() and self.project.weight.requires_grad:
            # oneDNN's backward of 5x5 depthwise convolutions is 3 to 10 times as fast in float32.
            with torch.autocast("cpu", enabled=False):
                y = _conv_same(self.depthwise, y.float())
        else:
            y = _conv_same(self.depthwise, y)
        y = self.project(F.relu6(y, inplace=True))
        return x + y if self.residual else y


def _conv_same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve with TensorFlow's SAME padding, which the pretrained weights expect.

    It pads more behind than in front.
    """
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    if stride == 1:
        return F.conv2d(x, conv.weight, conv.bias, 1, kernel // 2, 1, conv.groups)
    total = kernel - stride  # for the even sizes that a canvas has at every stride
    before, after = total // 2, total - total // 2
    x = F.pad(x, (before, after, before, after))
    return F.conv2d(x, conv.weight, conv.bias, stride, 0, 1, conv.groups)


class Trunk(nn.Module):
    """EfficientNet-Lite0 up to its last block, BatchNorm folded into the convolutions."""

    def __init__(self) -> None:
        """Draw the weights from torch's generator; `fold` converts those of ImageNet."""
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2)
        self.stages, inputs = nn.ModuleList(), 32
        for repeats, kernel, stride, expansion, outputs in STAGES:
            stage = nn.Sequential()
            for index in range(repeats):
                step = stride if index == 0 else 1
                stage.append(Inverted(inputs, outputs, kernel, step, expansion))
                inputs = outputs
            self.stages.append(stage)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (B, 3, h, w) RGB in [0, 255] to features at strides 4, 8, 16 and 32."""
        x = F.relu6(_conv_same(self.stem, (images - 127) / 128))
        taps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in TAPS:
                taps.append(x)
        return taps


def fold(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of EfficientNet-Lite0 to one of `Trunk`, without BatchNorm.

    Args:
        weights: tensors in the order of the layers, as every port of the TensorFlow weights has
            them: a convolution, then weight, bias, mean and variance of its BatchNorm.

    Raises:
        ValueError: The weights are those of another network.
    """
    wanted, folded = Trunk().state_dict(), {}
    given = [tensor for tensor in weights.values() if tensor.ndim > 0]
    names = [name.removesuffix(".weight") for name in wanted if name.endswith("weight")]
    for number, name in enumerate(names):
        kernel, gain, shift, mean, variance = given[5 * number : 5 * number + 5]
        shape = wanted[f"{name}.weight"].shape
        if kernel.shape != shape or gain.shape != shape[:1]:
            raise ValueError(
                f"not the weights of EfficientNet-Lite0: layer {number + 1} has shape"
                f" {tuple(kernel.shape)}; expected {tuple(shape)}"
            )
        scale = gain / torch.sqrt(variance + 1e-3)  # TensorFlow's epsilon
        folded[f"{name}.weight"] = kernel * scale[:, None, None, None]
        folded[f"{name}.bias"] = shift - mean * scale
    return folded
