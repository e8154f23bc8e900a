"""Build a network of SAM 2.1, EdgeTAM or SAM 3's tracker from a configuration and weights."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from masking.sam2.network import VideoNetwork
from masking.segmenter.weights import SegmenterWeightsError, fill


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path) -> VideoNetwork:
    """Build a network in float32.

    Args:
        config: the content of `config.json` of a model of `transformers`.
        tensors: all its weights, under the names of its `state_dict`.
        file: where they were read, for messages.

    Raises:
        SegmenterWeightsError: the model is of another kind, the configuration cannot be used, or
            the weights are not those of this configuration.
    """
    model = _model(config, file)
    fill(model, tensors, file, f"`{config['model_type']}` with its configuration")
    return VideoNetwork(model.eval())


def _model(config: Mapping[str, Any], file: Path) -> nn.Module:
    """Return a model of `transformers` whose weights wait to be filled in."""
    # Here: the import takes seconds, and most jobs do without.
    import transformers as library

    classes: dict[str, tuple[Any, Any]] = {
        "sam2_video": (library.Sam2VideoConfig, library.Sam2VideoModel),
        "edgetam_video": (library.EdgeTamVideoConfig, library.EdgeTamVideoModel),
        "sam3_tracker_video": (library.Sam3TrackerVideoConfig, library.Sam3TrackerVideoModel),
    }
    kind = str(config.get("model_type"))
    if kind not in classes:
        raise SegmenterWeightsError(f"{file} is of a model {kind}; expected {', '.join(classes)}")
    of_config, of_model = classes[kind]
    try:
        with torch.random.fork_rng(devices=[]):  # it draws weights, which nobody sees
            model: nn.Module = of_model(of_config.from_dict(_complete(config)))
    except Exception as error:  # transformers raises all kinds for values that do not fit
        raise SegmenterWeightsError(
            f"{file}: no {kind} can be built of its configuration: {error}"
        ) from error
    return model


def refuse_sizes(network: VideoNetwork, file: Path) -> None:
    """Run a network without values, on the device "meta", to see whether its sizes fit one another.

    Raises:
        SegmenterWeightsError: they do not, as when `image_size` alone was changed.
    """
    side, rope = network.side, network.config.memory_attention_rope_feat_sizes
    try:
        with torch.no_grad():
            features = network.encode(torch.empty(1, 3, side, side))
            points, labels = torch.empty(1, 1, 2), torch.empty(1, 1, dtype=torch.int64)
            maps = network.unremembered(features, 1)
            network.segment(maps, features, points, labels, None, several=False)
        if list(rope) != list(features[-1].shape[-2:]):
            raise ValueError(f"memory_attention_rope_feat_sizes is {list(rope)}")
    except Exception as error:  # torch raises all kinds for shapes that do not fit
        raise SegmenterWeightsError(
            f"{file}: the sizes in its configuration do not fit one another: {error}; image_size is"
            f" {side}. Give the config.json that came with the weights"
        ) from error


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration, which transformers may change, with what it does not do
    without: an encoder of timm must say how many classes it has, although none are used."""
    copied = copy.deepcopy(dict(config))
    vision = copied.get("vision_config")
    encoder = vision.get("backbone_config") if isinstance(vision, dict) else None
    if isinstance(encoder, dict) and encoder.get("model_type") == "timm_wrapper":
        encoder.setdefault("num_classes", 0)
    return copied
