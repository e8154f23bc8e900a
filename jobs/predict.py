"""Predict the class of images with Ray Data: folders, globs or Parquet in, Parquet or CSV out.

    python -m jobs.predict --weights runs/digits --data photos/ --out runs/photos --workers 2

`--out` then holds `predictions/part-<number>-<key>.parquet` and `summary.json`. A row is an image:

    path         where it lies: the file, or the Parquet file that it is in
    row          its row there, from 0; null for a file of its own
    class        the most probable class
    probability  of that class, 0 to 1
    error        why there is no class, null if there is one
    p_<class>    probability of each class, in the head's order

An image that does not decode is a row with its error, and nulls elsewhere. Parts are published
whole, under a key of the weights and of the files in them; the same command makes what is missing,
and anew what changed. Rows of the input come in order of the part's number.
"""

import hashlib
import io
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import ray
import torch
from torch import Tensor

from jobs.classifier.parts import PART, Part, find, images_of, plan
from jobs.cluster import actors, connect
from jobs.run.config import ConfigError, JobConfig, parse
from jobs.run.folder import check_same, describe, hardware, versions
from jobs.run.main import JobError
from jobs.run.progress import clock
from jobs.run.signals import Stop
from jobs.run.submitted import refuse_relative
from jobs.storage.errors import explained
from jobs.storage.location import Location, StorageError, check_writable
from jobs.weights.classifier import load_weights
from vit import classifier
from vit.classifier import Classifier
from vit.data.decode import DataError, Encoded, decode
from vit.weights import About, Weights, WeightsError

FORMAT = 1
"""Version of the parts' columns and of their keys: raise it when either changes."""
BATCH = 64
"""Images that go through the model at a time."""
LOG_SECONDS = 10.0
"""Between two lines on how far it is."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig(JobConfig):
    """Settings of `jobs.predict`."""

    weights: str
    """What to predict with, local or s3://: the folder of a run, or its export/."""
    data: tuple[str, ...]
    """Images: folders (with all below them), globs (* within a name, ** across folders, in local
    names ? too) or files, local or s3://; Parquet files among them are tables with a column
    image."""
    format: Literal["parquet", "csv"] = "parquet"
    """Of the predictions."""


class PredictError(JobError):
    """The workers failed for good; the message is what a person needs of it."""


