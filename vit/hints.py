"""What to do about weights that do not fit a model: flags, and prefixes of their names."""

import math
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from vit.config import ModelConfig

_INIT_VALUES = 1e-5
"""timm's initial value of LayerScale in DINOv2; weights that are loaded replace it."""
_TIMM_HEAD = 64
"""Channels of an attention head in nearly all of timm's Vision Transformers."""
_WRAPPERS = {
    "module": "torch's DataParallel and DistributedDataParallel",
    "_orig_mod": "torch.compile",
    "model": "trainings that keep the network in a field `model`",
    "backbone": "detectors and segmenters, of which it is a part",
}
"""What writes a prefix before the names of a network."""


def prefix_of(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Return what stands before the names of the model in those of the weights, or ""."""
    found: Counter[str] = Counter()
    for name in tensors:
        starts = [place + 1 for place, sign in enumerate(name) if sign == "."]
        found.update(name[:start] for start in [0, *starts] if name[start:] in wanted)
    prefix, count = found.most_common(1)[0] if found else ("", 0)
    return prefix if 2 * count >= min(len(wanted), len(tensors)) else ""


def strip(tensors: Mapping[str, Tensor], source: str, prefix: str, config: ModelConfig) -> str:
    """Return how to take a prefix off the names of weights, and what else they need.

    Args:
        tensors: the weights by their names.
        source: name of their file.
        prefix: as `prefix_of` returns it.
        config: shape of the model that they are for.
    """
    names = [name for name in tensors if name.startswith(prefix)]
    stripped = {name.removeprefix(prefix): tensors[name] for name in names}
    writer = _WRAPPERS.get(prefix.split(".")[0])
    lines = [
        f"{source}: {len(names)} of its {len(tensors)} names begin with {prefix!r}"
        + (f", as in weights of {writer}" if writer else "")
        + f"; expected names such as {next(iter(stripped))}. Write a file without that:",
        "from safetensors.torch import load_file, save_file",
        f"weights = load_file({source!r})",
        f"save_file({{name.removeprefix({prefix!r}): x for name, x in weights.items()"
        f" if name.startswith({prefix!r})}}, 'weights.safetensors')",
    ]
    flags = implied(stripped, config)
    return "\n  ".join([*lines, f"and set {flags}"] if flags else lines)


def implied(tensors: Mapping[str, Tensor], config: ModelConfig) -> str:
    """Suggest flags for weights without a model.json, from their names and shapes; "": none."""
    try:
        width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
        hidden, _ = tensors["blocks.0.mlp.fc1.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        rows = tensors["pos_embed"].shape[1]
        registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
        mlp_ratio = hidden / width
    except (KeyError, ValueError, IndexError, ZeroDivisionError):  # another kind of network
        return ""
    prefix = registers + ("cls_token" in tensors)  # timm's no_embed_class has no positions of them
    grid = math.isqrt(rows - prefix if is_square(rows - prefix) else rows)
    has = {
        "image_size": grid * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": config.num_heads if width == config.embed_dim else max(1, width // _TIMM_HEAD),
        "mlp_ratio": mlp_ratio,
        "global_pool": "token" if "cls_token" in tensors else "avg",
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "init_values": _layer_scale("blocks.0.ls1.gamma" in tensors, config),
        "reg_tokens": registers,
    }
    flags = [_flag(name, value) for name, value in has.items() if value != getattr(config, name)]
    heads = f"shapes do not show the number of heads; most of timm's have {_TIMM_HEAD} channels"
    return f"{' '.join(flags)} ({heads})" if flags else ""


def _layer_scale(has_it: bool, config: ModelConfig) -> float | None:
    """Return init_values for weights with or without LayerScale, whose values replace it."""
    return (config.init_values or _INIT_VALUES) if has_it else None


def _flag(name: str, value: object) -> str:
    flag = f"--model.{name.replace('_', '-')}"
    if isinstance(value, bool):
        return flag if value else flag.replace("--model.", "--model.no-")
    return f"{flag} {value:g}" if isinstance(value, float) else f"{flag} {value}"


def is_square(number: int) -> bool:
    """Return whether a number of positions can be a square grid."""
    return number > 0 and math.isqrt(number) ** 2 == number
