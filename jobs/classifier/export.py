"""The export of a run: its best weights in timm's names, and files that describe them.

`export/` holds `model.safetensors`; `model.json`, which Patchray's jobs read; `config.json`, from
which timm's `create_model("local-dir:...")` builds the model; and `README.md`, a model card as the
Hugging Face hub shows it. Uploaded to the hub unchanged, the folder loads by `hf-hub:`.
"""

from typing import Any

import yaml
from safetensors.torch import save
from torch import Tensor

from jobs.classifier.task import TrainConfig
from jobs.run.config import as_settings
from jobs.run.progress import clock
from jobs.storage.location import Location
from jobs.training.checkpoints import Checkpoints
from jobs.training.state import TrainingResult
from vit.config import ModelConfig
from vit.numerics import Numerics
from vit.weights import ABOUT, FILE, About


def export(
    config: TrainConfig, out: Location, result: TrainingResult, summary: dict[str, Any]
) -> None:
    """Publish the best weights of a finished run; nothing if no epoch was saved.

    Args:
        config: the settings of the run.
        out: the run's folder.
        result: how the training ended.
        summary: what summary.json holds.
    """
    checkpoints = Checkpoints(out / "checkpoints", token="export")
    name = checkpoints.best()
    if name is None:
        return
    saved = checkpoints.read(name)
    weights, facts = saved.average or saved.weights, result.state.facts
    sizes = dict(facts["data"])
    about = About(
        classes=tuple(sizes.pop("classes")),
        model=config.model,
        dataset=config.dataset,
        numerics=Numerics(**facts["numerics"]),
        checkpoint=name,
        crops=facts.get("crops"),
    )
    folder = out / "export"
    (folder / FILE).write_bytes(save(weights, {"format": "pt"}))
    (folder / ABOUT).write_json(about.to_json())
    if loads_in_timm(config.model):
        (folder / "config.json").write_json(timm_config(about))
    (folder / "README.md").write_text(card(config, about, weights, summary, sizes))


def loads_in_timm(model: ModelConfig) -> bool:
    """Return whether timm's VisionTransformer can load the weights."""
    return model.stem == "patch"


