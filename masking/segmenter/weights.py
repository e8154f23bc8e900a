"""Weights of segmenters: found, read without running code, and loaded into a network."""

import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from safetensors import safe_open
from torch import Tensor, nn

from masking.images.lfs import POINTER, is_pointer

FILE = "model.safetensors"
"""Name of the weights in the folder of an export, which is export/ in the folder of a run."""
LISTED = 5
"""Names that a message lists of each kind of fault."""
_SHARED = 2
"""Bytes of all tensors, as a multiple of the file's: a few tensors may share their values."""


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

    No code in the file is run, and the tensors take about as much memory as the file.

    Raises:
        SegmenterWeightsError: The file is damaged, or of another kind.
    """
    if is_pointer(file):
        raise SegmenterWeightsError(f"{file} {POINTER}")
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as opened:
                names = opened.keys()
                return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
        except Exception as error:  # damaged headers raise all kinds
            raise SegmenterWeightsError(
                f"{file} is not a complete safetensors file: {error}; fetch or export it again"
            ) from error
    try:
        _refuse_compressed(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except SegmenterWeightsError:
        raise
    except Exception as error:  # a damaged archive or pickle raises almost anything
        raise SegmenterWeightsError(
            f"{file} is not a complete checkpoint: {_first_line(error)}; expected the state dict"
            " of a SAM as torch.save writes it. If it was downloaded, delete it and fetch it again"
        ) from error
    if isinstance(tensors, dict) and list(tensors) == ["model"]:  # Meta saves SAM 2 so
        tensors = tensors["model"]
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise SegmenterWeightsError(
            f"{file} holds {_kind(tensors)}; expected a state dict: a tensor for each name. Save"
            f" only the weights, by torch.save({_state(tensors)}, PATH)"
        )
    if faults := list(_odd(tensors, file.stat().st_size)):
        refuse(file, "holds tensors that are not read", faults)
    return {name: tensor.detach() for name, tensor in tensors.items()}, {}


def _refuse_compressed(file: Path) -> None:
    """Raise SegmenterWeightsError for an archive that may unpack to any size; torch packs none."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:  # torch.jit.save compresses code, which is not read
        entries = [entry for entry in archive.infolist() if "/code/" not in entry.filename]
    total = sum(entry.file_size for entry in entries)
    if any(entry.compress_type for entry in entries) or total > file.stat().st_size:
        raise SegmenterWeightsError(
            f"{file} is a compressed archive; expected one that torch.save wrote, which compresses"
            " nothing. If the weights are in it, unpack it first"
        )


def _odd(tensors: Mapping[Any, Tensor], size: int) -> list[str]:
    """List tensors that are not read, without a look at their values; `size`: bytes of the file."""
    faults, total = [], 0
    for name, tensor in tensors.items():
        kind = _odd_kind(tensor)
        if not isinstance(name, str):
            kind = type(name).__name__
            faults.append(f"the name {str(name)[:80]} is of type {kind}; expected text")
        elif kind:
            faults.append(f"{name} is {kind}; expected floating point numbers, stored one by one")
        else:
            total += tensor.numel() * tensor.element_size()
    if not faults and total > _SHARED * size:
        faults.append(f"they have {total:,} bytes in a file of {size:,}; expected each in the file")
    more = len(faults) - LISTED
    return [*faults[:LISTED], *([f"... and {more:,} more"] if more > 0 else [])]


def _odd_kind(tensor: Tensor) -> str:
    """Say which kind of tensor it is that cannot be a weight; "" for a common one."""
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.device.type != "cpu":
        return f"without values (device {tensor.device.type})"
    if tensor.is_quantized:
        return "quantized"
    if tensor.is_complex():
        return "complex"
    if tensor.is_conj() or tensor.is_neg():
        return "a view that is computed"
    kept = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > kept:
        return f"of shape {tuple(tensor.shape)}, of which only {kept:,} bytes are in the file"
    return ""


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _kind(content: object) -> str:
    if isinstance(content, dict):
        return f"a dict of {', '.join(map(repr, list(content)[:LISTED]))}"
    return f"a {type(content).__name__}"


def _state(content: object) -> str:
    """Return code for what may be the state dict in the content of a file."""
    for name, value in content.items() if isinstance(content, dict) else ():
        tensors = isinstance(value, dict) and value.values()
        if tensors and all(isinstance(each, Tensor) for each in tensors):
            return f"torch.load(OLD, weights_only=True)[{name!r}]"
    return "model.state_dict()"


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
    wanted = module.state_dict()
    metadata = {"architecture": "mini"} if "mini" in name else {}
    refuse_prefix(tensors, wanted, file, metadata)
    if faults := _faults(tensors, wanted):
        refuse(file, f"is not a checkpoint of {name}", faults)
    module.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)


def refuse_prefix(
    tensors: Mapping[str, Tensor],
    wanted: Iterable[str],
    file: Path,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise SegmenterWeightsError if the names of weights have something before those wanted.

    Args:
        tensors: the weights by name.
        wanted: names that the network has, or some of them.
        file: where they were read, for messages.
        metadata: what a safetensors file of such a network says of it.

    Raises:
        SegmenterWeightsError: They have; the message has code that takes it off.
    """
    known = set(wanted)
    found: Counter[str] = Counter()
    for name in tensors:
        starts = [place + 1 for place, sign in enumerate(name) if sign == "."]
        found.update(name[:start] for start in [0, *starts] if name[start:] in known)
    prefix, count = found.most_common(1)[0] if found else ("", 0)
    if not prefix or 2 * count < min(len(known), len(tensors)):
        return
    renamed = f"{{name.removeprefix({prefix!r}): x for name, x in weights.items()"
    renamed += f" if name.startswith({prefix!r})}}"
    if file.suffix == ".safetensors":
        code = (
            "from safetensors.torch import load_file, save_file",
            f"weights = load_file({str(file)!r})",
            f"save_file({renamed}, 'weights.safetensors', {dict(metadata)!r})",
        )
    else:
        code = (
            "import torch",
            f"weights = torch.load({str(file)!r}, weights_only=True)",
            f"torch.save({renamed}, 'weights.pth')",
        )
    example = next(name for name in tensors if name.startswith(prefix))
    refuse(
        file,
        f"has names that begin with {prefix!r}, such as {example}, as a network within another one"
        " has them (DistributedDataParallel: module.); write a file without that",
        code,
    )


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
