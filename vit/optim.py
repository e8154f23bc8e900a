"""The optimizers, AdamW and Muon, and the schedule of the learning rate."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vit.config import OptimConfig
from vit.model import VisionTransformer
from vit.numerics import multiplies_bfloat16

MUON_MOMENTUM = 0.95
"""Momentum of Muon, with Nesterov's correction: the value of every published Muon run."""


def parameter_groups(model: VisionTransformer, config: OptimConfig) -> list[dict[str, Any]]:
    """Group trainable parameters by optimizer, peak learning rate and weight decay.

    A group's `part` names its optimizer, its `peak` the learning rate at the top of the schedule.
    Muon takes the matrices of the blocks; embeddings, stem, head and all parameters without weight
    decay (biases, norms, positions, tokens) stay with AdamW. With layer decay (Bao et al. 2022,
    BEiT) the peak shrinks by the factor from layer to layer: from the head, layer L + 1, over block
    i, layer i + 1, down to the embeddings, layer 0, as in timm's `param_groups_layer_decay`.
    """
    no_decay = model.no_weight_decay()
    groups: dict[tuple[str, int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            hidden = name.startswith("blocks.") and parameter.ndim == 2
            part = "muon" if hidden and config.optimizer == "muon" else "adamw"
            groups[part, _layer(name, model.config.depth), name in no_decay].append(parameter)
    top = model.config.depth + 1
    merged: dict[tuple[str, float, float], list[nn.Parameter]] = defaultdict(list)
    for (part, layer, bare), parameters in groups.items():
        muon = part == "muon"
        peak = (config.muon_lr if muon else config.lr) * config.layer_decay ** (top - layer)
        decay = 0.0 if bare else config.muon_weight_decay if muon else config.weight_decay
        merged[part, peak, decay] += parameters
    return [
        {"params": parameters, "part": part, "peak": peak, "lr": peak, "weight_decay": decay}
        for (part, peak, decay), parameters in merged.items()
    ]


def _layer(name: str, depth: int) -> int:
    """The layer that a parameter belongs to, from 0; the last norm counts as the last block's."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    if name.startswith("norm."):
        return depth
    return depth + 1 if name.startswith(("fc_norm.", "head.")) else 0


class Muon(torch.optim.Optimizer):
    """Muon as torch.optim.Muon (Jordan 2024), but in float32 where bfloat16 would be emulated.

    torch iterates in bfloat16 on any device. A CPU that emulates it takes twenty times as long,
    more than the rest of a small model's step. On a device with bfloat16 the numbers are torch's
    to the last bit.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        """Optimize groups of matrices, each with its own `lr` and `weight_decay`."""
        super().__init__(groups, {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Turn each matrix's momentum, with Nesterov's correction, into an orthogonal step.

        On a GPU all matrices of one shape are one stack, whatever their group: launches, not
        arithmetic, would take the time.
        """
        pairs = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not pairs:
            return
        matrices, grads = [p for _, p in pairs], [p.grad for _, p in pairs]
        for p in matrices:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
        momenta = [self.state[p]["momentum_buffer"] for p in matrices]
        share = self.defaults["momentum"]
        torch._foreach_lerp_(momenta, grads, 1 - share)
        steps = _orthogonal_steps(torch._foreach_lerp(grads, momenta, share))
        torch._foreach_mul_(matrices, [1 - g["lr"] * g["weight_decay"] for g, _ in pairs])
        by_rate: dict[float, list[int]] = defaultdict(list)
        for i, (group, p) in enumerate(pairs):
            by_rate[group["lr"] * math.sqrt(max(1, p.shape[0] / p.shape[1]))].append(i)
        for rate, alike in by_rate.items():
            targets = [matrices[i] for i in alike]
            torch._foreach_add_(targets, [steps[i] for i in alike], alpha=-rate)


def _orthogonal_steps(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return `orthogonal` of each matrix, in float32 and contiguous."""
    device = matrices[0].device
    dtype = torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    if device.type == "cpu":
        return [orthogonal(matrix, dtype).float().contiguous() for matrix in matrices]
    shapes: dict[torch.Size, list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        shapes[matrix.shape].append(i)
    found: dict[int, Tensor] = {}
    for alike in shapes.values():
        stack = orthogonal(torch.stack([matrices[i] for i in alike]), dtype).float().contiguous()
        found |= zip(alike, stack, strict=True)
    return [found[i] for i in range(len(matrices))]


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Make a matrix nearly orthogonal by five Newton-Schulz iterations (Jordan 2024).

    For a matrix with the singular value decomposition U S V^T the result is near U V^T: its
    singular values lie between about 0.5 and 1.5. The iteration does not converge further, as its
    polynomial is steep at zero to need few steps.

    Args:
        matrix: (M, N), or a stack of matrices, (B, M, N).
        dtype: dtype of the computation and of the result.

    Returns:
        A tensor of the same shape and of that dtype.
    """
    x = matrix.to(dtype)
    product = torch.addmm if x.ndim == 2 else torch.baddbmm
    tall = x.shape[-2] > x.shape[-1]
    wide = x.mT if tall else x
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = wide @ wide.mT
        update = product(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        wide = product(wide, update, wide, beta=3.4445)
    return wide.mT if tall else wide


class Optimizer(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019), and Muon (Jordan 2024) for the groups that it takes.

    It saves and restores as one optimizer: the two parts work on its groups and its state.
    """

    def __init__(self, model: VisionTransformer, config: OptimConfig) -> None:
        """Optimize the trainable parameters of a bare model."""
        super().__init__(parameter_groups(model, config), {})
        by_part = {part: list(self._groups(part)) for part in ("adamw", "muon")}
        self._parts: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(by_part["adamw"], betas=config.betas, fused=True)
        }
        if by_part["muon"]:
            self._parts["muon"] = Muon(by_part["muon"], momentum=MUON_MOMENTUM)
        # The two copied the groups and added their defaults to the copies.
        self.param_groups = [g for part in self._parts.values() for g in part.param_groups]
        self._share()

    def _groups(self, part: str) -> Iterator[dict[str, Any]]:
        return (group for group in self.param_groups if group["part"] == part)

    def _share(self) -> None:
        """Make the parts work on the groups and the state of the whole."""
        for name, part in self._parts.items():
            part.param_groups = list(self._groups(name))
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step of every part."""
        for part in self._parts.values():
            part.step()


def rate(config: OptimConfig, step: int, total_steps: int, warmup_steps: int) -> float:
    """Learning rate of optimizer step `step` (0-based) of `total_steps`, as a share of the peak.

    It rises linearly over the warm-up. Then, by `config.schedule`, it falls along half a cosine
    (Loshchilov & Hutter 2017); or stays constant and falls linearly in the last share `cooldown` of
    all steps (WSD: Hu et al. 2024, arXiv 2404.06395; Hägele et al. 2024, arXiv 2405.18392); or
    stays constant to the end. It is a function of the step, so a resumed run needs no state of it.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    low = config.min_lr / config.lr
    match config.schedule:
        case "constant":
            return 1.0
        case "wsd":
            falling = min(max(1, round(config.cooldown * total_steps)), total_steps - warmup_steps)
            done = max(0, step - (total_steps - falling)) / falling
            return 1 - (1 - low) * done
        case _:
            done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
            return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
