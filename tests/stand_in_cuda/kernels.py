"""Operators whose results or rules on CUDA differ from a CPU's."""

import functools

import torch
import torch.nn.functional as F

from tests.stand_in_cuda.device import DEVICE, StandInError

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.unique_dim.default: "unique",
    aten._unique2.default: "unique",
    aten.bincount.default: "bincount",
    aten.equal.default: "equal",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}
"""Operators whose result depends on numbers that the host has to read."""
ONE_PRECISION = {
    aten.native_layer_norm.default: (0, 2, 3),
    aten.native_layer_norm_backward.default: (0, 1, 5, 6),
    aten.convolution.default: (0, 1, 2),
    aten._scaled_dot_product_efficient_attention.default: (0, 1, 2, 3),
}
"""Operands that must have one precision on CUDA, by operator; a CPU's kernels take several."""


@functools.cache
def composite(func):
    """Whether an operator is made of others."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@functools.cache
def has_kernel(func):
    """Whether CUDA has a kernel for an operator."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    keys = ("CUDA", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    return composite(func) or any(has(func.name(), key) for key in keys)


# Attention: one kernel stands in for all; which one CUDA would take is counted.


def _logits(q, k, bias, scale):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    found = (q.float() * scale) @ k.float().transpose(-2, -1)
    return found if bias is None else found + bias.float()


def _forward(q, k, v, bias, lse, dropout=0.0, causal=False, *, scale=None):
    assert not causal
    logits = _logits(q, k, bias, scale)
    out = (logits.softmax(dim=-1) @ v.float()).to(q.dtype)
    out = out.transpose(1, 2).contiguous().transpose(1, 2)  # in memory as the kernel leaves it
    return out, logits.logsumexp(dim=-1), torch.zeros((), dtype=torch.int64), torch.zeros(())


def _backward(
    grad, q, k, v, bias, out, lse, seed, offset, dropout, wants, causal=False, *, scale=None
):
    weights = _logits(q, k, bias, scale).softmax(dim=-1)
    grad, scale = grad.float(), q.shape[-1] ** -0.5 if scale is None else scale
    above = grad @ v.float().transpose(-2, -1)
    inner = weights * (above - (grad * out.float()).sum(dim=-1, keepdim=True))
    found = (
        (inner @ k.float() * scale).to(q.dtype),
        (inner.transpose(-2, -1) @ q.float() * scale).to(q.dtype),
        (weights.transpose(-2, -1) @ grad).to(q.dtype),
        None if bias is None else inner.to(bias.dtype),
    )
    return tuple(each if wanted else None for each, wanted in zip(found, wants, strict=True))


def chosen_attention(q, k, mask, dropout):
    """The kernel that torch 2.14 takes on Hopper, where cuDNN comes first (`sdp_utils.cpp`)."""
    half, wide = q.dtype in (torch.bfloat16, torch.float16), q.shape[-1]
    learnt = torch.is_grad_enabled() and mask is not None and mask.requires_grad
    fits = wide % 8 == 0 and wide <= 128 and k.shape[2] > 1 and max(q.shape[:2]) <= 65535
    on = torch.backends.cuda
    if half and fits and not learnt and DEVICE.capability >= (9, 0) and on.cudnn_sdp_enabled():
        return "cudnn"
    if half and mask is None and wide <= 256 and on.flash_sdp_enabled():
        return "flash"
    if wide % (8 if half else 4) == 0 and on.mem_efficient_sdp_enabled():
        return "efficient"
    return "math"


def attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """Stand in for F.scaled_dot_product_attention on CUDA."""
    if torch.is_autocast_enabled("cuda"):
        kind = torch.get_autocast_dtype("cuda")
        query, key, value = (each.to(kind) for each in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(kind)
    name = chosen_attention(query, key, attn_mask, dropout_p)
    DEVICE.log.attention[name] += 1
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            zero = torch.zeros((), dtype=query.dtype, device=query.device)
            attn_mask = torch.where(attn_mask, zero, float("-inf"))
        if attn_mask.dtype != query.dtype:
            raise StandInError(f"attention: a bias of {attn_mask.dtype} beside {query.dtype}")
        if name == "efficient" and (last := attn_mask.shape[-1]) % 16:
            attn_mask = F.pad(attn_mask, (0, 16 - last % 16))[..., :last]
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    lse = torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in (query, key, value, attn_mask)
    )
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, lse, dropout_p, is_causal, scale=scale
    )[0]


# Rounding


def _tf32(x):
    """Round to the 10 bits of mantissa of TF32."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _convolution(x, weight, *rest):
    depthwise = rest[6] == x.shape[1] and rest[6] > 1  # torch's own kernel, in float32
    if x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32 and not depthwise:
        x, weight = _tf32(x), _tf32(weight)
        DEVICE.log.tf32 += 1
    return aten.convolution.default(x, weight, *rest)


def _grid_sampler(x, grid, mode, padding, align):
    """Sample the nearest pixel: nvcc computes (c + 1) * size - 1 with one rounding, a CPU's
    compiler with two."""
    if align or mode != 1:
        return aten.grid_sampler_2d.default(x, grid, mode, padding, align)
    h, w = x.shape[2:]
    size = torch.tensor([w, h], dtype=torch.float64)
    place = (((grid + 1).double() * size - 1).float() / 2).round().long()  # to even, as nearbyint
    inside = ((place >= 0) & (place < torch.tensor([w, h]))).all(dim=-1)
    rows, columns = place[..., 1].clamp(0, h - 1), place[..., 0].clamp(0, w - 1)
    flat = (rows * w + columns).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    found = x.flatten(2).gather(2, flat).view(*x.shape[:2], *place.shape[1:3])
    return found * inside[:, None]


SPECIAL = {
    aten._scaled_dot_product_efficient_attention.default: _forward,
    aten._scaled_dot_product_efficient_attention_backward.default: _backward,
    aten.convolution.default: _convolution,
    aten.grid_sampler_2d.default: _grid_sampler,
}
