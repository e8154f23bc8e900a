"""The forward pass of SAM's two-way transformer, on the modules of the `segment_anything` package.

The image is not projected: the few tokens take the projections upon them. Fillers are masked out
where tokens are keys.

Shapes: N prompt sets of L tokens, G * G cells of the image's embedding, H heads of c channels.
"""

import torch
import torch.nn.functional as F
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn


def transform(
    transformer: TwoWayTransformer, tokens: Tensor, real: Tensor, image: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Let tokens and image attend to each other.

    Args:
        transformer: the package's module.
        tokens: (N, L, 256).
        real: (N, L) bool, False for fillers.
        image: (N, G * G, 256) embedding.
        positions: (1, G * G, 256) encoded positions of its cells.

    Returns:
        Tokens and image after the last layer, of the same shapes.
    """
    queries = tokens
    for number, layer in enumerate(transformer.layers):
        queries = _among_tokens(layer, queries, tokens, real, first=number == 0)
        placed = image + positions
        to_image = layer.cross_attn_token_to_image
        queries = layer.norm2(queries + _attend_to_image(to_image, queries + tokens, placed, image))
        queries = layer.norm3(queries + layer.mlp(queries))
        to_tokens = layer.cross_attn_image_to_token
        image = layer.norm4(
            _attend_to_tokens(to_tokens, image, placed, queries + tokens, queries, real)
        )
    to_image = transformer.final_attn_token_to_image
    attended = _attend_to_image(to_image, queries + tokens, image + positions, image)
    return transformer.norm_final_attn(queries + attended), image


def freeze_unused(transformer: TwoWayTransformer) -> None:
    """Freeze the biases of keys that softmax cancels: `_attend_to_image` leaves them out."""
    modules = [layer.cross_attn_token_to_image for layer in transformer.layers]
    for module in (*modules, transformer.final_attn_token_to_image):
        module.k_proj.bias.requires_grad_(False)


def _among_tokens(
    layer: TwoWayAttentionBlock, queries: Tensor, tokens: Tensor, real: Tensor, *, first: bool
) -> Tensor:
    """Let the tokens (N, L, 256) attend to each other; the first layer has no residual."""
    module = layer.self_attn
    placed = queries if first else queries + tokens
    q, k, v = (
        project(x).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for project, x in (
            (module.q_proj, placed),
            (module.k_proj, placed),
            (module.v_proj, queries),
        )
    )
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
    attended = module.out_proj(attended.transpose(1, 2).flatten(2))
    return layer.norm1(attended if first else queries + attended)


def _attend_to_image(module: Attention, x: Tensor, placed: Tensor, image: Tensor) -> Tensor:
    """Let tokens x (N, L, 256) attend to the image (N, G * G, 256).

    The projections of keys and values are applied to the tokens. That is half the work for a
    click, and as much for nine. The bias of the keys adds the same to all logits of a query, so
    softmax cancels it.

    Args:
        placed: the image with its positions, for the keys.
    """
    heads = module.num_heads
    q = module.q_proj(x).unflatten(-1, (heads, -1))  # (N, L, H, c)
    q = torch.einsum("nlhc,hcd->nhld", q, _by_head(module.k_proj, heads)) * q.shape[-1] ** -0.5
    weights = (q.flatten(1, 2) @ placed.transpose(1, 2)).softmax(dim=-1)  # (N, H * L, G * G)
    attended = (weights @ image).unflatten(1, (heads, -1))
    values = torch.einsum("nhld,hcd->nlhc", attended, _by_head(module.v_proj, heads)).flatten(2)
    return module.out_proj(values + module.v_proj.bias)


def _attend_to_tokens(
    module: Attention, image: Tensor, placed: Tensor, x: Tensor, queries: Tensor, real: Tensor
) -> Tensor:
    """Let the image (N, G * G, 256) attend to the tokens, and add the result to it.

    Projected as in `_attend_to_image`; the last bias is divided among the heads: the weights of
    each head sum to 1.

    Args:
        placed: the image with its positions.
        x: (N, L, 256) tokens for the keys.
        queries: (N, L, 256) tokens for the values.
        real: (N, L) bool; tokens that are False have no weight.
    """
    heads, out = module.num_heads, module.out_proj
    k = module.k_proj(x).unflatten(-1, (heads, -1)) * (module.internal_dim // heads) ** -0.5
    v = module.v_proj(queries).unflatten(-1, (heads, -1))  # (N, L, H, c)
    offset = torch.einsum("nlhc,hc->nhl", k, module.q_proj.bias.view(heads, -1))
    offset = offset.masked_fill(~real[:, None], float("-inf")).flatten(1)[..., None]
    k = torch.einsum("nlhc,hcd->nhld", k, _by_head(module.q_proj, heads)).flatten(1, 2)
    logits = torch.baddbmm(offset, k, placed.transpose(1, 2))  # (N, H * L, G * G)
    weights = logits.unflatten(1, (heads, -1)).softmax(dim=2).flatten(1, 2)
    v = torch.einsum("nlhc,dhc->nhld", v, out.weight.view(-1, heads, v.shape[-1]))
    v = (v + out.bias / heads).flatten(1, 2)
    return torch.baddbmm(image, weights.transpose(1, 2), v)


def _by_head(layer: nn.Linear, heads: int) -> Tensor:
    """Return the weight of a projection to all heads as (H, c, 256)."""
    return layer.weight.unflatten(0, (heads, -1))
