"""Measure weights on labelled images: accuracy, loss, accuracy per class, confusion matrix.

    python -m jobs.train --evaluate --weights runs/digits --json digits.json

Runs in this process, without Ray or --out. Model, data set and precision are those of the training
unless flags set others, so on the training's own test set every prediction, and the accuracy, is
the same as in the training.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.classifier.task import check_stored, load, local_paths
from jobs.classifier.tracks import tracks_report
from jobs.run.config import ConfigError, as_settings, flag_value, parse
from jobs.run.device import choose_device
from jobs.run.machine import hardware, versions
from jobs.run.main import exit_code
from jobs.run.plots import confusions_png
from jobs.storage.location import Location, StorageError, check_writable
from jobs.weights.classifier import load_weights
from vit import classifier
from vit.classifier import Classifier
from vit.config import DatasetConfig, ModelConfig
from vit.cost import evaluation_batch
from vit.data import sets
from vit.data.decode import DataError
from vit.data.feed import Feed, each, place
from vit.data.formats import find
from vit.data.reader import normal, some
from vit.numerics import Numerics
from vit.votes import Votes, votes_of
from vit.weights import Weights, WeightsError

FORMAT = 1
"""Version of the JSON file."""
ROWS = 20
"""Classes that the terminal shows; the JSON file has all of them."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `jobs.train --evaluate`."""

    weights: str
    """Weights to measure, local or s3://: the folder of a run, its export/, or a safetensors file
    with timm's names, which needs --model.* and --dataset.* too."""
    data: tuple[str, ...] = ()
    """Files or folders of the data set, local or s3://. Default: the data set that --dataset.name
    names, downloaded if necessary."""
    split: Literal["auto", "train", "val", "test", "all"] = "auto"
    """Images to measure on; auto: the test set if the data have one, else the validation set if
    they have one, else all images."""
    json: str | None = None
    """JSON file to write all figures to, local or s3://; a PNG of the confusion matrix is written
    beside it. Default: figures are only printed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on a GPU if there is one, else on the CPU."""
    precision: Literal["trained", "float32", "bfloat16"] = "trained"
    """Precision to compute in; trained: the precision of the training."""
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)

    def __post_init__(self) -> None:
        """Check settings against each other."""
        check_stored(self.dataset, self.model)


def evaluate(config: EvaluateConfig, weights: Weights) -> int:
    """Run the stages of the job in order; returns its exit code."""
    # 1. Checks before an image is decoded.
    target = None if config.json is None else Location.parse(config.json)
    if target is not None:
        check_writable(target.parent)
    device = choose_device(config.device)
    numerics = _numerics(config, weights)
    model = classifier.load(weights, config.model, config.dataset, numerics, device)
    count = model.model.head.out_features
    survey = find(config.dataset, local_paths(config), training=False).survey()
    head = weights.about.classes if weights.about else None
    check_classes(head, survey.classes, count)
    classes = survey.classes if head is None else tuple(head)
    split, why = choose_split(config.split, survey.parts.keys())
    # 2. The model on the images.
    dataset = load(config, hold_out=split != "all", training=False)
    dataset = sets.relabelled(dataset, classes)
    for note in dataset.notes:
        print(note)
    parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    wanted = {name: images for name, images in parts.items() if split in (name, "all")}
    ballots = {name: votes_of(part, count) for name, part in wanted.items() if part}
    loss, confusion, totals = measure(model, place(wanted, device), count, ballots)
    # 3. The figures.
    figures = report(loss, confusion, classes)
    if totals:
        figures["tracks"] = tracks_report(ballots, totals, classes, dataset.tracks)
    print_report(figures, f"{split} ({why})" if why else split)
    if target is None:
        return 0
    measured = {
        "split": split,
        **figures,
        "numerics": asdict(model.numerics),
        "device": device.type,
    }
    return write_report(config, target, measured)


def write_report(config: EvaluateConfig, target: Location, measured: dict[str, Any]) -> int:
    """Write the JSON file and the confusion matrix beside it; returns the job's exit code."""
    about = {
        "format": FORMAT,
        "weights": config.weights,
        "data": list(config.data),
        "dataset": config.dataset.name,
        **measured,
        "versions": versions(),
        "hardware": hardware(),
    }
    classes = [row["name"] for row in measured["classes"]]
    picture = target.parent / (target.name.removesuffix(".json") + ".png")
    try:
        target.write_json(about)
        picture.write_bytes(confusions_png(measured["confusion"], classes, title=config.weights))
    except StorageError as error:
        sys.stderr.write(f"jobs.train --evaluate: the weights were measured, but {error}\n")
        return 1
    print(f"  figures     {target}\n  confusions  {picture}")
    return 0


def _numerics(config: EvaluateConfig, weights: Weights) -> Numerics:
    """Return the numerics of the training, in the precision that the config wants."""
    plain = Numerics("float32", fused_attention=True, channels_last=False)
    trained = plain if weights.about is None else weights.about.numerics
    if config.precision == "trained":
        return trained
    return replace(trained, precision=config.precision)


