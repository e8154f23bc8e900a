"""Weights of any segmenter, found and loaded: SAM and `mini`, and models with a memory.

A model with a memory is a folder as transformers saves it (config.json beside model.safetensors, in
one file or in several), one of its files, or a checkpoint (.pt) of SAM 2.1 as Meta publishes it.
transformers is imported only for these: it takes seconds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masking.sam2 import meta
from masking.sam2.published import PUBLISHED, download, suggestion
from masking.segmenter import sam
from masking.segmenter import weights as checkpoint
from masking.segmenter.network import Precision, resolve
from masking.segmenter.weights import LISTED, SegmenterWeightsError, refuse

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
"""Names of the files in the folder of a network as transformers saves it."""
KINDS = ("sam2_video", "edgetam_video", "sam3_tracker_video")
"""Networks with a memory, as `model_type` in config.json names them."""
_LARGEST_JSON = 64 << 20
"""Bytes of config.json or of an index beyond which it is not read."""
_TRACKER = "tracker_model."
_PARTS = {
    "tracker_neck.": "vision_encoder.neck.",
    "detector_model.vision_encoder.backbone.": "vision_encoder.backbone.",
}
"""Prefixes of SAM 3's names: `_TRACKER` is before those of its tracker, and before those of all
weights if transformers saved the tracker alone; the encoder's parts have names of their own."""


@dataclass(frozen=True)
class Contents:
    """Weights that were read."""

    file: Path
    """The file, or one of the files, for messages."""
    tensors: dict[str, Tensor]
    """The weights by name."""
    metadata: dict[str, str]
    """What a safetensors file says beside its weights; of a network with a memory, its config."""
    config: dict[str, Any] | None
    """Content of config.json of a network with a memory; None: SAM or `mini`."""


def load(
    path: Path, device: torch.device, precision: Precision = "auto", *, compile: bool = False
) -> sam.Segmenter:
    """Load a segmenter of any kind.

    Args:
        path: what `masking.segmenter.sam.load` takes, or a model with a memory: a folder with
            config.json and model.safetensors, a file of it, or a .pt of Meta's SAM 2.1.
        device: where frames are encoded and prompts decoded.
        precision: as in `masking.segmenter.sam.Segmenter`.
        compile: as in `masking.segmenter.sam.Segmenter`.

    Raises:
        SegmenterWeightsError: There are no weights, a file is damaged, or the weights are of
            another architecture.
    """
    contents = read(path)
    network: Any
    if contents.config is None:
        architecture = contents.metadata.get("architecture", "sam")
        network = sam.build(contents.tensors, architecture, contents.file)
    else:
        from masking.sam2.build import build  # here: it imports transformers

        # Copies lie at aligned addresses, whatever file they are from; elsewhere kernels may round
        # otherwise.
        tensors = {name: tensor.clone() for name, tensor in contents.tensors.items()}
        network = build(contents.config, tensors, contents.file)
    if resolve(precision, device) == "bfloat16":
        network.lower()
    metadata = contents.metadata
    return sam.Segmenter(network, device, precision, compile=compile, metadata=metadata)


def check(path: Path) -> None:
    """Check that weights of a network with a memory fit their config, without computing anything.

    Raises:
        SegmenterWeightsError: as for `load`. Weights of SAM and of `mini` are only read.
    """
    contents = read(path)
    if contents.config is not None:
        from masking.sam2.build import build, refuse_sizes

        with torch.device("meta"):  # no time for weights that are replaced
            network = build(contents.config, contents.tensors, contents.file)
            refuse_sizes(network.to("meta"), contents.file)


def local(weights: str | Path) -> Path:
    """Return the path of weights, which are downloaded if they have a name of `PUBLISHED`.

    Raises:
        SegmenterWeightsError: there is nothing at the path, or the download fails.
    """
    text = str(weights)
    if text in PUBLISHED:
        return download(text)
    if not Path(text).exists() and (hint := suggestion(text, PUBLISHED)):
        raise SegmenterWeightsError(f"weights {text}: no such file or folder{hint}")
    return Path(text)


