"""The device that a job without Ray workers computes on."""

import torch

from jobs.run.config import ConfigError


def choose_device(wanted: str) -> torch.device:
    """The device to compute on. Raises ConfigError if it is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device cuda: torch {torch.__version__} sees no GPU here")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
