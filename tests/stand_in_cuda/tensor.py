"""Tensors that say they are on cuda:0, and the rules for every operator that they take part in."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from tests.stand_in_cuda.device import CUDA, DEVICE, Lease, StandInError
from tests.stand_in_cuda.kernels import ONE_PRECISION, SPECIAL, WAITING, composite, has_kernel

aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
VALUES = (aten._local_scalar_dense.default, aten.equal.default)
"""Operators that return a Python value."""


class StandIn(Tensor):
    """A tensor that says it is on cuda:0; its numbers are in `inner`, on the host."""

    @staticmethod
    def __new__(cls, inner):
        self = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=CUDA,
        )  # fmt: skip
        self.inner, self.lease = inner, Lease(inner.untyped_storage())
        self.made = (DEVICE.stream, DEVICE.stream.tick)
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        Tensor.data.__set__(self, value)
        self.inner, self.lease, self.made = value.inner, value.lease, value.made

    def __deepcopy__(self, memo):
        with torch.no_grad():
            copy = self.detach().clone().requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copy._is_param = True
        memo[id(self)] = copy
        return copy

    def tolist(self):
        return self.cpu().tolist()

    def record_stream(self, stream):
        DEVICE.homes[self.lease.key] = None

    def numpy(self, *_, **__):
        raise StandInError("can't convert cuda:0 device type tensor to numpy")

    def __repr__(self, **_):
        return f"StandIn({tuple(self.shape)}, {self.dtype})"


class Mode(TorchDispatchMode):
    """Catches operators without a stand-in among their operands: factories, uploads, pinning."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    """Carry an operator out as CUDA would, or refuse it."""
    if torch.is_inference_mode_enabled() and composite(func):
        with Mode():  # outside of inference mode autograd has taken it apart before
            return func.decompose(*args, **kwargs)
    leaves, spec = tree_flatten((args, kwargs))
    ours = [leaf for leaf in leaves if isinstance(leaf, StandIn)]
    if func in (aten._pin_memory.default, aten.is_pinned.default):
        return _pinning(func, args[0])
    if kwargs.get("pin_memory"):
        return DEVICE.pin(func(*args, **{**kwargs, "pin_memory": False}))
    wanted = kwargs.get("device")
    if not ours and (wanted is None or torch.device(wanted).type != "cuda"):
        return func(*args, **kwargs)
    if func is aten._to_copy.default:
        return _to_copy(args[0], **kwargs)
    if func is aten.copy_.default:
        return _copy(args, kwargs)
    _check(func, args, kwargs, leaves, ours)
    if func in WAITING:
        if DEVICE.sizes_only:
            raise StandInError(f"{func} needs numbers")
        DEVICE.wait(WAITING[func])
    DEVICE.launch(func, args)
    inner_args, inner_kwargs = tree_unflatten([_bare(leaf) for leaf in leaves], spec)
    special = None if DEVICE.sizes_only else SPECIAL.get(func)
    return _dressed(func, (special or func)(*inner_args, **inner_kwargs), leaves, args, kwargs)


def _bare(leaf):
    """An operand as it is carried out: on the host, or, for sizes only, on torch's meta device."""
    if isinstance(leaf, StandIn):
        return leaf.inner
    if isinstance(leaf, torch.device) and leaf.type == "cuda":
        return torch.device("meta" if DEVICE.sizes_only else "cpu")
    if DEVICE.sizes_only and isinstance(leaf, Tensor) and leaf.device.type == "cpu":
        return leaf.to("meta")
    return leaf


def _dressed(func, found, leaves, args, kwargs):
    """Results as stand-ins; what an operator wrote to is returned as it was given."""
    written = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            written += value if isinstance(value, list | tuple) else [value]
    for one in written:
        if isinstance(one, StandIn):
            one.made = (DEVICE.stream, DEVICE.stream.tick)
    if written and not isinstance(found, tuple | list) and found is not None:
        return written[0]
    if func in VALUES:
        return found
    # A view, taken in inference mode, of what was not made there stays an ordinary tensor.
    ordinary = any(isinstance(leaf, StandIn) and not leaf.is_inference() for leaf in leaves)
    with torch.inference_mode(torch.is_inference_mode_enabled() and not ordinary):
        return tree_map_only(Tensor, lambda x: x if isinstance(x, StandIn) else StandIn(x), found)


