"""Weights of segmenters from a file, read without running code, and put into a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

FILE = "model.safetensors"
"""The file in the folder of an export, and under export/ in the folder of a run."""
LISTED = 5
"""Names that a message lists of each kind of fault."""


class CheckpointError(ValueError):
    """Weights that cannot be used: which file, why, and what is expected."""


def find(path: Path) -> Path:
    """The file that `path` means: itself, or the one in the folder of an export or a run."""
    for file in (path, path / FILE, path / "export" / FILE):
        if file.is_file():
            return file
    missing = f"neither {FILE} nor export/{FILE} in it" if path.is_dir() else "no such file"
    raise CheckpointError(
        f"weights {path}: {missing}; give a checkpoint of SAM (.pth), a safetensors file, or the"
        " folder of a run"
    )


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, or of one that torch.save wrote.

    Raises:
        CheckpointError: a damaged file, or one of another kind.
    """
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as found:
                names = found.keys()
                return {name: found.get_tensor(name) for name in names}, found.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is no whole safetensors file: {error}; fetch or export it anew"
            ) from error
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive or pickle raises what it likes
        raise CheckpointError(
            f"{file} is no whole checkpoint: {_first_line(error)}; expected the state dict of a SAM"
            " as torch.save writes it. If it was downloaded, delete it and fetch it anew"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(
            f"{file} holds {_kind(tensors)}; expected a state dict: a tensor for each name. Save"
            " the weights alone, by torch.save(model.state_dict(), PATH)"
        )
    return tensors, {}


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _kind(found: object) -> str:
    if isinstance(found, dict):
        return f"a dict of {', '.join(map(repr, list(found)[:LISTED]))}"
    return f"a {type(found).__name__}"


def fill(module: nn.Module, tensors: Mapping[str, Tensor], file: Path, name: str) -> None:
    """Load tensors into a module of the architecture `name`, as float32, without a copy of those.

    Raises:
        CheckpointError: names or shapes differ: how many, and some of each kind.
    """
    if found := _faults(tensors, module.state_dict()):
        refuse(file, f"is not a checkpoint of {name}", found)
    module.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)


def refuse(file: Path, why: str, faults: Sequence[str]) -> NoReturn:
    """Raise CheckpointError: the file, what it is not, and a line a fault."""
    raise CheckpointError("\n  ".join([f"{file} {why}:", *faults]))


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
