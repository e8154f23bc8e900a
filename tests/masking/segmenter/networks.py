"""A small SAM, and photographs to encode."""

from functools import partial

import numpy as np
import torch
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn

CPU = torch.device("cpu")


def small_sam(side=256, seed=0):
    """A small SAM of the package, with no weights of any kind that are all zero."""
    grid = side // 16
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = ImageEncoderViT(
            img_size=side, embed_dim=64, depth=4, num_heads=2, out_chans=256, window_size=14,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True,
            global_attn_indexes=(1, 3),
        )  # fmt: skip
        prompts = PromptEncoder(256, (grid, grid), (side, side), 16)
        decoder = MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048))
        sam = Sam(encoder, prompts, decoder, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
        for name, parameter in sam.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                nn.init.normal_(parameter, std=0.3)
            elif "norm" in name or name.endswith("bias"):
                parameter.data += 0.1 * torch.randn_like(parameter)
    return sam.eval()


def photographs(count, size, seed=0):
    """Smooth noise: (count, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(size=(count, 3, 9, 9)))
    fine = nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=False)
    return (128 + 60 * fine).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
