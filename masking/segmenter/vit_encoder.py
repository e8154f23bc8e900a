"""The forward pass of SAM's image encoder, on the modules of the `segment_anything` package.

It is a ViT with windows and decomposed relative positions (Li et al. 2022, arXiv 2203.16527);
torch's fused kernels compute its attention.

Shapes:
    B: images, G: side of the grid of patches, D: channels of a token
    W: windows, B of them or more; s: side of a window, T = s * s: its tokens
    H: heads, d: channels of a head
"""

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import (
    Attention,
    Block,
    window_partition,
    window_unpartition,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CACHED_BIASES = 1 << 23
"""Elements of the attention's bias that a CPU computes at a time: 16 MB, which fit into its last
cache, and which its allocator keeps for the next. A GPU computes all: 0.4 GB an image for vit_b."""


def encode(encoder: ImageEncoderViT, images: Tensor, *, recompute: bool = False) -> Tensor:
    """Map normalised images (B, 3, S, S) to their embeddings (B, 256, G, G) float32.

    With `recompute` the backward pass computes each block again from its input, instead of keeping
    what is inside of it (Chen et al. 2016, arXiv 1604.06174).
    """
    x = encoder.patch_embed(images.to(encoder.patch_embed.proj.weight.dtype))
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for block in encoder.blocks:
        if recompute and torch.is_grad_enabled():
            # Nothing in a block is random.
            x = checkpoint(_block, block, x, use_reentrant=False, preserve_rng_state=False)
        else:
            x = _block(block, x)
    return _neck(encoder.neck, x)


def _block(block: Block, x: Tensor) -> Tensor:
    """Apply a block to (B, G, G, D), in windows if it has them."""
    y = block.norm1(x)
    if block.window_size > 0:
        y, padded = window_partition(y, block.window_size)
        y = _self_attention(block.attn, y)
        y = window_unpartition(y, block.window_size, padded, x.shape[1:3])
    else:
        y = _self_attention(block.attn, y)
    x = x + _linear(block.attn.proj, y)  # after the padding is gone
    return x + _linear(block.mlp.lin2, _linear(block.mlp.lin1, block.norm2(x), gelu=True))


def _self_attention(module: Attention, x: Tensor) -> Tensor:
    """Attend with decomposed relative positions on (W, s, s, D); `module.proj` is left out."""
    w, s = x.shape[:2]
    qkv = _linear(module.qkv, x).view(w, s * s, 3, module.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous()  # (W, H, T, d) each
    square = q.unflatten(2, (s, s))
    rows = torch.einsum("whyxd,yjd->whyxj", square, _distances(module.rel_pos_h, s))
    columns = torch.einsum("whyxd,xjd->whyxj", square, _distances(module.rel_pos_w, s))
    positions = torch.cat([rows, columns], dim=-1).flatten(2, 3)  # (W, H, T, 2s)
    keys = _positions_of_keys(s, positions)
    out = torch.empty_like(x).view(w, s * s, module.num_heads, -1)
    for heads, queries in _parts(w, module.num_heads, s * s, whole=x.is_cuda):
        bias = positions[:, heads, queries] @ keys
        attended = F.scaled_dot_product_attention(
            q[:, heads, queries], k[:, heads], v[:, heads], attn_mask=bias
        )
        out[:, queries, heads] = attended.transpose(1, 2)
    return out.view(x.shape)


def _distances(table: Tensor, s: int) -> Tensor:
    """Return (s, s, d) rows of a table (2s - 1, d): query to key along a side, by distance."""
    place = torch.arange(s, device=table.device)
    return table[place[:, None] - place + s - 1]


def _positions_of_keys(s: int, like: Tensor) -> Tensor:
    """Return (2s, T) ones and zeros: the row and the column of every key of s x s.

    The bias of relative positions is a product with it, and exactly the sum of both parts; a sum
    that broadcasts takes six times as long on a CPU over windows of 14 x 14.
    """
    one = torch.eye(s, dtype=like.dtype, device=like.device)
    return torch.cat([one.repeat_interleave(s, dim=1), one.repeat(1, s)])


def _parts(windows: int, heads: int, tokens: int, *, whole: bool) -> Iterator[tuple[slice, slice]]:
    """Divide heads and queries into parts whose bias is not larger than a CPU's cache holds."""
    each = windows * tokens * tokens
    heads_at_once = heads if whole else max(1, CACHED_BIASES // each)
    rows = tokens if whole or each <= CACHED_BIASES else tokens * CACHED_BIASES // each
    for head in range(0, heads, heads_at_once):
        for row in range(0, tokens, rows):
            yield slice(head, head + heads_at_once), slice(row, row + rows)


def _linear(layer: nn.Linear, x: Tensor, *, gelu: bool = False) -> Tensor:
    """Apply a linear layer, and the exact GELU behind it if wanted."""
    eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    half = x.dtype == layer.weight.dtype == torch.bfloat16
    if eager and half and x.device.type == "cpu" and _onednn_bfloat16():
        # oneDNN adds the bias and the GELU as it writes: F.linear takes a fifth longer for it.
        kind, form = ("gelu", "none") if gelu else ("none", "")
        pointwise = torch.ops.mkldnn._linear_pointwise
        return pointwise(x, layer.weight, layer.bias, kind, [], form)
    return F.gelu(layer(x)) if gelu else layer(x)


@cache
def _onednn_bfloat16() -> bool:
    """Return whether oneDNN takes bfloat16 on this processor; older ones have it from torch."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def norm_last(norm: LayerNorm2d, x: Tensor) -> Tensor:
    """Apply the package's LayerNorm2d to channels that come last."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _neck(neck: nn.Sequential, x: Tensor) -> Tensor:
    """Map (B, G, G, D) to the embedding (B, 256, G, G) float32, channels last in memory."""
    narrow, first, mix, second = neck
    x = norm_last(first, F.linear(x, narrow.get_parameter("weight").flatten(1)))
    x = F.conv2d(x.permute(0, 3, 1, 2), mix.get_parameter("weight"), padding=1).permute(0, 2, 3, 1)
    return norm_last(second, x).float().permute(0, 3, 1, 2)
