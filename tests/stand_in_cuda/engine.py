"""Autograd for the stand-in: torch's engine asks the driver for streams, so the graph is walked in
Python."""

from collections import Counter

import torch
from torch import Tensor

from tests.stand_in_cuda.device import DEVICE, StandInError
from tests.stand_in_cuda.tensor import StandIn

PLAIN = torch.autograd.backward


def backward(
    tensors, grad_tensors=None, retain_graph=None, create_graph=False, grad_variables=None,
    inputs=None,
):  # fmt: skip
    """Stand in for torch.autograd.backward; tensors of the host go through torch's own."""
    roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if not any(isinstance(root, StandIn) for root in roots):
        PLAIN(tensors, grad_tensors, retain_graph, create_graph, inputs=inputs)
        return
    assert inputs is None
    seeds = [grad_tensors] if isinstance(grad_tensors, Tensor) else grad_tensors
    seeds = seeds or [None] * len(roots)
    # Outside of torch's engine, checkpointing would recompute a block for each tensor it saved.
    task, torch._C._current_graph_task_id = torch._C._current_graph_task_id, lambda: 1
    try:
        with torch.no_grad():
            given = {}
            for root, seed in zip(roots, seeds, strict=True):
                _add(given, root.grad_fn, root.output_nr, _first(root) if seed is None else seed)
            _walk([root.grad_fn for root in roots], given)
    finally:
        torch._C._current_graph_task_id = task


def _first(root):
    return torch.ones_like(root)


def _walk(roots, given):
    waiting = _dependencies(roots)
    ready = [root for root in dict.fromkeys(roots) if not waiting[root]]
    while ready:
        node = ready.pop()
        grads = given.pop(node, None)
        found = _step(node, grads) if grads is not None else [None] * len(node.next_functions)
        for (later, number), grad in zip(node.next_functions, found, strict=True):
            if later is None:
                continue
            if grad is not None:
                _add(given, later, number, grad)
            waiting[later] -= 1
            if not waiting[later]:
                ready.append(later)


def _dependencies(roots):
    """How many nodes each node waits for."""
    waiting, nodes, stack = Counter(), set(roots), list(dict.fromkeys(roots))
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in nodes:
                    nodes.add(node)
                    stack.append(node)
    return waiting


def _step(node, grads):
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return _step_of_function(node, grads)
    if type(node).__name__ != "AccumulateGrad":
        found = node(*grads)
        return found if isinstance(found, tuple) else (found,)
    leaf, [grad] = node.variable, grads
    if grad is not None:
        if leaf.grad is None and grad.stride() == leaf.stride():
            leaf.grad = grad.detach()  # taken over, as torch does
        elif leaf.grad is None:
            leaf.grad = torch.empty_like(leaf).copy_(grad)
        else:
            leaf.grad += grad
    return []


def _step_of_function(node, grads):
    """Step through a torch.autograd.Function, which returns None for what is no tensor, too."""
    found = node.apply(*grads)
    found = found if isinstance(found, tuple) else (found,)
    wanted = iter(grad for grad, use in zip(found, node.needs_input_grad, strict=True) if use)
    return [None if later is None else next(wanted) for later, _ in node.next_functions]


def _add(given, node, number, grad):
    about = node._input_metadata[number]
    if not isinstance(grad, StandIn):
        raise StandInError(f"{node}: a gradient on {grad.device}")
    if list(grad.shape) != list(about.shape):
        grad = grad.sum_to_size([int(n) for n in about.shape])
    grad = grad.to(about.dtype)
    grads = given.setdefault(node, [None] * len(node._input_metadata))
    grads[number] = grad if grads[number] is None else grads[number] + grad


class _Graphed(torch.autograd.Function):
    """Forward and backward of a module as two CUDA graphs."""

    @staticmethod
    def forward(ctx, module, plain, count, *tensors):
        with DEVICE.graph(), torch.enable_grad():
            out = plain(*tensors[:count])
        ctx.out, ctx.parameters = out, tensors[count:]
        ctx.count = count
        return out.detach()

    @staticmethod
    def backward(ctx, grad):
        before = [p.grad for p in ctx.parameters]
        for p in ctx.parameters:
            p.grad = None
        with DEVICE.graph():
            backward(ctx.out, grad)
        found = [p.grad for p in ctx.parameters]
        for p, grad_before in zip(ctx.parameters, before, strict=True):
            p.grad = grad_before
        return (None, None, None, *[None] * ctx.count, *found)


def make_graphed_callables(module, sample_args, num_warmup_iters=3, **_):
    """Stand in for torch.cuda.make_graphed_callables with one module: shapes must stay."""
    plain, training, parameters = module.forward, module.training, list(module.parameters())
    shapes = [tuple(each.shape) for each in sample_args]

    def forward(*args):
        if module.training != training:
            return plain(*args)
        if [tuple(each.shape) for each in args] != shapes:
            raise StandInError(f"a CUDA graph was captured for {shapes}")
        return _Graphed.apply(module, plain, len(args), *args, *parameters)

    module.forward = forward
    return module
