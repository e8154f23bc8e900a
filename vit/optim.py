"""AdamW, or Muon beside it; the schedule of the learning rate; an average of the weights."""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vit.config import OptimConfig
from vit.model import VisionTransformer

MUON_MOMENTUM = 0.95
"""Of the gradient, with Nesterov's look ahead: the value of every published Muon run."""


def parameter_groups(model: VisionTransformer, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups of trainable parameters that share optimizer, peak learning rate and weight decay.

    A group's `part` names its optimizer, its `peak` the learning rate at the top of the schedule.
    Muon takes the matrices of the blocks; embeddings, stem, head and all that has no weight decay
    (biases, norms, positions, tokens) stay with AdamW. With layer decay (Bao et al. 2022, BEiT) the
    peak shrinks by the factor from the head, layer L + 1, over block i, layer i + 1, down to the
    embeddings, layer 0, as timm's `param_groups_layer_decay` counts them.
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
    """Which layer a parameter belongs to: the last norm to the last block, as in timm."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    if name.startswith("norm."):
        return depth
    return depth + 1 if name.startswith(("fc_norm.", "head.")) else 0


class Optimizer(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019), and Muon (Jordan 2024) for the groups that it takes.

    One optimizer to whoever saves and restores it: torch's own two work on the groups and the
    state of this one.
    """

    def __init__(self, model: VisionTransformer, config: OptimConfig) -> None:
        """Over the trainable parameters of a bare model."""
        super().__init__(parameter_groups(model, config), {})
        by_part = {part: list(self._groups(part)) for part in ("adamw", "muon")}
        self._parts: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(by_part["adamw"], betas=config.betas, fused=True)
        }
        if by_part["muon"]:
            self._parts["muon"] = torch.optim.Muon(by_part["muon"], momentum=MUON_MOMENTUM)
        # torch's own copied the groups: these have their defaults beside what was given.
        self.param_groups = [g for part in self._parts.values() for g in part.param_groups]
        self._share()

    def _groups(self, part: str) -> Iterator[dict[str, Any]]:
        return (group for group in self.param_groups if group["part"] == part)

    def _share(self) -> None:
        """Let the parts work on the groups and the state of the whole."""
        for name, part in self._parts.items():
            part.param_groups = list(self._groups(name))
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every part."""
        for part in self._parts.values():
            part.step()


def rate(config: OptimConfig, step: int, total_steps: int, warmup_steps: int) -> float:
    """Learning rate of optimizer step `step` (0-based) of `total_steps`, as a share of the peak.

    It rises linearly over the warm-up. Then it falls along half a cosine (Loshchilov & Hutter
    2017); or stays, and falls linearly in the last `cooldown` of all steps (WSD: Hu et al. 2024,
    arXiv 2404.06395; Hägele et al. 2024, arXiv 2405.18392); or stays. A function of the step, so a
    resumed run needs no state for it.
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


def start_average(model: nn.Module) -> nn.Module:
    """A copy of a bare model, to hold the average of its weights; not trained, set to evaluate."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def update_average(
    average: nn.Module, model: nn.Module, half_life: float, batch_size: int, step: int
) -> None:
    """Move the average of the weights towards the weights after optimizer step `step` (0-based).

    A step's share halves every `half_life` samples, whatever the batch; in the beginning it is
    never below 9 / (step + 10), so that the initial weights are soon forgotten (as in TensorFlow's
    ExponentialMovingAverage).

    Args:
        average: made by `start_average`; float32.
        model: the bare model; it has no buffers.
        half_life: in samples.
        batch_size: samples of a global batch.
    """
    kept = min(0.5 ** (batch_size / half_life), (step + 1) / (step + 10))
    mine: list[Tensor] = list(average.parameters())
    torch._foreach_lerp_(mine, list(model.parameters()), 1 - kept)
