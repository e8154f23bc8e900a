"""SAM 2.1 as Meta saves it: names of weights turned into those of transformers, and its config.

The modules of Meta's package `sam2` and of transformers' `Sam2VideoModel` compute the same; only
their names differ.
"""

import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masking.segmenter.weights import LISTED, refuse

_TRUNK = "image_encoder.trunk."
_POINTS = "sam_prompt_encoder.point_embeddings."
_FOURIER = "prompt_encoder.shared_embedding.positional_embedding"
_MLPS = r"(output_hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head|obj_ptr_proj)"

_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Perceptrons: of two layers, then of three.
        (r"\bmlp\.layers\.0\.", "mlp.proj_in."),
        (r"\bmlp\.layers\.1\.", "mlp.proj_out."),
        (rf"\b{_MLPS}\.layers\.0\.", r"\1.proj_in."),
        (rf"\b{_MLPS}\.layers\.1\.", r"\1.layers.0."),
        (rf"\b{_MLPS}\.layers\.2\.", r"\1.proj_out."),
        # The encoder of images.
        (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
        (r"\bpatch_embed\.proj\.", "patch_embed.projection."),
        (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
        # Prompts and masks.
        (r"^sam_prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", _FOURIER),
        (r"^sam_prompt_encoder\.", "prompt_encoder."),
        (r"\bmask_downscaling\.0\.", "mask_embed.conv1."),
        (r"\bmask_downscaling\.1\.", "mask_embed.layer_norm1."),
        (r"\bmask_downscaling\.3\.", "mask_embed.conv2."),
        (r"\bmask_downscaling\.4\.", "mask_embed.layer_norm2."),
        (r"\bmask_downscaling\.6\.", "mask_embed.conv3."),
        (r"^sam_mask_decoder\.", "mask_decoder."),
        (r"\boutput_upscaling\.0\.", "upscale_conv1."),
        (r"\boutput_upscaling\.1\.", "upscale_layer_norm."),
        (r"\boutput_upscaling\.3\.", "upscale_conv2."),
        # The memory.
        (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
        (r"\bpix_feat_proj\.", "feature_projection."),
        (r"\bmask_downsampler\.encoder\.12\.", "mask_downsampler.final_conv."),
        (r"downsampler\.encoder\.(0|3|6|9)\.", "downsampler.layers.{third}.conv."),
        (r"downsampler\.encoder\.(1|4|7|10)\.", "downsampler.layers.{third}.layer_norm."),
        (r"\bfuser\.", "memory_fuser."),
        (r"\bgamma$", "scale"),
        (r"\bdwconv\.", "depthwise_conv."),
        (r"\bpwconv(\d)\.", r"pointwise_conv\1."),
        (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
        (r"^no_mem_embed$", "no_memory_embedding"),
        (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
        (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
        (r"^no_obj_ptr$", "no_object_pointer"),
        (r"^obj_ptr_proj\.", "object_pointer_proj."),
        (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
        # Everywhere.
        (r"\bout_proj\.", "o_proj."),
        (r"\bnorm(\d?)\.", r"layer_norm\1."),
        (r"\bnorm_final_attn\.", "layer_norm_final_attn."),
    )
]  # fmt: skip
"""Patterns of Meta's names and what stands for them in transformers', applied in this order."""

TRUNKS: dict[tuple[int, int], dict[str, Any]] = {
    (96, 12): {"num_attention_heads_per_stage": [1, 2, 4, 8], "global_attention_blocks": [5, 7, 9]},
    (96, 16): {
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "global_attention_blocks": [7, 10, 13],
    },
    (112, 24): {
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "global_attention_blocks": [12, 16, 20],
    },
    (144, 48): {
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "global_attention_blocks": [23, 33, 43],
        "window_size_per_stage": [8, 4, 16, 8],
    },
}
"""What no shape of the weights tells of an encoder, by its first width and its number of blocks:
tiny, small, base-plus and large, as Meta's configs (sam2/configs/sam2.1) have them."""


def is_meta(names: Mapping[str, Any]) -> bool:
    """Return whether weights have the names of Meta's SAM 2, or of a model that is built on it."""
    return any(name.startswith("image_encoder.trunk.") for name in names) and any(
        name.startswith("memory_attention.") for name in names
    )


def converted(
    tensors: Mapping[str, Tensor], file: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and the weights of transformers' `Sam2VideoModel` for Meta's weights.

    Args:
        tensors: the weights by Meta's names.
        file: where they were read, for messages.

    Raises:
        SegmenterWeightsError: they are of another model than SAM 2.1.
    """
    if any(name.startswith("spatial_perceiver.") for name in tensors):
        refuse(file, "is EdgeTAM as its authors save it", [
            "it is read as transformers saves it: choose the weights edgetam, or give a folder"
            " with config.json and model.safetensors",
        ])  # fmt: skip
    if "no_obj_embed_spatial" not in tensors or "obj_ptr_tpos_proj.weight" not in tensors:
        refuse(file, "is not a checkpoint of SAM 2.1", [
            "it has no no_obj_embed_spatial and obj_ptr_tpos_proj, so it may be one of SAM 2.0;"
            " give sam2.1_hiera_tiny.pt, ..._small.pt, ..._base_plus.pt or ..._large.pt",
        ])  # fmt: skip
    config = _config(tensors, file)
    found = {renamed(name): tensor for name, tensor in tensors.items() if _POINTS not in name}
    points = [name for name in tensors if _POINTS in name]
    if points:
        found["prompt_encoder.point_embed.weight"] = torch.cat(
            [tensors[name] for name in sorted(points)]
        )
    if _FOURIER in found:
        found["shared_image_embedding.positional_embedding"] = found[_FOURIER]
    return config, found


def renamed(name: str) -> str:
    """Return transformers' name of a weight for Meta's."""
    for pattern, replacement in _RULES:
        name = pattern.sub(partial(_filled, replacement), name)
    return name


def _filled(replacement: str, match: re.Match[str]) -> str:
    """Return a replacement with its groups; {third}: a third of the first group, rounded down."""
    if "{third}" in replacement:
        return replacement.format(third=int(match[1]) // 3)
    return match.expand(replacement)


def _config(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Any]:
    """Return the content of config.json for the encoder that the shapes of the weights tell."""
    widths: list[int] = []
    while (block := f"{_TRUNK}blocks.{len(widths)}.attn.proj.weight") in tensors:
        widths.append(len(tensors[block]))
    patches = tensors.get(f"{_TRUNK}patch_embed.proj.weight")
    place = tensors.get(f"{_TRUNK}pos_embed")
    if not widths or patches is None or place is None or place.ndim != 4:
        some = ", ".join(sorted(tensors)[:LISTED])
        refuse(
            file, "is not a checkpoint of SAM 2.1", [f"its encoder is incomplete; it has {some}"]
        )
    trunk = TRUNKS.get((len(patches), len(widths)))
    if trunk is None:
        known = ", ".join(f"{width} and {blocks}" for width, blocks in TRUNKS)
        refuse(file, "is not a checkpoint of SAM 2.1", [
            f"its encoder has a width of {len(patches)} and {len(widths)} blocks; expected {known}"
        ])  # fmt: skip
    stages = dict(sorted(Counter(widths).items()))
    return {
        "model_type": "sam2_video",
        "enable_occlusion_spatial_embedding": True,
        "enable_temporal_pos_encoding_for_object_pointers": True,
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_channel_list": list(stages)[::-1],
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": len(patches),
                "embed_dim_per_stage": list(stages),
                "blocks_per_stage": list(stages.values()),
                "window_positional_embedding_background_size": list(place.shape[2:]),
                **trunk,
            },
        },
    }
