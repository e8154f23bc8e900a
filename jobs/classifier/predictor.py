"""Predictions of one part of the input, on a worker: a model, and a table of probabilities."""

import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import ray
import torch
from torch import Tensor

from jobs.classifier.parts import PART, Part, images_of
from jobs.run.config import ConfigError, JobConfig
from jobs.run.device import settle
from jobs.run.main import JobError
from jobs.storage.location import Location
from jobs.weights import files
from jobs.weights.classifier import load_weights
from masking.outputs.crops import CropConfig
from vit import classifier
from vit.classifier import Classifier
from vit.data.decode import DataError, Encoded, decode
from vit.weights import About, Weights, WeightsError

FORMAT = 1
"""Version of the parts' columns and of their keys: raise it when either changes."""
BATCH = 64
"""Images that go through the model at a time."""


@dataclass(frozen=True)
class ObjectConfig:
    """Settings of `jobs.predict` for the objects of a mask run."""

    every: int = 1
    """Objects are classified on the frames 0, n, 2n, ..."""
    margin: float | None = None
    """Margin on each side of the object's box, as a share of the longer side of the box. Default:
    that of the images of the training, or 0.1."""
    shape: Literal["square", "tight"] | None = None
    """Shape of what is cut out, as in `jobs.mask --crops.shape`. Default: as in the training, or
    square."""
    background: Literal["kept", "blurred", "transparent"] | None = None
    """What is around the object, as in `jobs.mask --crops.background`. Default: as in the training,
    or kept."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.every < 1:
            raise ConfigError(f"--objects.every is {self.every}; at least 1 is needed")
        self.cutting(None)

    def cutting(self, trained: Mapping[str, Any] | None) -> CropConfig:
        """Return how objects are cut out.

        Args:
            trained: how the images of the training were, as the weights say; None: they do not.

        Raises:
            ConfigError: a value is out of range, or the weights name settings that are unknown.
        """
        given = {name: getattr(self, name) for name in ("margin", "shape", "background")}
        given = {name: value for name, value in given.items() if value is not None}
        try:
            return CropConfig(**{**(trained or {}), **given})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"how objects are cut out: {error}") from error


@dataclass(frozen=True, kw_only=True)
class PredictConfig(JobConfig):
    """Settings of `jobs.predict`."""

    weights: str
    """Weights to predict with, local or s3://: the folder of a run, or its export/."""
    data: tuple[str, ...]
    """Images to classify, local or s3://: folders (with all subfolders), globs (* within a name, **
    across folders, ? for one character of a local name) or files. Parquet files are read as tables
    with a column `image`. Or the --out of `jobs.mask`, whose objects are classified."""
    objects: ObjectConfig = field(default_factory=ObjectConfig)
    """Settings for the objects of a mask run."""
    format: Literal["parquet", "csv"] = "parquet"
    """File format of the predictions."""


class PredictError(JobError):
    """The workers failed and are not restarted; the message says why."""


def fingerprint(weights: Weights, about: About, form: str) -> str:
    """Return a hash of everything that predictions depend on beside the images."""
    header = f"{FORMAT} {form} {json.dumps(about.to_json())}"
    return files.fingerprint(header, weights.tensors, shapes=False)


def open_classifier(weights: Weights, device: torch.device) -> tuple[Classifier, About]:
    """Return the model of an export; raises WeightsError for weights without a model.json."""
    about = weights.about
    if about is None:
        raise WeightsError(
            f"{weights.source} has no model.json beside it with the model's shape, classes and"
            " normalisation; give the export of a run, or start a run from these weights with"
            " `python -m jobs.train --init-weights`"
        )
    model = classifier.load(weights, about.model, about.dataset, about.numerics, device)
    return model, about


