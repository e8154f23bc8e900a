"""Load weights from a file into a model: ours or timm's, for other image sizes and classes.

Files are safetensors with timm's names. `model.json`, which `jobs.train` exports beside the
weights, holds what names and shapes do not show: heads, classes, normalisation. A pickle, which
can run code when it is read, is never opened.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from vit.config import DatasetConfig, ModelConfig
from vit.hints import implied, is_square, prefix_of, strip
from vit.model import VisionTransformer, num_patches, num_prefix_tokens
from vit.numerics import Numerics

FORMAT = 1
"""Version of model.json."""
FILE, ABOUT = "model.safetensors", "model.json"
_HEAD = ("head.weight", "head.bias")
_LISTED, _LONGEST = 10, 200
"""Number of names that a message lists for each kind of fault, and their longest length."""
_LFS = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git LFS puts in place of a large one."""


class WeightsError(ValueError):
    """Weights that cannot be used; the message lists keys and shapes and says what to do."""


@dataclass(frozen=True)
class About:
    """The contents of model.json, which describes the weights beside it."""

    classes: tuple[str, ...]
    """Names of the classes, by output of the head."""
    model: ModelConfig
    """Shape of the model."""
    dataset: DatasetConfig
    """Data of the training; other images are stored and normalised in the same way."""
    numerics: Numerics
    """How the model was computed when its accuracy was measured."""
    checkpoint: str
    """Name of the checkpoint that was exported."""
    crops: dict[str, Any] | None = None
    """How the images were cut out of videos, as the data set says (`vit.data.reader.CROPS`)."""

    def to_json(self) -> dict[str, Any]:
        """Convert to the value in model.json."""
        found = {"format": FORMAT, **asdict(self)}
        return {name: value for name, value in found.items() if (name, value) != ("crops", None)}

    @classmethod
    def from_json(cls, found: Any, source: object) -> "About":
        """Convert from the value in model.json; `source` names it in messages."""
        known = found.get("format") if isinstance(found, dict) else None
        if known != FORMAT:
            raise WeightsError(
                f"{source} has format {known}; this version reads {FORMAT}: export the weights"
                " again with the command of their training and the same --out"
            )
        try:
            classes = tuple(found["classes"])
            if not all(isinstance(name, str) for name in classes):
                raise TypeError("classes are not all text")
            model = ModelConfig(**found["model"])
            for name in ("image_size", "patch_size", "embed_dim", "depth", "num_heads"):
                if type(getattr(model, name)) is not int:
                    raise TypeError(f"model.{name} is not a whole number")
            return cls(
                classes,
                model,
                DatasetConfig(**{k: _tuple(v) for k, v in found["dataset"].items()}),
                Numerics(**found["numerics"]),
                found["checkpoint"],
                found.get("crops"),
            )
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise WeightsError(f"{source} was not written by an export: {error!r}") from error


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Weights:
    """A state dict as read from a file."""

    tensors: dict[str, Tensor]
    """The tensors by timm's names, on the CPU."""
    about: About | None
    """The contents of model.json; None for weights without one, such as timm's."""
    source: str
    """Name of the file, for messages."""


@dataclass(frozen=True)
class Fit:
    """Weights that fit a model of ours, and what was changed for that."""

    tensors: dict[str, Tensor]
    """State dict for `load_state_dict(strict=True)`: float32, on the CPU."""
    notes: list[str] = field(default_factory=list)
    """Lines for a person: what was loaded, resampled or initialised."""


def read(path: Path) -> Weights:
    """Read a safetensors file, or the one in the folder of an export or of a run.

    Raises:
        WeightsError: there is no such file, it is damaged, or of another kind.
    """
    file = _find(path)
    try:
        _refuse_pointer(file)
        tensors = load_file(file)
    except WeightsError:
        raise
    except Exception as error:  # damaged headers raise all kinds
        pickled = " It may be a pickle, which can run code and is never opened:"
        other = " If it has another format,"
        hint = pickled if file.suffix in (".pt", ".pth", ".bin", ".tar") else other
        raise WeightsError(
            f"{file} is not a safetensors file: {error}.{hint} save the model's state dict with"
            " safetensors.torch.save_file"
        ) from error
    about = file.with_name(ABOUT)
    try:
        found = json.loads(about.read_text()) if about.is_file() else None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{about} cannot be read: {error}") from error
    if found is None:
        return Weights(tensors, None, str(file))
    known = About.from_json(found, about)
    _check_sizes(known, tensors, about)
    return Weights(tensors, known, str(file))