def check_classes(head: Sequence[str] | None, found: Sequence[str], count: int) -> None:
    """Check that the head has all classes of the data; the data may lack some, and their order.

    Args:
        head: names of the head's classes; None if they are not known.
        found: names of the data's classes.
        count: how many classes the head has.

    Raises:
        ConfigError: the head lacks a class, or its classes are not known and their number differs.
    """
    if head is None:
        if len(found) != count:
            raise ConfigError(f"the weights have {count} classes, but the data have {len(found)}")
        return
    known = set(map(normal, head))
    if unknown := [name for name in found if normal(name) not in known]:
        present = set(map(normal, found))
        lacking = [name for name in head if normal(name) not in present]
        raise ConfigError(
            "the data have classes that are not among the weights' classes:"
            f" {', '.join(some(unknown, 10))}\n  classes of the weights that the data lack:"
            f" {', '.join(some(lacking, 10)) or 'none'}\n"
            "rename the folders or labels, or leave them out"
        )


def choose_split(split: str, contained: Collection[str]) -> tuple[str, str]:
    """Return the images that `--split` names, and the reason for people if it chose all of them.

    Args:
        split: the setting.
        contained: names of the sets that the data contain.

    Raises:
        ConfigError: the data contain no test set.
    """
    if split == "test" and "test" not in contained:
        raise ConfigError(f"--split test: the data contain only {', '.join(contained)}")
    if split != "auto":
        return split, ""
    for name in ("test", "val"):
        if name in contained:
            return name, ""
    return "all", "the data contain no other set; --split val uses what a training holds out"


@torch.inference_mode()
def measure(
    model: Classifier,
    sets: Mapping[str, Feed],
    count: int,
    ballots: Mapping[str, Votes | None],
) -> tuple[float, Tensor, dict[str, Tensor]]:
    """Run the model over sets of images.

    Args:
        model: what to measure.
        sets: labelled images, by the name of the set.
        count: C, the number of classes.
        ballots: the T tracks of each set; None: it has none.

    Returns:
        The mean loss without label smoothing; the confusion matrix, (C, C) int64 on the CPU: a row
        is a true class, a column a predicted one; and for each set with tracks the votes, (T, C)
        float64 on the CPU (`vit.votes`).
    """
    loss = torch.zeros((), dtype=torch.float64, device=model.device)
    counts = torch.zeros(count * count, dtype=torch.int64, device=model.device)
    batch = evaluation_batch(model.model.config)
    totals: dict[str, Tensor] = {}
    for name, images in sets.items():
        votes, done = ballots.get(name), 0
        if votes is not None:
            totals[name] = votes.zeros(model.device)
        for pixels, labels in each(images, torch.arange(len(images)), batch):
            logits = model(pixels)
            if votes is not None:
                votes.count(totals[name], torch.arange(done, done + len(labels)), logits)
            done += len(labels)
            loss += F.cross_entropy(logits, labels, reduction="sum")
            pairs = labels * count + logits.argmax(dim=1)
            counts += torch.bincount(pairs, minlength=count * count)
    found = {name: total.cpu() for name, total in totals.items()}
    return float(loss) / int(counts.sum()), counts.view(count, count).cpu(), found


def report(loss: float, confusion: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Return the figures: fractions and counts; the accuracy of a class without images is None."""
    counts, predicted = confusion.sum(dim=1).tolist(), confusion.sum(dim=0).tolist()
    right = confusion.diagonal().tolist()
    table = [
        {
            "name": name,
            "n": counts[i],
            "correct": right[i],
            "predicted": predicted[i],
            "accuracy": right[i] / counts[i] if counts[i] else None,
        }
        for i, name in enumerate(classes)
    ]
    n, correct = sum(counts), sum(right)
    return {
        "accuracy": correct / n,
        "loss": loss,
        "n": n,
        "correct": correct,
        "classes": table,
        "confusion": confusion.tolist(),
    }


def print_report(figures: dict[str, Any], split: str) -> None:
    """Print the figures; of many classes only those with the lowest accuracy."""
    print(
        f"{split}: accuracy {figures['accuracy']:.2%} ({figures['correct']:,} of"
        f" {figures['n']:,}), loss {figures['loss']:.4f}"
    )
    if (tracks := figures.get("tracks")) is not None:
        print(
            f"by votes of their images: {tracks['accuracy']:.2%} of tracks ({tracks['correct']:,}"
            f" of {tracks['n']:,})"
        )
    rows = figures["classes"]
    if len(rows) > ROWS:
        seen = (row for row in rows if row["n"])
        rows = sorted(seen, key=lambda row: row["accuracy"])[:ROWS]
        print(f"the {ROWS} of {len(figures['classes'])} classes with the lowest accuracy:")
    width = max(len("class"), *(len(row["name"]) for row in rows))
    print(f"  {'class':<{width}}  accuracy       n  correct  predicted")
    for row in rows:
        accuracy = "       -" if row["accuracy"] is None else f"{row['accuracy']:8.2%}"
        print(
            f"  {row['name']:<{width}}  {accuracy}  {row['n']:6,}  {row['correct']:7,}"
            f"  {row['predicted']:9,}"
        )


def settings(weights: Weights) -> dict[str, Any]:
    """Return the settings of the weights' model.json, which flags override."""
    about = weights.about
    if about is None:
        return {}
    return {"model": as_settings(about.model), "dataset": as_settings(about.dataset)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    argv, prog = sys.argv[1:] if argv is None else argv, "jobs.train --evaluate"

    def job() -> int:
        named = flag_value(argv, "--weights")
        if named is None or "--help" in argv:
            parse(EvaluateConfig, argv, prog, __doc__)  # prints the help, or what is missing
            return 2
        weights = load_weights(named)
        stored, source = settings(weights), f"the model.json of {named}"
        return evaluate(parse(EvaluateConfig, argv, prog, __doc__, stored, source), weights)

    return exit_code(job, prog, (DataError, WeightsError))
