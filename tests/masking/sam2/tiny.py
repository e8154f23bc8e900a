"""Networks with a memory that are small enough for tests, with random weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from masking.sam2.build import _model
from masking.sam2.network import VideoNetwork

KINDS = ("sam2_video", "edgetam_video", "sam3_tracker_video")
SEEN = {"sam2_video": 0.7, "edgetam_video": -1.45, "sam3_tracker_video": -0.75}
"""What is added to the object score: so objects are to be seen on most frames, not on all."""
SIDE = {"sam2_video": 128, "edgetam_video": 128, "sam3_tracker_video": 112}


def tiny_config(kind):
    """Return the `config.json` of a small model; tokens have 64 channels in the library."""
    side = SIDE[kind]
    stride = 14 if kind == "sam3_tracker_video" else 16
    cells = side // stride
    config = {
        "model_type": kind,
        "image_size": side,
        "num_maskmem": 4,
        "max_object_pointers_in_encoder": 6,
        "memory_attention_hidden_size": 128,
        "memory_attention_num_layers": 2,
        "memory_attention_rope_feat_sizes": [cells, cells],
        "memory_encoder_hidden_size": 128,
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": 128,
        "memory_fuser_embed_dim": 128,
        "memory_fuser_intermediate_dim": 64,
        "memory_fuser_layer_scale_init_value": 0.5,
        "prompt_encoder_config": {
            "hidden_size": 128, "image_size": side, "patch_size": stride, "mask_input_channels": 16,
        },
        "mask_decoder_config": {
            "hidden_size": 128, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32,
        },
    }  # fmt: skip
    sizes = [[side // stride * n] * 2 for n in (4, 2, 1)]
    if kind == "sam2_video":
        config["memory_attention_feed_forward_hidden_size"] = 64
        config["vision_config"] = {
            "model_type": "sam2_vision_model",
            "fpn_hidden_size": 128,
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": sizes,
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 8,
                "image_size": [side, side],
                "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 2, 2, 2],
                "blocks_per_stage": [1, 1, 2, 1],
                "window_size_per_stage": [8, 4, 4, 4],
                "global_attention_blocks": [3],
                "window_positional_embedding_background_size": [4, 4],
            },
        }
    elif kind == "edgetam_video":
        config |= {
            "memory_attention_mlp_hidden_size": 64,
            "memory_attention_rope_k_sizes": [2, 2],
            "perceiver_resampler_num_latents": 4,
            "perceiver_resampler_num_latents_2d": 4,
            "perceiver_resampler_hidden_size": 64,
            "perceiver_resampler_mlp_intermediate_size": 64,
            "perceiver_resampler_attention_head_dim": 64,
            "perceiver_resampler_num_layers": 1,
        }
        config["vision_config"] = {
            "model_type": "edgetam_vision_model",
            "fpn_hidden_size": 128,
            "backbone_channel_list": [64, 48, 32, 24],
            "backbone_feature_sizes": sizes,
            "backbone_config": {
                "model_type": "timm_wrapper",
                "architecture": "test_convnext",
                "num_classes": 1000,
                "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
            },
        }
    else:
        config["vision_config"] = {
            "model_type": "sam3_vision_model",
            "fpn_hidden_size": 128,
            "backbone_feature_sizes": sizes,
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": side,
                "pretrain_image_size": 56,
                "patch_size": 14,
                "window_size": 4,
                "global_attn_indexes": [1],
            },
        }
    return config


def tiny(kind="sam2_video", seed=0):
    """Return a network whose random weights are large enough to make masks that differ."""
    torch.manual_seed(seed)
    model = _model(tiny_config(kind), Path("tiny"))
    scatter(model, seed)
    model.mask_decoder.pred_obj_score_head.proj_out.bias.data += SEEN[kind]
    return VideoNetwork(model.eval())


def save(folder, kind="sam2_video"):
    """Write the folder that transformers would write of a small model; returns it."""
    folder.mkdir()
    save_file(tiny(kind).model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(tiny_config(kind)))
    return folder


def scatter(model, seed):
    """Draw all weights, and those that begin at zero, too."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if value.ndim > 1:
            fan = value[0].numel() if "embed" not in name else 16
            value.data = torch.randn(value.shape, generator=generator) * (1.2 / fan**0.5)
        elif "norm" not in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.2
