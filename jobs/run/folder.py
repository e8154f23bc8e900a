"""The run folder: config, versions, hardware, metrics.csv, TensorBoard events, curves, summary.

metrics.csv and the events are views of the history that a checkpoint holds: written anew from it,
they never disagree with the checkpoint that a restart goes on from.
"""

import csv
import importlib.metadata
import io
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from jobs.run.config import ConfigError, as_yaml, changed, parse_yaml
from jobs.storage.location import Location

PACKAGES = ("patchray", "ray", "torch", "torchvision", "numpy", "pandas", "pyarrow", "safetensors")


_BEGUN = {
    "checkpoints": "a training",
    "trials": "a sweep",
    "predictions": "predictions",
    "commits": "masks of videos",
}
"""What jobs have in their `--out` once there is something to go on from."""


def check_same(out: Location, config: object, began: str = "checkpoints") -> None:
    """Check that `config` may go on with the run in `out`, if it has got anywhere.

    Args:
        out: folder of the run.
        config: of this start.
        began: the folder in `out` that is not empty once there is something to go on from.

    Raises ConfigError, one line a field, when the run there was started with settings that differ
    in what must not change, or is one of another job.
    """
    path = out / "config.yaml"
    for folder, what in _BEGUN.items():
        if folder != began and (out / folder).list():
            raise ConfigError(f"{out} holds {what}; give another --out")
    if path.exists() and (out / began).list():
        lines = changed(parse_yaml(path.read_text(), str(path)), config)
        if lines:
            listing = "\n  ".join(lines)
            raise ConfigError(
                f"{out} holds a run with other settings:\n  {listing}\n"
                "Give the same settings to go on with it, or another --out to start anew."
            )


def describe(out: Location, config: object) -> None:
    """Write what this start runs with: config.yaml and versions.json."""
    (out / "config.yaml").write_text(as_yaml(config))
    (out / "versions.json").write_json(versions())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results hang on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout: no metadata
            continue
    return found


def hardware() -> dict[str, Any]:
    """What this machine is: CPU, cores, memory, GPUs, threads of torch."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        "torch_threads": torch.get_num_threads(),
        "instructions": _instructions(),
    }


def _instructions() -> str:
    """What torch computes with here: the vectors, and whether bfloat16 and tiles are multiplied."""
    more = {"BF16": torch.cpu._is_avx512_bf16_supported, "AMX": torch.cpu._is_amx_tile_supported}
    found = [name for name, has in more.items() if has()]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *found])


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_metrics(out: Location, history: list[dict[str, Any]]) -> None:
    """Publish metrics.csv, once there is a row: one an epoch, columns as they first appear."""
    if not history:
        return
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    (out / "metrics.csv").write_text(text.getvalue())


class Events:
    """TensorBoard events of a run, in one file a start that holds the whole history."""

    def __init__(self, folder: Location) -> None:
        """Nothing is written before the first `write`."""
        self._folder = folder
        self._writer: Any = None
        self._written = 0

    def write(self, history: list[dict[str, Any]]) -> None:
        """Add the rows that are not written yet; an object storage gets the file anew."""
        if self._writer is None:
            self._folder.delete()
            local = self._folder.local_path or Path(tempfile.mkdtemp(prefix="patchray-events-"))
            from torch.utils.tensorboard import SummaryWriter  # here: half a second of import

            self._writer = SummaryWriter(str(local))
        for row in history[self._written :]:
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    self._writer.add_scalar(_tag(name), value, row["step"])
        self._written = len(history)
        self._writer.flush()
        if self._folder.local_path is None:
            for path in Path(self._writer.log_dir).iterdir():
                (self._folder / path.name).write_bytes(path.read_bytes())


def _tag(name: str) -> str:
    """`val_loss` becomes `loss/val`: curves of the same kind share a chart."""
    part, _, kind = name.partition("_")
    return f"{kind}/{part}" if part in ("train", "val", "ema") else name


_CURVES = {
    "train": "training (augmented)",
    "val": "validation",
    "ema": "validation, averaged weights",
}


def curves(
    history: list[dict[str, Any]], title: str, kinds: Sequence[str] = ("loss", "accuracy")
) -> bytes:
    """A PNG of the kinds of metrics by epoch."""
    import matplotlib as mpl  # here: a second of import that only the end of a run needs

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    size = (5 * len(kinds), 4)
    figure, axes = plt.subplots(1, len(kinds), figsize=size, layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axis, kind in zip(axes, kinds, strict=True):
        for part, label in _CURVES.items():
            if history and f"{part}_{kind}" in history[0]:
                axis.plot(epochs, [row[f"{part}_{kind}"] for row in history], label=label)
        axis.set(xlabel="epoch", ylabel=kind)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    return png(figure)


def confusions(counts: list[list[int]], classes: Sequence[str], title: str) -> bytes:
    """A PNG of a confusion matrix; colours are shares of the true class, numbers are counts.

    Args:
        counts: (C, C), a row is a true class, a column a predicted one.
        classes: their C names; of more than 40 they are left out, of more than 20 the counts.
        title: above it.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shares = np.array(counts) / np.maximum(1, np.sum(counts, axis=1, keepdims=True))
    side = min(16.0, 3.5 + 0.4 * len(classes))
    figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    axis.set(xlabel="predicted", ylabel="true")
    ticks = range(len(classes)) if len(classes) <= 40 else ()
    axis.set_xticks(ticks, [classes[i] for i in ticks], rotation=90)
    axis.set_yticks(ticks, [classes[i] for i in ticks])
    if len(classes) <= 20:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, counts[row][column], ha="center", va="center", color=color)
    figure.suptitle(title)
    return png(figure)


def png(figure: Any) -> bytes:
    """A figure of matplotlib as PNG; closes it."""
    from matplotlib import pyplot as plt

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    plt.close(figure)
    return content.getvalue()
