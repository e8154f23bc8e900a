"""The device of a process that computes: which one, how exactly, and how much of it.

TF32 is set here and nowhere else: float32 means float32, in products and in convolutions, whatever
ran before in the process. bfloat16 is what makes use of a GPU's tensor cores.
"""

from collections.abc import Callable

import torch

from jobs.run.config import ConfigError
from vit.numerics import seconds


def choose_device(wanted: str) -> torch.device:
    """Return the device of a job without Ray workers for `--device` auto, cpu or cuda.

    Raises ConfigError if it is missing.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device cuda: torch {torch.__version__} sees no GPU here; use --device auto or cpu"
        )
    device = torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
    settle(device)
    return device


def settle(device: torch.device, gpus: float = 1.0) -> None:
    """Set what holds for the whole process before it computes on a device.

    Args:
        device: the device.
        gpus: share of the GPU that this process has. It cannot allocate more of the memory than
            this share: else the first of the processes on a GPU would take what others need.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda" and gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus, device)


def uses_tf32() -> bool:
    """Return whether float32 operands are rounded to TF32 in this process."""
    return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32


def choose_attention(work: Callable[[], None]) -> str:
    """Use cuDNN's attention in this process if it is faster than torch's own kernels, else not.

    torch prefers it on Hopper. But it needs a plan for every new shape, whose making takes long and
    whose memory is not given back, so it must be 5 % faster.

    Args:
        work: computes with attention on the GPU, as the job will.

    Returns:
        A few words on what was chosen.
    """
    torch.backends.cuda.enable_cudnn_sdp(True)
    with_cudnn = seconds(work)
    torch.backends.cuda.enable_cudnn_sdp(False)
    without = seconds(work)
    if with_cudnn > 0.95 * without:
        return "attention without cuDNN, which was not faster in a probe"
    torch.backends.cuda.enable_cudnn_sdp(True)
    return f"cuDNN's attention: {without / with_cudnn:.2f} times as fast in a probe"
