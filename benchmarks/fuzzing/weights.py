"""Weights of segmenters and classifiers, odd and damaged, as `--weights` reads them."""

import json
import warnings
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.mutation import damaged, odd, replaced
from jobs.weights.files import fingerprint
from masking.segmenter import sam
from masking.segmenter import weights as segmenters
from masking.segmenter.mini import Mini
from tests.masking.segmenter.networks import small_sam
from vit import classifier, weights
from vit.config import DatasetConfig, ModelConfig
from vit.model import build
from vit.numerics import Numerics

REFUSALS = (sam.SegmenterWeightsError, weights.WeightsError)
_CPU = torch.device("cpu")
_CONFIG = ModelConfig(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2)
_NUMERICS = Numerics("float32", fused_attention=True, channels_last=False)
_DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64)


def attempt(random: Random, folder: Path) -> object:
    """Give a reader a file of weights."""
    warnings.simplefilter("ignore")
    kind = random.choice(["sam", "mini", "vit", "vit"])
    state = dict(_state(kind))
    for _ in range(random.choice([0, 0, 1, 1, 2, 5])):
        _change(random, state, kind)
    if kind == "vit":
        return _classifier(random, folder, state)
    file = folder / random.choice(["x.pth", "x.pth", "x.safetensors"])
    _save(random, file, state, {"architecture": kind})
    tensors, metadata = segmenters.read(file)
    fingerprint(json.dumps(sorted(metadata.items())), tensors, shapes=True)
    return sam.load(file, _CPU).network


@cache
def _state(kind: str) -> dict[str, Tensor]:
    if kind == "vit":
        return build(_CONFIG, 3, seed=0).state_dict()
    network = Mini() if kind == "mini" else small_sam()
    return {name: x.detach() for name, x in network.state_dict().items()}


def _classifier(random: Random, folder: Path, state: dict[Any, Any]) -> object:
    _save(random, folder / weights.FILE, state, {})
    about: Any = weights.About(("a", "b", "c"), _CONFIG, DatasetConfig(), _NUMERICS, "x").to_json()
    if random.random() < 0.5:
        about = replaced(random, about, odd)
    text = json.dumps(about).encode(errors="surrogatepass")
    if random.random() < 0.9:
        (folder / weights.ABOUT).write_bytes(
            damaged(random, text) if random.random() < 0.1 else text
        )
    found = weights.read(folder)
    known = found.about
    if known is None:
        return weights.fit(found, build(_CONFIG, 3, seed=0), None)
    fingerprint("", found.tensors, shapes=False)
    return classifier.load(found, known.model, known.dataset, known.numerics, _CPU)


def _change(random: Random, state: dict[Any, Any], kind: str) -> None:
    """Change names, shapes or kinds of some tensors, as other tools and attackers do."""
    name, what = random.choice(list(state)), random.randrange(9)
    if what == 0:
        del state[name]
    elif what == 1:
        state[random.choice(["extra", "", "a" * 1000, "blocks.x.y", "é\n", 7, None])] = torch.ones(
            2
        )
    elif what == 2:
        prefix = random.choice(["module.", "model.", "backbone.", "_orig_mod.", "a.b."])
        for each in list(state):
            state[f"{prefix}{each}"] = state.pop(each)
    elif what == 3:
        state[name] = torch.zeros(
            random.choice([(), (0,), (1,), (5, 5), (1, 17, 16), (2, 3, 4, 5)])
        )
    elif what == 4:
        state[name] = torch.zeros(1).expand(random.choice([10, 3 << 30]))
    elif what == 5:
        state[name] = random.choice(_KINDS)()
    elif what == 6:
        kind_of = random.choice(_DTYPES)
        state[name] = torch.zeros(3).to(kind_of)
    elif what == 7:
        state[name] = random.choice([None, 3, "x", [1], {"a": 1}, b"x"])
    else:
        state[name] = state[random.choice(list(state))]


_KINDS = (
    lambda: torch.eye(3).to_sparse(),
    lambda: torch.eye(3).to_sparse_csr(),
    lambda: torch.zeros(3, device="meta"),
    lambda: torch.zeros(3, dtype=torch.complex64).conj(),
    lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    lambda: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8),
    lambda: torch.nn.Parameter(torch.zeros(3)),
)


def _save(random: Random, file: Path, state: dict[Any, Any], metadata: dict[str, str]) -> None:
    """Write a state in the format of the file's name, and damage it now and then."""
    if file.suffix == ".safetensors":
        plain = {
            str(name): x.clone().contiguous()
            for name, x in state.items()
            if isinstance(x, Tensor) and x.layout == torch.strided and x.device.type == "cpu"
            and not (x.is_nested or x.is_quantized or x.is_conj()) and x.numel() < 1 << 20
        }  # fmt: skip
        save_file(plain, file, metadata)
    else:
        whole: Any = random.choice([state, state, state, state, {"model": state}, [state], "x"])
        torch.save(whole, file, _use_new_zipfile_serialization=random.random() < 0.8)
    if random.random() < 0.2:
        file.write_bytes(damaged(random, file.read_bytes()))
    if random.random() < 0.02:
        file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n")
