"""The folder of a run: config.yaml, versions.json, metrics.csv and TensorBoard events.

metrics.csv and the events are written from the history that a checkpoint holds, so that they never
disagree with the checkpoint that a run resumes from.
"""

import csv
import io
import tempfile
from pathlib import Path
from typing import Any

from jobs.run.config import ConfigError, as_yaml, changed, parse_yaml
from jobs.run.machine import versions
from jobs.storage.location import Location

_RESUMED_FROM = {
    "checkpoints": "a training",
    "trials": "a sweep",
    "predictions": "predictions",
    "commits": "masks of videos",
}
"""The folders in `--out` that runs are resumed from, and what they hold."""


def check_same(out: Location, config: object, began: str = "checkpoints") -> None:
    """Check that `config` may resume the run in `out`, if there is anything to resume.

    Args:
        out: folder of the run.
        config: settings of this start.
        began: the folder in `out` that is not empty once there is something to resume.

    Raises:
        ConfigError: the run there is of another job, or was started with other settings that must
            not change; the message has a line for each.
    """
    path = out / "config.yaml"
    for folder, what in _RESUMED_FROM.items():
        if folder != began and (out / folder).list():
            raise ConfigError(f"{out} holds {what}; give another --out")
    if path.exists() and (out / began).list():
        lines = changed(parse_yaml(path.read_bytes(), str(path)), config)
        if lines:
            listing = "\n  ".join(lines)
            raise ConfigError(
                f"{out} holds a run with other settings:\n  {listing}\n"
                "Give the same settings to resume it, or another --out for a new run."
            )


def describe(out: Location, config: object) -> None:
    """Write the settings and versions of this start: config.yaml and versions.json."""
    (out / "config.yaml").write_text(as_yaml(config))
    (out / "versions.json").write_json(versions())


def write_metrics(out: Location, history: list[dict[str, Any]]) -> None:
    """Publish metrics.csv if there is a row: a row an epoch, columns in order of appearance."""
    if not history:
        return
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    (out / "metrics.csv").write_text(text.getvalue())


class Events:
    """TensorBoard events of a run: each start writes one file with the whole history."""

    def __init__(self, folder: Location) -> None:
        """Set the folder of the events; the first `write` replaces what it holds."""
        self._folder = folder
        self._writer: Any = None
        self._written = 0

    def write(self, history: list[dict[str, Any]]) -> None:
        """Add the rows that are not written yet; object storage gets the whole file again."""
        if self._writer is None:
            self._folder.delete()
            local = self._folder.local_path or Path(tempfile.mkdtemp(prefix="patchray-events-"))
            from torch.utils.tensorboard import SummaryWriter  # here, as it takes half a second

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
    """Return the tag of a metric; `val_loss` is `loss/val`, so that losses share a chart."""
    part, _, kind = name.partition("_")
    return f"{kind}/{part}" if part in ("train", "val", "ema") else name