def _refuse_pointer(file: Path) -> None:
    """Raise WeightsError for what Git LFS leaves in place of a file."""
    with file.open("rb") as opened:
        if opened.read(len(_LFS)) == _LFS:
            raise WeightsError(
                f"{file} is a Git LFS pointer, which stands for the weights: fetch them with"
                " `git lfs pull` in the repository, or download the file itself"
            )


def _check_sizes(about: About, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise WeightsError if no model of this shape can be that of the weights.

    This is checked before the model is built, since a shape of few bytes may take any memory.
    """
    config, again = (
        about.model,
        ("Export them again with the command of their training and the same --out"),
    )
    if _HEAD[1] in tensors and tensors[_HEAD[1]].shape != (len(about.classes),):
        raise WeightsError(
            f"{source} names {len(about.classes)} classes; the head of the weights beside it has a"
            f" bias of shape {tuple(tensors[_HEAD[1]].shape)}. {again}"
        )
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if config.depth != depth:
        raise WeightsError(
            f"{source} says depth {config.depth}; the weights beside it have {depth} blocks."
            f" {again}"
        )
    patches, positions = num_patches(config), tensors.get("pos_embed")
    rows = None if positions is None or positions.ndim != 3 else positions.shape[1]
    if rows is not None and rows not in (patches, patches + num_prefix_tokens(config)):
        raise WeightsError(
            f"{source} says image_size {config.image_size} and patch_size {config.patch_size}, so"
            f" {patches:,} patches; the weights beside it have {rows:,} positions. {again}"
        )


def _find(path: Path) -> Path:
    """Find the safetensors file at `path`, or in the folder of an export or of a run."""
    for file in (path, path / FILE, path / "export" / FILE):
        if file.is_file():
            return file
    missing = f"neither {FILE} nor export/{FILE} in it" if path.is_dir() else "no such file"
    raise WeightsError(
        f"weights {path}: {missing}; give the folder of a finished run, its export/, or a"
        " safetensors file with timm's names"
    )


def fit(weights: Weights, model: VisionTransformer, classes: Sequence[str] | None) -> Fit:
    """Make the state dict of `model` from weights of another image size, or with other classes.

    Positions of another grid are resampled; a head for other classes is replaced by the model's
    own. All other tensors must be there in the same shape, and no more.

    Args:
        weights: weights to adapt.
        model: model of the wanted shape; it is not changed.
        classes: names of the model's classes by output; None: only their number counts.

    Raises:
        WeightsError: keys are missing, unexpected or of another shape, or settings that no shape
            shows differ; one message lists them.
    """
    config, wanted = model.config, model.state_dict()
    if prefix := prefix_of(weights.tensors, wanted):
        raise WeightsError(strip(weights.tensors, weights.source, prefix, config))
    tensors, notes = dict(weights.tensors), []
    if note := _other_classes(weights, wanted, classes):
        tensors |= {name: wanted[name] for name in _HEAD}
        notes.append(f"the head is initialised: {note}")
    if "pos_embed" in tensors:
        given = tensors["pos_embed"]
        tensors["pos_embed"] = resample_positions(given, config)
        if tensors["pos_embed"] is not given:
            before, after = given.shape[1], tensors["pos_embed"].shape[1]
            notes.append(f"positions resampled, from {before} to {after}")
    if faults := _settings(weights.about, config) + _faults(tensors, wanted):
        flags = "" if weights.about is not None else implied(weights.tensors, config)
        said = [f"try {flags}; with the current flags:"] if flags else []
        lines = [f"{weights.source} does not fit the model that --model.* sets:", *said, *faults]
        raise WeightsError("\n  ".join(lines))
    kept = len(wanted) - (len(_HEAD) if note else 0)
    notes.insert(0, f"{kept} of {len(wanted)} tensors come from {weights.source}")
    return Fit({name: tensor.float() for name, tensor in tensors.items()}, notes)


def resample_positions(positions: Tensor, config: ModelConfig) -> Tensor:
    """Resample a position embedding to the model's grid, as timm's resample_abs_pos_embed.

    Only the grid is resampled: bicubic, antialiased, in float32. Positions of prefix tokens stay as
    they are; where the weights have none (timm's no_embed_class), they become zeros, which is
    equivalent.

    Args:
        positions: (1, prefix + n * n, D) or (1, n * n, D), row by row from the top left.
        config: shape of the model.

    Returns:
        (1, prefix + N, D) of the same dtype; or `positions`, if they have another form.
    """
    prefix, side = num_prefix_tokens(config), math.isqrt(num_patches(config))
    rows = positions.shape[1] if positions.ndim == 3 else 0
    if positions.shape != (1, rows, config.embed_dim) or not positions.is_floating_point():
        return positions
    given = prefix if is_square(rows - prefix) else 0
    if not is_square(rows - given):
        return positions
    head, grid = positions[:, :given], positions[:, given:]
    old = math.isqrt(rows - given)
    if old == side and given == prefix:
        return positions
    if old != side:
        square = grid.float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
        square = F.interpolate(square, size=(side, side), mode="bicubic", antialias=True)
        grid = square.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([F.pad(head, (0, 0, 0, prefix - given)), grid], dim=1)


def _other_classes(
    weights: Weights, wanted: Mapping[str, Tensor], classes: Sequence[str] | None
) -> str:
    """Say why the head of the weights does not fit; empty if it does."""
    if not all(name in weights.tensors for name in _HEAD):
        return "the weights have none"
    if weights.tensors[_HEAD[1]].ndim != 1:
        return ""  # a fault of its shape
    there, here = len(weights.tensors[_HEAD[1]]), len(wanted[_HEAD[1]])
    if there != here:
        return f"the weights have {there} classes, the model has {here}"
    names = None if weights.about is None else weights.about.classes
    if names is None or classes is None or tuple(classes) == names:
        return ""
    old, new = next(pair for pair in zip(names, classes, strict=True) if pair[0] != pair[1])
    return f"the classes of the weights have other names, such as {old} in place of {new}"


def _faults(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """List keys that are missing, of another shape or unexpected, the first few of each."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    odd = {name: tensor for name, tensor in tensors.items() if not tensor.is_floating_point()}
    kinds = (
        [f"{k}: missing, expected {v}" for k, v in expected.items() if k not in shapes],
        [f"{k}: {shapes[k]}, expected {v}" for k, v in expected.items() if shapes.get(k, v) != v],
        [f"{k}: {v}, not expected" for k, v in shapes.items() if k not in expected],
        [f"{k}: {x.dtype}, expected floating point" for k, x in odd.items() if k in expected],
    )
    return [line for lines in kinds for line in _first(lines)]


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - _LISTED
    shown = [line[:_LONGEST] for line in lines[:_LISTED]]
    return shown if more <= 0 else [*shown, f"... and {more} more like these"]


_STRUCTURE = (
    *("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "global_pool"),
    *("qk_norm", "qkv_bias", "reg_tokens", "stem"),
)


def _settings(about: About | None, config: ModelConfig) -> list[str]:
    """List settings that differ from those of the weights; no shape shows the number of heads."""
    if about is None:
        return []
    pairs = [(name, getattr(about.model, name), getattr(config, name)) for name in _STRUCTURE]
    scales = (about.model.init_values, config.init_values)
    if (scales[0] is None) != (scales[1] is None):
        pairs.append(("init_values", *scales))
    return [
        f"--model.{name.replace('_', '-')} is {new}; the weights have {old}"
        for name, old, new in pairs
        if old != new
    ]