def timm_config(about: About) -> dict[str, Any]:
    """Return timm's config.json: how to build the model and how to prepare images."""
    model, data = about.model, about.dataset
    size = [3, model.image_size, model.image_size]
    return {
        "architecture": "vit_base_patch16_224",  # all of its numbers are set below
        "num_classes": len(about.classes),
        "num_features": model.embed_dim,
        "label_names": list(about.classes),
        "model_args": {
            "img_size": model.image_size,
            "patch_size": model.patch_size,
            "embed_dim": model.embed_dim,
            "depth": model.depth,
            "num_heads": model.num_heads,
            "mlp_ratio": model.mlp_ratio,
            "qkv_bias": model.qkv_bias,
            "qk_norm": model.qk_norm,
            "init_values": model.init_values,
            "reg_tokens": model.reg_tokens,
            "class_token": model.global_pool == "token",
            "global_pool": model.global_pool,
        },
        "pretrained_cfg": {
            "input_size": size,
            "fixed_input_size": True,
            "interpolation": "bilinear",
            # timm resizes to floor(image_size / crop_pct): a little above the stored size.
            "crop_pct": model.image_size / ((data.store_size or model.image_size) + 1e-3),
            "mean": list(data.mean),
            "std": list(data.std),
            "num_classes": len(about.classes),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


_TIMM = """\
Load the weights in timm, with the folder's path after `local-dir:`:

```python
import timm, torch

model = timm.create_model("local-dir:export", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg))
logits = model(torch.zeros(1, 3, {size}, {size}))
```
"""
_OWN = """\
**Plain timm cannot load these weights**: the stem is a stack of convolutions, which timm's
VisionTransformer does not have. All other names are timm's. In a checkout of Patchray:

```python
import pathlib, torch
from vit import classifier, weights

found = weights.read(pathlib.Path("export"))
about, device = found.about, torch.device("cpu")
model = classifier.load(found, about.model, about.dataset, about.numerics, device).model
logits = model(torch.zeros(1, 3, {size}, {size}))
```
"""
_CARD = """\
---
{head}---

# Vision Transformer for {count} classes, trained on {data}

{millions:.2f} million parameters, {depth} blocks of width {width}, images of {size} x {size} \
pixels in patches of {patch}. Trained by Patchray{average}.

## Use

{use}
Resize the shorter side of an image to {stored} pixels and crop its centre to {size} x {size}.
Divide pixels by 255, then normalise with mean {mean} and standard deviation {std} (RGB).
`model.json` holds these values and the names of the classes.

## Figures

| figure | value |
| --- | --- |
{figures}

The best epoch was chosen by the validation set; the test set was read once, at the end. The
figures were measured in {numerics}.

## Data

{data}: {sizes} images. Classes: {classes}.

## Recipe

```yaml
{recipe}```

## Hardware and versions

{workers} on {hardware}. {versions}.

## Licence

`unknown`: whoever trained these weights chooses their licence. The licence of the images may
restrict that choice; set `license` in the head of this card before you publish it. The code that
trained them, Patchray, is under Apache-2.0.
"""


def card(
    config: TrainConfig,
    about: About,
    weights: dict[str, Tensor],
    summary: dict[str, Any],
    sizes: dict[str, int],
) -> str:
    """Return the model card, in Markdown, without paths of the machine that trained."""
    model, data = config.model, config.dataset
    timm = loads_in_timm(model)
    shown, more = about.classes[:20], len(about.classes) - 20
    halved = f"; the average of its weights (half-life {config.optim.ema_half_life:,.0f} samples)"
    facts = summary["hardware"]
    machine = f"{', '.join(facts['gpus']) or facts['cpu']}, {facts['memory_gb']} GB of memory"
    nodes, workers = summary["nodes"], summary["workers"]
    return _CARD.format(
        head=yaml.safe_dump(_head(config, summary, timm), sort_keys=False),
        count=len(about.classes),
        data=data.name,
        millions=sum(tensor.numel() for tensor in weights.values()) / 1e6,
        depth=model.depth,
        width=model.embed_dim,
        size=model.image_size,
        patch=model.patch_size,
        average=halved if config.optim.ema_half_life else "",
        use=(_TIMM if timm else _OWN).format(size=model.image_size),
        stored=data.store_size or model.image_size,
        mean=list(data.mean),
        std=list(data.std),
        figures=_figures(summary),
        numerics=about.numerics,
        sizes=", ".join(f"{size:,} {name}" for name, size in sizes.items()),
        classes=", ".join(shown) + (f" and {more} more" if more > 0 else ""),
        recipe=yaml.safe_dump(_recipe(config), sort_keys=False),
        workers=f"{workers} worker{'s' * (workers > 1)}, {nodes} node{'s' * (nodes > 1)},",
        hardware=machine,
        versions=", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    )


def _head(config: TrainConfig, summary: dict[str, Any], timm: bool) -> dict[str, Any]:
    """Return the card's YAML head, in the terms of the Hugging Face hub."""
    split = "validation" if summary["test_accuracy"] is None else "test"
    accuracy = summary["val_accuracy" if split == "validation" else "test_accuracy"]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": config.dataset.name, "type": config.dataset.name, "split": split},
        "metrics": [{"type": "accuracy", "value": accuracy}],
    }
    return {
        "license": "unknown",
        "library_name": "timm" if timm else "patchray",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "vision-transformer", "patchray"],
        "metrics": ["accuracy"],
        "model-index": [{"name": f"vit-{config.dataset.name}", "results": [result]}],
    }


def _figures(summary: dict[str, Any]) -> str:
    """Return the rows of the card's table of figures."""
    test = summary["test_accuracy"]
    rows = {
        "test accuracy": "no test set" if test is None else f"{test:.2%}",
        "validation accuracy": f"{summary['val_accuracy']:.2%}",
        **_track_figures(summary),
        "best epoch": f"{summary['best_epoch']} of {summary['epochs']}",
        "samples seen": f"{summary['samples_seen']:,}",
        "training": f"{clock(summary['train_s'])}, {summary['images_per_s']:,.0f} images/s",
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _track_figures(summary: dict[str, Any]) -> dict[str, str]:
    """Return the accuracy of tracks, by votes over their images, where the data have tracks."""
    return {
        f"{name} accuracy of tracks": f"{summary[f'{split}_track_accuracy']:.2%}"
        for name, split in (("test", "test"), ("validation", "val"))
        if summary.get(f"{split}_track_accuracy") is not None
    }


_PLACES = ("out", "config", "data", "init_weights")
"""Settings that hold paths of the machine that trained."""


def _recipe(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that `--config` reads, without paths."""
    return {name: value for name, value in as_settings(config).items() if name not in _PLACES}
