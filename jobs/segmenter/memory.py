"""The GPU memory of a fine-tuning step, measured before the first one; a batch that does not fit
makes the encoder recompute its blocks, or ends the training with a message."""

from typing import Any, Literal

import torch

from jobs.run.config import ConfigError
from jobs.segmenter.config import FinetuneConfig
from masking.training.steps import Batch, Rounds, Trainee, gradients

USED = 0.92
"""Share of the memory that is planned with: fragments, and other networks' sizes, take the rest."""


def plan_memory(
    model: Trainee, config: FinetuneConfig, part: int, precision: Literal["float32", "bfloat16"]
) -> str:
    """Choose whether the encoder's blocks are recomputed in the backward pass, and say what a batch
    needs.

    Steps of one and of two images are measured: memory grows linearly with images.

    Args:
        model: the network to train, on the GPU; its gradients are cleared.
        config: settings of the training.
        part: images of a batch on this GPU.
        precision: precision of the forward pass.

    Raises:
        ConfigError: the batch does not fit.
    """
    device = next(model.parameters()).device
    fraction = torch.cuda.get_per_process_memory_fraction(device)
    total = fraction * torch.cuda.mem_get_info(device)[1]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    states = 8 * trained  # AdamW's two moments in float32

    def measured(images: int) -> float:
        return _peak(model, config, images, precision) + states

    def needed() -> tuple[float, float]:
        """Return the bytes of one image, and of each further one."""
        first = measured(1)
        return first, (measured(2) - first if part > 1 else 0.0)

    one, more = needed()
    line = f"memory: a batch of {part} needs {_gb(one + (part - 1) * more)} of {_gb(total)}"
    network: Any = model.network
    if one + (part - 1) * more > USED * total and hasattr(network, "recompute"):
        network.recompute = True
        one, more = needed()
        line += (
            f"; with the encoder's blocks recomputed in the backward pass, as is done here,"
            f" {_gb(one + (part - 1) * more)}"
        )
    if one + (part - 1) * more > USED * total:
        raise ConfigError(_refusal(line, one, more, USED * total, config.workers))
    return line


def _refusal(line: str, one: float, more: float, limit: float, workers: int) -> str:
    fits = 1 + int((limit - one) / more) if more and one <= limit else int(one <= limit)
    cure = "a larger GPU, a smaller --compose.objects, or --encoder-lr 0, which freezes the encoder"
    if fits:
        cure = f"--batch-size {fits * workers}, more --workers on GPUs of their own, or {cure}"
    return f"{line}; that does not fit: use {cure}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size < float("inf") else "more than all"


def _peak(
    model: Trainee, config: FinetuneConfig, images: int, precision: Literal["float32", "bfloat16"]
) -> float:
    """Return the most bytes that are allocated in a step of so many images; infinite if they do not
    fit."""
    device, side, prompts = next(model.parameters()).device, config.compose.size, config.prompts

    def zeros(*shape: int, kind: torch.dtype) -> torch.Tensor:
        return torch.zeros(images, *shape, dtype=kind, device=device)

    batch = Batch(
        zeros(3, side, side, kind=torch.uint8).contiguous(memory_format=torch.channels_last),
        zeros(config.compose.objects, side, side, kind=torch.bool),
        zeros(side, side, kind=torch.bool),
        zeros(kind=torch.int64),
        images,
    )
    count = prompts.rounds[1]
    rounds = Rounds(count, set(range(min(count, prompts.graded))))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        gradients(model, batch, prompts, rounds, precision)
    except torch.OutOfMemoryError:
        return float("inf")
    finally:
        model.zero_grad(set_to_none=True)
    return float(torch.cuda.max_memory_allocated(device))
