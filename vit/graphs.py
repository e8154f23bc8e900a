"""Forward and backward pass of a training step as CUDA graphs: two launches instead of hundreds.

A small model's kernels are shorter than their launches, so that the host would set the pace.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vit.numerics import Precision, autocast, seconds

_APART = 0.01
"""Largest distance of a gradient from the one without graphs, as a share of its norm."""


def use_graphs(
    model: nn.Module, images: Tensor, drop_path: Tensor | None, precision: Precision
) -> str:
    """Have a bare model replay CUDA graphs in training, if a probe finds that faster.

    Only batches of the shapes given are replayed, and what is replayed must give the gradients that
    it gives without graphs. The gradients lie in memory of the graphs, which the next backward pass
    writes to: they must be used up before it, so they cannot be accumulated.

    Args:
        model: a bare model on a GPU, without dropout; its gradients are cleared.
        images: (B, 3, S, S) float32 on its device.
        drop_path: draws for stochastic depth, or None.
        precision: precision of the forward pass.

    Returns:
        A few words on what was chosen, and why.
    """
    given = (images,) if drop_path is None else (images, drop_path)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with autocast(images.device, precision):
            logits = model(*given)
        logits.float().logsumexp(dim=1).sum().backward()

    model.train()
    plain, before = model.forward, seconds(step)
    expected = _gradients(model)
    try:
        with autocast(images.device, precision):
            torch.cuda.make_graphed_callables(model, given)
        after = seconds(step)
        why = _why_not(_gradients(model), expected, before, after)
    except RuntimeError as error:  # memory, or an operator that cannot be captured
        why = f"they failed: {str(error).splitlines()[0]}"
    graphed = model.__dict__.pop("forward", plain)
    model.zero_grad(set_to_none=True)
    if why:
        return f"no CUDA graphs, as {why}"
    model.forward = _either(model, plain, graphed, given)
    return f"CUDA graphs: {before / after:.2f} times as fast in a probe"


def _gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def _why_not(found: list[Tensor], expected: list[Tensor], before: float, after: float) -> str:
    """Return why graphs are not used; empty if they are."""
    norms, apart = (
        torch.stack(torch._foreach_norm(each))
        for each in (expected, torch._foreach_sub(found, expected))
    )
    if not bool((apart <= _APART * norms + 1e-12).all()):
        return "their gradients differ from those without"
    return "" if after <= 0.95 * before else "they were not faster in a probe"


def _either(
    model: nn.Module, plain: Callable[..., Any], graphed: Callable[..., Any], given: tuple[Any, ...]
) -> Callable[..., Any]:
    """Return a forward pass that is replayed in training, for the shapes that were captured."""
    shapes = [each.shape for each in given]

    def forward(images: Tensor, drop_path: Tensor | None = None) -> Any:
        args = (images,) if drop_path is None else (images, drop_path)
        if model.training and [each.shape for each in args] == shapes:
            return graphed(*args)
        return plain(images, drop_path)

    return forward