def fingerprint(weights: Weights, about: About, form: str) -> str:
    """A hash of all that predictions hang on beside the images."""
    digest = hashlib.sha256(f"{FORMAT} {form} {json.dumps(about.to_json())}".encode())
    for name, tensor in sorted(weights.tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --- One part: on a worker -----------------------------------------------------------------------


def open_classifier(weights: Weights, device: torch.device) -> tuple[Classifier, About]:
    """The model of an export. Raises WeightsError for weights without a model.json."""
    about = weights.about
    if about is None:
        raise WeightsError(
            f"{weights.source} has no model.json beside it, which says shape, classes and"
            " normalisation; give the export of a run, or start one from these weights with"
            " `python -m jobs.train --init-weights`"
        )
    model = classifier.load(weights, about.model, about.dataset, about.numerics, device)
    return model, about


class Predictor:
    """What an actor of Ray Data holds: the model; called with a part, it writes that part."""

    def __init__(
        self, config: PredictConfig, wanted: str, threads: int, device: torch.device
    ) -> None:
        """Load the model.

        Args:
            config: of the job, its paths absolute.
            wanted: fingerprint of the weights that the driver saw.
            threads: of this process.
            device: where the model computes.
        """
        torch.set_num_threads(threads)
        weights = load_weights(config.weights)
        self.model, self.about = open_classifier(weights, device)
        if fingerprint(weights, self.about, config.format) != wanted:
            raise PredictError(
                f"--weights {config.weights} are others on node {ray.util.get_node_ip_address()}"
                " than where the job was started; put them where all nodes see the same"
            )
        self.folder, self.format = Location.parse(config.out) / "predictions", config.format
        self.pool = ThreadPoolExecutor(max(2, threads), thread_name_prefix="decode")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Predict and publish a part: {"part": its JSON} to {"n": images, "errors": of them}."""
        fields = json.loads(row["part"])
        part = Part(**(fields | {"paths": tuple(fields["paths"])}))
        table = predict(part, self.model, self.about.classes, self.pool)
        (self.folder / f"{part.name}.{self.format}").write_bytes(encode(table, self.format))
        return {"n": len(table), "errors": len(table) - table["error"].null_count}


def predict(
    part: Part, model: Classifier, classes: Sequence[str], pool: ThreadPoolExecutor
) -> pa.Table:
    """Predict a part's images; later ones are decoded while earlier ones are in the model."""
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
    while items := list(itertools.islice(source, PART)):  # their bytes, and no more, are in memory
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
    """The rows of a part.

    Args:
        places: (file, row in it) of each of n images.
        errors: why one has no class; None for the m of them that do.
        probabilities: (m, C) float32.
        classes: C names.
    """
    rows = iter(range(len(probabilities)))
    index = pa.array([None if error else next(rows) for error in errors], pa.int64())
    best = probabilities.max(dim=1)
    names = pa.array(classes, pa.string()).take(pa.array(best.indices.numpy()))
    columns: dict[str, Any] = {
        "path": pa.array([path for path, _ in places], pa.string()),
        "row": pa.array([row for _, row in places], pa.int64()),
        "class": names.take(index),
        "probability": pa.array(best.values.numpy()).take(index),
        "error": pa.array(errors, pa.string()),
    }
    for number, name in enumerate(classes):
        columns[f"p_{name}"] = pa.array(probabilities[:, number].numpy()).take(index)
    return pa.table(columns)


def encode(table: pa.Table, form: str) -> bytes:
    """A table as the bytes of a Parquet or CSV file (with a header; null: nothing)."""
    content = io.BytesIO()
    if form == "parquet":
        pq.write_table(table, content)
    else:
        pyarrow.csv.write_csv(table, content)
    return content.getvalue()


# --- The job -------------------------------------------------------------------------------------


def run(config: PredictConfig) -> int:
    """The stages of the job, in order."""
    # 1. What can be known without workers.
    refuse_relative(config.out)
    config = absolute(config)
    out = Location.parse(config.out)
    weights = load_weights(config.weights)
    _, about = open_classifier(weights, torch.device("cpu"))
    wanted = fingerprint(weights, about, config.format)
    parts = plan(find(config.data), wanted)
    if not parts:
        raise ConfigError("--data: the Parquet files hold no row")
    check_writable(out)
    check_same(out, config, began="predictions")
    describe(out, config)
    there = {entry.name for entry in (out / "predictions").list()}
    todo = [part for part in parts if f"{part.name}.{config.format}" not in there]
    total = sum(map(len, parts))
    print(f"{total:,} images in {len(parts):,} parts, {len(parts) - len(todo):,} of them done")
    # 2. The missing parts, on workers.
    started = time.monotonic()
    if todo:
        with Stop() as stop, connect.connect():
            execute(config, todo, wanted, stop)
            if stop.requested.is_set():
                print("stopped; the same command goes on")
                return stop.exit_code
    seconds = time.monotonic() - started
    # 3. What it leaves.
    try:
        conclude(config, out, parts, there, sum(map(len, todo)), seconds)
    except StorageError as error:
        raise PredictError(f"all parts are there, but {error}") from error
    return 0


def absolute(config: PredictConfig) -> PredictConfig:
    """The same config with paths that mean the same in a worker's folder, or on another day."""
    data = tuple(str(Location.parse(path)) for path in config.data)
    weights, out = str(Location.parse(config.weights)), str(Location.parse(config.out))
    return replace(config, weights=weights, out=out, data=data)


def execute(config: PredictConfig, todo: Sequence[Part], wanted: str, stop: Stop) -> None:
    """Have workers make the parts; returns when all are there, or a stop was asked for.

    Raises PredictError when a worker failed for a reason that is not one image's.
    """
    workers = min(config.workers, len(todo))
    cuda, gpus = connect.choose_device(
        config.device, workers, config.cpus_per_worker, config.gpus_per_worker
    )
    connect.require(workers, config.cpus_per_worker, gpus, stop, wait=config.wait_for_nodes)
    device = torch.device("cuda" if cuda else "cpu")
    arguments = (config, wanted, max(1, int(config.cpus_per_worker)), device)
    rows = [{"part": json.dumps(asdict(part))} for part in todo]
    done = actors.dataset(rows, Predictor, arguments, config, workers, gpus if cuda else None)
    progress = Progress(sum(map(len, todo)))
    try:
        actors.wait_for(lambda: progress.follow(done.iter_rows()), stop, progress.show)
    except Exception as error:  # Ray's, whatever kind, with the worker's own inside
        reason = actors.reason(error)
        raise PredictError(f"a worker failed: {reason}; what is published stays") from error


class Progress:
    """Lines on how far it is, now and then."""

    def __init__(self, total: int) -> None:
        """Of `total` images."""
        self._total, self._done, self._errors = total, 0, 0
        self._started = self._said = time.monotonic()

    def follow(self, rows: Iterable[dict[str, Any]]) -> None:
        """Count parts as they are published; returns after the last."""
        for row in rows:
            self._done += row["n"]
            self._errors += row["errors"]

    def show(self) -> None:
        """Print a line, if the last is old enough."""
        now = time.monotonic()
        if now - self._said < LOG_SECONDS or not self._done:
            return
        self._said, rate = now, self._done / (now - self._started)
        left = clock((self._total - self._done) / rate)
        errors = f", {self._errors:,} with an error" if self._errors else ""
        print(f"{self._done:,} of {self._total:,} images{errors}, {rate:,.0f}/s, {left} left")


def conclude(
    config: PredictConfig,
    out: Location,
    parts: Sequence[Part],
    there: set[str],
    made: int,
    seconds: float,
) -> None:
    """Publish the summary, then delete parts of an earlier input; say what came out.

    Args:
        config: of the job.
        out: its folder.
        parts: all of the input.
        there: files of parts that were there before this start.
        made: images that this start predicted.
        seconds: that it took.
    """
    names = [f"{part.name}.{config.format}" for part in parts]
    folder = out / "predictions"
    with ThreadPoolExecutor(16) as pool:
        errors = sum(pool.map(lambda name: count_errors(folder / name), names))
    n = sum(map(len, parts))
    rate = made / seconds if made else None
    summary = {
        "format": FORMAT,
        "n": n,
        "errors": errors,
        "parts": names,
        "images_per_s": rate,
        "made": made,
        "wall_s": seconds,
        "workers": config.workers,
        "versions": versions(),
        "hardware": hardware(),
    }
    (out / "summary.json").write_json(summary)
    for name in there - set(names):
        (folder / name).delete()
    pace = "" if rate is None else f", {rate:,.0f} images/s with start-up"
    print(
        f"done: {n:,} images, {errors:,} of them without a class{pace}\n"
        f"  predictions  {folder}\n  summary      {out / 'summary.json'}"
    )


def count_errors(place: Location) -> int:
    """How many rows of a part have an error."""
    with place.open() as stream, explained("read", place):
        if place.name.endswith(".parquet"):
            column = pq.read_table(stream, columns=["error"])["error"]
        else:
            kept = pyarrow.csv.ConvertOptions(
                include_columns=["error"], column_types={"error": pa.string()},
                strings_can_be_null=True,
            )  # fmt: skip
            column = pyarrow.csv.read_csv(stream, convert_options=kept)["error"]
    return len(column) - column.null_count


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    config = parse(PredictConfig, argv, "jobs.predict", __doc__)
    try:
        return run(config)
    except (ConfigError, DataError, WeightsError, StorageError, connect.ClusterError) as error:
        sys.stderr.write(f"jobs.predict: {error}\n")
        return 2
    except PredictError as error:
        sys.stderr.write(f"jobs.predict: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
