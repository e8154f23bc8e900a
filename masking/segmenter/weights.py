"""Weights of segmenters: found, read without running code, and loaded into a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

FILE = "model.safetensors"
"""Name of the weights in the folder of an export, which is export/ in the folder of a run."""
LISTED = 5
"""Names that a message lists of each kind of fault."""


class SegmenterWeightsError(ValueError):
    """Weights that cannot be used: which file, why, and what is expected."""


def find(path: Path) -> Path:
    """Return the file of weights that `path` means: itself, or the one in an export or a run.

    Raises:
        SegmenterWeightsError: There is no such file.
    """
    for file in (path, path / FILE, path / "export" / FILE):
        if file.is_file():
            return file
    missing = f"there is neither {FILE} nor export/{FILE}" if path.is_dir() else "no such file"
    raise SegmenterWeightsError(
        f"weights {path}: {missing}; give a checkpoint of SAM (.pth), a safetensors file, or the"
        " folder of a run"
    )


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a safetensors file, or of one that torch.save wrote.

    Raises:
        SegmenterWeightsError: The file is damaged, or of another kind.
    """
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as opened:
                names = opened.keys()
                return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise SegmenterWeightsError(
                f"{file} is not a complete safetensors file: {error}; fetch or export it again"
            ) from error
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive or pickle raises almost anything
        raise SegmenterWeightsError(
            f"{file} is not a complete checkpoint: {_first_line(error)}; expected the state dict"
            " of a SAM as torch.save writes it. If it was downloaded, delete it and fetch it again"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise SegmenterWeightsError(
            f"{file} holds {_kind(tensors)}; expected a state dict: a tensor for each name. Save"
            " only the weights, by torch.save(model.state_dict(), PATH)"
        )
    return tensors, {}


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _kind(content: object) -> str:
    if isinstance(content, dict):
        return f"a dict of {', '.join(map(repr, list(content)[:LISTED]))}"
    return f"a {type(content).__name__}"


def fill(module: nn.Module, tensors: Mapping[str, Tensor], file: Path, name: str) -> None:
    """Load tensors into a module, as float32; those that are float32 are not copied.

    Args:
        module: the network to fill.
        tensors: its weights by name.
        file: where they were read, for messages.
        name: the architecture, for messages.

    Raises:
        SegmenterWeightsError: Names or shapes differ; it says how many, and lists some.
    """
    if faults := _faults(tensors, module.state_dict()):
        refuse(file, f"is not a checkpoint of {name}", faults)
    module.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)


def refuse(file: Path, why: str, faults: Sequence[str]) -> NoReturn:
    """Raise SegmenterWeightsError with the file, what it is not, and a line for each fault."""
    raise SegmenterWeightsError("\n  ".join([f"{file} {why}:", *faults]))


def _faults(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} is {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    kinds = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": shapes,
    }
    return [
        f"{len(names)} {kind}: {', '.join(names[:LISTED])}{' ...' if len(names) > LISTED else ''}"
        for kind, names in kinds.items()
        if names
    ]