# What is refused


def _check(func, args, kwargs, leaves, ours):
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != "cuda":
        raise StandInError(f"{func}: expected a generator of cuda, found one of {generator.device}")
    if not has_kernel(func):
        raise StandInError(f"{func}: CUDA has no kernel")
    if not ours:
        return
    _check_streams(func, ours)
    if func in INDEXING:
        leaves = _check_indices(args[1], leaves)
    for leaf in leaves:
        if isinstance(leaf, Tensor) and not isinstance(leaf, StandIn) and leaf.ndim:
            raise StandInError(
                f"{func}: expected all tensors to be on the same device, but found cuda:0 and"
                f" {leaf.device} {tuple(leaf.shape)}"
            )
    if func in ONE_PRECISION:
        operands = [args[i] for i in ONE_PRECISION[func]]
        kinds = {operand.dtype for operand in operands if operand is not None}
        if len(kinds) > 1:
            raise StandInError(f"{func}: CUDA takes operands of one precision, found {kinds}")


def _check_streams(func, ours):
    here = DEVICE.stream
    for tensor in ours:
        stream, tick = tensor.made
        if stream is not here and here.seen[stream] < tick:
            raise StandInError(f"{func}: made on another stream, which was not waited for")
        if DEVICE.homes[tensor.lease.key] not in (None, here):
            raise StandInError(f"{func}: used on another stream without record_stream")


def _check_indices(indices, leaves):
    """Indices may be on the host, at the price of a wait; other operands may not."""
    for index in indices:
        if isinstance(index, Tensor):
            if index.dtype in (torch.bool, torch.uint8):
                DEVICE.wait("boolean index")
            if not isinstance(index, StandIn) and index.ndim:
                DEVICE.wait("index on the host")
    return [leaf for leaf in leaves if not any(leaf is index for index in indices)]


# Copies


def _pinning(func, tensor):
    if isinstance(tensor, StandIn):
        raise StandInError("cannot pin a tensor of cuda:0; only memory of the host can be pinned")
    if func is aten.is_pinned.default:
        return tensor.untyped_storage()._cdata in DEVICE.pinned
    return DEVICE.pin(tensor.clone(memory_format=torch.preserve_format))


def _to_copy(x, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False,
             memory_format=None):  # fmt: skip
    device = x.device if device is None else torch.device(device)
    options = {"dtype": dtype, "memory_format": memory_format}
    bare = _bare(x)
    if isinstance(x, StandIn):
        _check_streams(aten._to_copy.default, [x])
    if device.type == "cuda":
        if isinstance(x, StandIn):
            DEVICE.launch(aten._to_copy.default, (x,))
        else:
            DEVICE.upload(x, non_blocking)
        return StandIn(aten._to_copy.default(bare, **options))
    if DEVICE.sizes_only:
        DEVICE.wait("copy to the host")
        return torch.zeros(x.shape, dtype=dtype or x.dtype)
    found = aten._to_copy.default(bare, **options)
    if non_blocking:
        return DEVICE.later(torch.empty_like(found), found)
    DEVICE.wait("copy to the host")
    return found


def _copy(args, kwargs):
    target, source, *rest = args
    non_blocking = rest[0] if rest else kwargs.get("non_blocking", False)
    ours = [x for x in (target, source) if isinstance(x, StandIn)]
    _check_streams(aten.copy_.default, ours)
    bare = _bare(source)
    if isinstance(target, StandIn):
        if isinstance(source, StandIn):
            DEVICE.launch(aten.copy_.default, args)
        elif source.ndim:
            DEVICE.upload(source, non_blocking)
        target.inner.copy_(bare)
        target.made = (DEVICE.stream, DEVICE.stream.tick)
        return target
    if DEVICE.sizes_only:
        return target
    if non_blocking:
        return DEVICE.later(target, bare)
    DEVICE.wait("copy to the host")
    return target.copy_(bare)