class Predictor:
    """An actor of Ray Data that holds the model and publishes the predictions of parts."""

    def __init__(
        self,
        config: PredictConfig,
        wanted: str,
        threads: int,
        device: torch.device,
        gpus: float = 1.0,
    ) -> None:
        """Load the model.

        Args:
            config: settings of the job, with absolute paths.
            wanted: fingerprint of the weights that the driver read.
            threads: threads of this process.
            device: the device that the model computes on.
            gpus: share of the GPU that this process has.

        Raises:
            PredictError: the weights on this node are not those of the driver.
        """
        settle(device, gpus)
        torch.set_num_threads(threads)
        weights = load_weights(config.weights)
        self.model, self.about = open_classifier(weights, device)
        if fingerprint(weights, self.about, config.format) != wanted:
            raise PredictError(
                f"--weights {config.weights} on node {ray.util.get_node_ip_address()} are not"
                " those that the job was started with; put them where all nodes see the same file"
            )
        self.folder, self.format = Location.parse(config.out) / "predictions", config.format
        self.pool = ThreadPoolExecutor(max(2, threads), thread_name_prefix="decode")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Predict and publish {"part": JSON}; returns {"n": rows, "errors": rows with an error}."""
        fields = json.loads(row["part"])
        part = Part(**(fields | {"paths": tuple(fields["paths"])}))
        table = predict(part, self.model, self.about.classes, self.pool)
        (self.folder / f"{part.name}.{self.format}").write_bytes(encode(table, self.format))
        return {"n": len(table), "errors": len(table) - table["error"].null_count}


def predict(
    part: Part, model: Classifier, classes: Sequence[str], pool: ThreadPoolExecutor
) -> pa.Table:
    """Return a part's predictions; images are decoded while earlier ones are in the model."""
    size = model.stored_size

    def attempt(image: Callable[[], Encoded]) -> np.ndarray[Any, np.dtype[np.uint8]] | str:
        try:
            return decode(image(), size)
        except DataError as error:
            return str(error)

    places: list[tuple[str, int | None]] = []
    errors: list[str | None] = []
    probabilities = []
    source = images_of(part)
    while items := list(itertools.islice(source, PART)):  # only their bytes are in memory
        places += [item[:2] for item in items]
        decoded = pool.map(attempt, [image for _, _, image in items])
        while chunk := list(itertools.islice(decoded, BATCH)):
            pixels = [image for image in chunk if not isinstance(image, str)]
            errors += [image if isinstance(image, str) else None for image in chunk]
            if pixels:
                logits = model(torch.from_numpy(np.stack(pixels)))
                probabilities.append(logits.softmax(dim=1).cpu())
    found = torch.cat(probabilities) if probabilities else torch.empty(0, len(classes))
    return tabulate(places, errors, found, classes)


def tabulate(
    places: Sequence[tuple[str, int | None]],
    errors: Sequence[str | None],
    probabilities: Tensor,
    classes: Sequence[str],
) -> pa.Table:
    """Return the table of a part's predictions, a row per image.

    Args:
        places: file and row in it (None: no table) of each of n images.
        errors: why an image has no class; None for the m images that have one.
        probabilities: (m, C) float32 on the CPU, of the m images in order.
        classes: names of the C classes.
    """
    columns: dict[str, Any] = {
        "path": pa.array([path for path, _ in places], pa.string()),
        "row": pa.array([row for _, row in places], pa.int64()),
    }
    return pa.table(columns | class_columns(errors, probabilities, classes))


def class_columns(
    errors: Sequence[str | None], probabilities: Tensor, classes: Sequence[str]
) -> dict[str, Any]:
    """Return the columns class, probability, error and p_CLASS; arguments as in `tabulate`."""
    rows = iter(range(len(probabilities)))
    index = pa.array([None if error else next(rows) for error in errors], pa.int64())
    best = probabilities.max(dim=1)
    names = pa.array(classes, pa.string()).take(pa.array(best.indices.numpy()))
    columns: dict[str, Any] = {
        "class": names.take(index),
        "probability": pa.array(best.values.numpy()).take(index),
        "error": pa.array(errors, pa.string()),
    }
    for number, name in enumerate(classes):
        columns[f"p_{name}"] = pa.array(probabilities[:, number].numpy()).take(index)
    return columns


def encode(table: pa.Table, form: str) -> bytes:
    """Return a table as the bytes of a Parquet or CSV file; CSV has a header, null is empty."""
    content = io.BytesIO()
    if form == "parquet":
        pq.write_table(table, content)
    else:
        pyarrow.csv.write_csv(table, content)
    return content.getvalue()
