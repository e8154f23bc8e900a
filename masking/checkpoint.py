"""Weights of segmenters from a file, read without running code; the architecture by the shapes."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError, safe_open
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import Tensor, nn

FILE = "model.safetensors"
"""The file in the folder of an export, and under export/ in the folder of a run."""
PATCH = 16
"""Pixels along a patch of SAM's encoder."""
TOKEN_HEADS = 8
"""Heads of the attention in SAM's decoder: with `PATCH` all that shows in no shape."""
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
        _refuse(file, f"is not a checkpoint of {name}", found)
    module.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)


def _refuse(file: Path, why: str, faults: Sequence[str]) -> NoReturn:
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


def build(tensors: Mapping[str, Tensor], file: Path) -> Sam:
    """A `Sam` of whatever size the tensors have, with them as its weights; in evaluation mode.

    Raises:
        CheckpointError: names or shapes are not those of a SAM with a ViT; `file` is named.
    """
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    try:
        with torch.device("meta"):  # no time for weights that are replaced
            sam = Sam(_encoder(tensors), *_decoder(tensors), mean, std)
    except KeyError as error:
        some = f"it has {', '.join(sorted(tensors)[:LISTED])} ..." if tensors else "it is empty"
        _refuse(file, "is not a checkpoint of SAM", [f"{error.args[0]} is missing; {some}"])
    except (ValueError, AssertionError, ZeroDivisionError, IndexError) as error:
        _refuse(file, "is not a checkpoint of SAM", [f"its shapes do not fit: {error}"])
    fill(sam, tensors, file, "SAM")
    sam.pixel_mean, sam.pixel_std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))
    return sam.eval()


def _encoder(tensors: Mapping[str, Tensor]) -> ImageEncoderViT:
    """The encoder that the shapes speak of, without weights."""
    prefix = "image_encoder."
    width = tensors[prefix + "patch_embed.proj.weight"].shape[0]
    grid = tensors[prefix + "pos_embed"].shape[1]
    tables = [
        tensors[f"{prefix}blocks.{i}.attn.rel_pos_h"]
        for i in range(_count(tensors, prefix + "blocks."))
    ]
    sides = [(len(table) + 1) // 2 for table in tables]  # of what each block attends over
    return ImageEncoderViT(
        img_size=PATCH * grid,
        patch_size=PATCH,
        embed_dim=width,
        depth=len(tables),
        num_heads=width // tables[0].shape[1],
        mlp_ratio=len(tensors[prefix + "blocks.0.mlp.lin1.bias"]) / width,
        out_chans=len(tensors[prefix + "neck.0.weight"]),
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=min(sides),
        global_attn_indexes=tuple(i for i, side in enumerate(sides) if side == grid),
    )


def _decoder(tensors: Mapping[str, Tensor]) -> tuple[PromptEncoder, MaskDecoder]:
    """What makes masks of embeddings, as the shapes say, without weights."""
    prefix = "mask_decoder."
    grid = tensors["image_encoder.pos_embed"].shape[1]
    outputs, width = tensors[prefix + "mask_tokens.weight"].shape
    prompts = PromptEncoder(
        embed_dim=width,
        image_embedding_size=(grid, grid),
        input_image_size=(PATCH * grid, PATCH * grid),
        mask_in_chans=len(tensors["prompt_encoder.mask_downscaling.3.weight"]),
    )
    transformer = TwoWayTransformer(
        depth=_count(tensors, prefix + "transformer.layers."),
        embedding_dim=width,
        num_heads=TOKEN_HEADS,
        mlp_dim=len(tensors[prefix + "transformer.layers.0.mlp.lin1.bias"]),
    )
    decoder = MaskDecoder(
        transformer_dim=width,
        transformer=transformer,
        num_multimask_outputs=outputs - 1,
        iou_head_depth=_count(tensors, prefix + "iou_prediction_head.layers."),
        iou_head_hidden_dim=len(tensors[prefix + "iou_prediction_head.layers.0.bias"]),
    )
    return prompts, decoder


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules the names begin with `prefix`."""
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})
