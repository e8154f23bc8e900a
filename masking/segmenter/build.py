"""Networks of segmenters from their weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from masking.segmenter import weights
from masking.segmenter.mini import Mini

if TYPE_CHECKING:
    from masking.segmenter.official import Official


def build(tensors: Mapping[str, Tensor], architecture: str, file: Path) -> "Mini | Official":
    """Build a network of the architecture "mini" or "sam" with these weights, in float32.

    Args:
        tensors: the weights by name.
        architecture: "mini"; anything else is SAM.
        file: where they were read, for messages.

    Raises:
        SegmenterWeightsError: The weights are of another architecture.
    """
    if architecture != "mini":
        from masking.segmenter import official  # here: it imports torchvision, which takes seconds

        return official.Official(official.build(tensors, file))
    mini = Mini(remembers=any(name.startswith("memory.") for name in tensors))
    weights.fill(mini, tensors, file, "`mini`")
    return mini