def read(path: Path) -> Contents:
    """Read weights of any kind and find out of which, without running code in them.

    Raises:
        SegmenterWeightsError: as for `load`, except for weights that do not fit their architecture.
    """
    config = _config(path)
    if config is not None:
        return _transformers(path if path.is_dir() else path.parent, config)
    file = checkpoint.find(path)
    tensors, metadata = checkpoint.read(file)
    if meta.is_meta(tensors):
        config, tensors = meta.converted(tensors, file)
        return Contents(file, tensors, _noted(config), config)
    if any(name.startswith(("memory_attention.", _TRACKER)) for name in tensors):
        refuse(file, "has weights of a model with a memory, as transformers saves it", [
            f"{CONFIG} is missing beside it; bring that, too"
        ])  # fmt: skip
    return Contents(file, tensors, metadata, None)


def _config(path: Path) -> dict[str, Any] | None:
    """Return the config of the network with a memory that `path` means; None for another one."""
    folder = path if path.is_dir() else path.parent
    if path.is_file() and not path.name.startswith("model") and path.name != CONFIG:
        return None
    file = folder / CONFIG
    if not file.is_file() or (path.is_file() and path.suffix not in (".safetensors", ".json")):
        return None
    content = _json(file)
    found = _of_kind(content)
    kind = content.get("model_type")
    if found is None and isinstance(kind, str) and kind.startswith(("sam", "edgetam")):
        refuse(file, f"is of the model {kind!r}, which follows nothing through a video", [
            f"expected one of {', '.join(KINDS)}, or sam3_video"
        ])  # fmt: skip
    return found


def _of_kind(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the config of one of `KINDS`: the content itself, or a part of it, as SAM 3 has it."""
    for part in (content, *content.values()):
        if isinstance(part, dict) and part.get("model_type") in KINDS:
            return dict(part)
    return None


def _json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a folder of transformers."""
    try:
        if file.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"it has {file.stat().st_size:,} bytes")
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise SegmenterWeightsError(
            f"{file} cannot be read: {error}; expected a JSON object as transformers writes it."
            " Fetch it again"
        ) from error
    return content


def _transformers(folder: Path, config: dict[str, Any]) -> Contents:
    """Read the weights of a folder of transformers, from one file or from several."""
    one, index = folder / checkpoint.FILE, folder / INDEX
    if one.is_file():
        tensors, _ = checkpoint.read(one)
    elif index.is_file():
        tensors = {}
        for file in _shards(index):
            tensors |= checkpoint.read(file)[0]
    else:
        raise SegmenterWeightsError(
            f"weights {folder}: there is {CONFIG}, but neither {checkpoint.FILE} nor {INDEX} beside"
            " it; bring the weights, too"
        )
    tensors = _tracker(tensors)
    _shared(tensors)
    return Contents(one if one.is_file() else index, tensors, _noted(config), config)


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names, all of which exist."""
    names = _json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        refuse(index, "is no index of weights", ["weight_map, a file for each name, is missing"])
    files = [index.parent / Path(name).name for name in sorted(set(names.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - LISTED:,} more" if len(missing) > LISTED else ""
        refuse(
            index, "names files that are missing beside it", [", ".join(missing[:LISTED]) + more]
        )
    return files


def _tracker(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the tracker among those of SAM 3; all weights of another network."""
    if not any(name.startswith(_TRACKER) for name in tensors):
        return tensors
    found = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(_TRACKER)
        for part, to in _PARTS.items():
            short = to + short.removeprefix(part) if short.startswith(part) else short
        if short != name:  # the others are the detector's
            found[short] = tensor
    return found


def _shared(tensors: dict[str, Tensor]) -> None:
    """Add the name under which a weight that two modules share was not saved."""
    names = (
        "prompt_encoder.shared_embedding.positional_embedding",
        "shared_image_embedding.positional_embedding",
    )
    for name, other in (names, names[::-1]):
        if name in tensors:
            tensors.setdefault(other, tensors[name])


def _noted(config: Mapping[str, Any]) -> dict[str, str]:
    """Return metadata with all of a config that the masks depend on."""
    return {"config": json.dumps(config, sort_keys=True)}
