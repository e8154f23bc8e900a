"""What a segmenter training publishes: its weights, and a card that says what they are."""

from typing import Any

import yaml
from safetensors.torch import save
from torch import Tensor

from jobs.run.config import as_settings
from jobs.run.progress import clock
from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.network import architecture, bare, named
from jobs.storage.location import Location
from jobs.training.checkpoints import Checkpoints

_CARD = """\
---
license: unknown
library_name: patchray
pipeline_tag: mask-generation
---

# A promptable segmenter, fitted by Patchray

`{architecture}`, {millions:.2f} million parameters, from `{start}`: {samples:,} images seen in
{time}, {workers} on {hardware}.

| mean IoU after 1 click | 3 clicks | 5 clicks | clicks to IoU 0.85 |
| --- | --- | --- | --- |
| {miou_1:.3f} | {miou_3:.3f} | {miou_5:.3f} | {clicks_to_85:.2f} |

on images held back from the data, clicks simulated. Use: `--weights` of `jobs.mask`,
`jobs.click` or `jobs.prompt` with the folder of this file.

## Recipe

```yaml
{recipe}```

## Licence

`unknown`: these weights are for whoever trained them to license. The licence of the images and of
the weights they started from may bind them.
"""


_PLACES = ("out", "config", "data", "val")
"""Settings that name places on the machine that trained."""


def export(config: FinetuneConfig, out: Location, summary: dict[str, Any]) -> None:
    """Publish the best weights in `export/`, with a model card."""
    checkpoints = Checkpoints(out / "checkpoints", token="export")
    name = checkpoints.best()
    if name is None:
        return
    saved = checkpoints.read(name)
    weights = bare(saved.average or saved.weights)
    kind = architecture(weights)
    if kind == "mini":  # half the size; what is lost is far below what a step changes
        weights = {key: tensor.half() for key, tensor in weights.items()}
    folder = out / "export"
    content = save(weights, {"format": "pt", "architecture": kind})
    (folder / "model.safetensors").write_bytes(content)
    (folder / "README.md").write_text(card(config, kind, weights, summary))


def card(
    config: FinetuneConfig, kind: str, weights: dict[str, Tensor], summary: dict[str, Any]
) -> str:
    """The model card, in Markdown; it names no path of the machine that trained."""
    places = {*_PLACES, *(() if named(config.init_weights) else ("init_weights",))}
    recipe = {name: value for name, value in as_settings(config).items() if name not in places}
    machine, count = summary["hardware"], summary["workers"]
    return _CARD.format(
        architecture=kind,
        millions=sum(tensor.numel() for tensor in weights.values()) / 1e6,
        start=config.init_weights if named(config.init_weights) else "earlier weights",
        samples=summary["samples_seen"],
        time=clock(summary["train_s"]),
        workers=f"{count} worker{'s' * (count > 1)}",
        hardware=", ".join(machine["gpus"]) or machine["cpu"],
        recipe=yaml.safe_dump(recipe, sort_keys=False),
        **{name: summary[name] for name in ("miou_1", "miou_3", "miou_5", "clicks_to_85")},
    )
