"""The device of a job without Ray workers."""

import torch

from jobs.run.config import ConfigError


def choose_device(wanted: str) -> torch.device:
    """Return the device for `--device` auto, cpu or cuda; raises ConfigError if it is missing."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device cuda: torch {torch.__version__} sees no GPU here; use --device auto or cpu"
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
