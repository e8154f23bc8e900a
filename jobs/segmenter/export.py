"""The export of a segmenter training: its best weights, and a model card."""

from typing import Any

import yaml
from safetensors.torch import save
from torch import Tensor

from jobs.run.config import as_settings
from jobs.run.progress import clock
from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.network import architecture, exported_names, is_name
from jobs.storage.location import Location
from jobs.training.checkpoints import Checkpoints

_CARD = """\
---
license: unknown
library_name: patchray
pipeline_tag: mask-generation
---

# A promptable segmenter, trained by Patchray

`{architecture}`, {millions:.2f} million parameters, from `{start}`: {samples:,} images seen in
{time}, {workers} on {hardware}.

{figures}

{measured} To use the weights, give the folder of this file as `--weights` of `jobs.mask`,
`jobs.click` or `jobs.prompt`.

## Recipe

```yaml
{recipe}```

## Licence

`unknown`: whoever trained these weights chooses their licence. The licences of the images, and of
the weights they started from, may restrict that choice.
"""


_TITLES = {
    "miou_1": "mean IoU after 1 click",
    "miou_3": "3 clicks",
    "miou_5": "5 clicks",
    "clicks_to_85": "clicks to IoU 0.85",
    "iou": "mean IoU through videos, one click on the first frame",
}
_MEASURED = {
    False: "Measured with simulated clicks on images that were held back from the data.",
    True: "Measured with simulated clicks on videos that were held back from --clips.",
}
_PLACES = ("out", "config", "data", "val", "clips")
"""Settings that hold paths of the machine that trained."""


def export(config: FinetuneConfig, out: Location, summary: dict[str, Any]) -> None:
    """Publish the best weights in `export/`, with a model card; nothing if no epoch was saved."""
    checkpoints = Checkpoints(out / "checkpoints", token="export")
    name = checkpoints.best()
    if name is None:
        return
    saved = checkpoints.read(name)
    weights = exported_names(saved.average or saved.weights)
    kind = architecture(weights)
    if kind == "mini":  # half the size; rounding changes less than a training step
        weights = {key: tensor.half() for key, tensor in weights.items()}
    folder = out / "export"
    content = save(weights, {"format": "pt", "architecture": kind})
    (folder / "model.safetensors").write_bytes(content)
    (folder / "README.md").write_text(card(config, kind, weights, summary))


def card(
    config: FinetuneConfig, kind: str, weights: dict[str, Tensor], summary: dict[str, Any]
) -> str:
    """Return the model card, in Markdown, without paths of the machine that trained."""
    places = {*_PLACES, *(() if is_name(config.init_weights) else ("init_weights",))}
    recipe = {name: value for name, value in as_settings(config).items() if name not in places}
    machine, count = summary["hardware"], summary["workers"]
    table = (
        [_TITLES[name] for name in config.figures],
        ["---"] * len(config.figures),
        [f"{summary[name]:.3f}" for name in config.figures],
    )
    return _CARD.format(
        architecture=kind,
        millions=sum(tensor.numel() for tensor in weights.values()) / 1e6,
        start=config.init_weights if is_name(config.init_weights) else "earlier weights",
        samples=summary["samples_seen"],
        time=clock(summary["train_s"]),
        workers=f"{count} worker{'s' * (count > 1)}",
        hardware=", ".join(machine["gpus"]) or machine["cpu"],
        recipe=yaml.safe_dump(recipe, sort_keys=False),
        figures="\n".join(f"| {' | '.join(cells)} |" for cells in table),
        measured=_MEASURED[bool(config.clips)],
    )
