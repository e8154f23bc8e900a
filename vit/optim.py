"""AdamW with its parameter groups, and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from vit.config import OptimConfig


def parameter_groups(
    model: nn.Module, weight_decay: float, no_decay: set[str]
) -> list[dict[str, object]]:
    """Split the trainable parameters into those with weight decay and those in `no_decay`."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {
            "params": [p for name, p in named if name not in no_decay],
            "weight_decay": weight_decay,
        },
        {"params": [p for name, p in named if name in no_decay], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, config: OptimConfig, no_decay: set[str]) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over the model's parameters, one fused kernel a step."""
    groups = parameter_groups(model, config.weight_decay, no_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(config: OptimConfig, step: int, total_steps: int, warmup_steps: int) -> float:
    """Learning rate of optimizer step `step` (0-based) out of `total_steps`.

    It rises linearly to `lr` over the warm-up, then falls along half a cosine to `min_lr`
    (Loshchilov & Hutter 2017). A function of the step, so a resumed run needs no state for it.
    """
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
