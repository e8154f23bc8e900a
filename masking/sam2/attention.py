"""What a frame's map becomes when it attends to what is remembered of objects.

The modules are those of transformers, and on a GPU they run as they are. In float32 on a CPU the
same numbers are computed with fewer multiplications:

- before the first look at memory all objects of a frame are the same, and are computed once;
- values have a quarter of the channels of queries before their projection, which is linear: the
  weighted mean of values is taken first, and then projected.

Shapes: K objects, N cells of the frame, C channels, L tokens of memory, M channels of a token.
"""

from typing import Any

import torch
from torch import Tensor

_ROWS = 64
"""Cells that look at memory together: their scores stay in the cache of a processor."""


def conditioned(model: Any, now: Tensor, memory: Tensor, places: Tensor, pointers: int) -> Tensor:
    """Return (K, N, C): the map of a frame after it attended to memory, for each object.

    Args:
        model: a model of transformers.
        now: (1, C, h, w), the map of the frame.
        memory: (L, K, M) tokens of remembered frames, and at last those of pointers.
        places: (L, K, M), what is added to the tokens to say where and when they were seen.
        pointers: number of tokens of pointers.
    """
    config, objects, more = model.config, memory.shape[1], {}
    position = model.vision_encoder.neck.position_encoding(now.shape, now.device, now.dtype)
    is_edgetam = config.model_type == "edgetam_video"
    is_plain = now.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if is_plain and not is_edgetam and config.memory_attention_num_attention_heads == 1:
        return _by_hand(
            model.memory_attention,
            (now + 0.1 * position).flatten(2).transpose(1, 2),
            memory.transpose(0, 1),
            places.transpose(0, 1),
            pointers,
        )
    if is_edgetam:
        tokens = config.perceiver_resampler_num_latents + config.perceiver_resampler_num_latents_2d
        more["num_spatial_memory_tokens"] = (len(memory) - pointers) // tokens
    current, current_position = (
        part.flatten(2).permute(2, 0, 1).expand(-1, objects, -1) for part in (now, position)
    )
    found = model.memory_attention(
        current_vision_features=current,
        current_vision_position_embeddings=current_position,
        memory=memory,
        memory_posision_embeddings=places,
        num_object_pointer_tokens=pointers,
        **more,
    )
    # (1, K, h * w, C): the layers have an axis for points, of which there are none.
    attended: Tensor = found[0]
    return attended


def _by_hand(attention: Any, now: Tensor, memory: Tensor, places: Tensor, pointers: int) -> Tensor:
    """Return what `memory_attention` returns for (1, N, C), (K, L, M) and (K, L, M)."""
    cos, sin = attention.rotary_emb(now, attention.position_ids)
    turn = torch.complex(cos[0, :, ::2], sin[0, :, ::2])
    keys, values = memory + places, memory.contiguous()
    for layer in attention.layers:
        query = layer.layer_norm1(now)[:, None]
        now = now + layer.self_attn(query, query, query, position_embeddings=(cos, sin))[0][:, 0]
        cross, query = layer.cross_attn_image, layer.layer_norm2(now)
        now = now + _looked_up(cross, query, keys, values, turn, pointers)
        inner = layer.activation(layer.linear1(layer.layer_norm3(now)))
        now = now + layer.linear2(inner)
    found: Tensor = attention.layer_norm(now)
    return found


def _looked_up(
    cross: Any, now: Tensor, keys: Tensor, values: Tensor, turn: Tensor, pointers: int
) -> Tensor:
    """Return (K, N, C), what `cross_attn_image` of a layer returns.

    Args:
        cross: the module, of one head.
        now: (K or 1, N, C) queries before their projection.
        keys: (K, L, M) before their projection.
        values: (K, L, M) before their projection.
        turn: (N, C / 2) complex, by which a cell's place turns its channels, pair by pair.
        pointers: number of the last tokens, which are turned by nothing.
    """
    queries = _turned(cross.q_proj(now), turn) * cross.scaling
    objects, length = keys.shape[:2]
    means = values.new_empty(objects, len(turn), values.shape[2])
    for row in range(objects):
        projected = cross.k_proj(keys[row])
        frames = projected[: length - pointers]
        frames.copy_(_turned(frames.view(-1, *queries.shape[1:]), turn).flatten(0, 1))
        query, columns = queries[row if len(queries) > 1 else 0], projected.T
        for start in range(0, len(query), _ROWS):
            some = slice(start, start + _ROWS)
            scores = torch.softmax(query[some] @ columns, dim=-1)
            torch.mm(scores, values[row], out=means[row, some])
    found: Tensor = cross.o_proj(cross.v_proj(means))
    return found


def _turned(channels: Tensor, turn: Tensor) -> Tensor:
    """Return (..., N, C) rotated by the places of cells (RoPE, Su et al., 2104.09864)."""
    pairs = torch.view_as_complex(channels.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2)
