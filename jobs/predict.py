"""Predict the class of images with Ray Data: folders, globs or Parquet in, Parquet or CSV out.

    python -m jobs.predict --weights runs/digits --data photos/ --out runs/photos --workers 2

`--out` then holds `predictions/part-<number>-<key>.parquet` and `summary.json`. A row is an image:

    path         the image file, or the Parquet file that holds the image
    row          the image's row in the Parquet file, from 0; null for an image file
    class        the most probable class
    probability  the probability of that class, 0 to 1
    error        why there is no class; null if there is one
    p_<class>    the probability of each class, in the order of the weights' classes

An image that does not decode has an error, and null elsewhere. Parts are published whole, under a
key of the weights and of their files: the same command predicts only parts that are missing or
changed. The numbers of parts give the order of the input.
"""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from jobs.classifier.parts import Part, find, plan
from jobs.classifier.predictor import (
    FORMAT,
    PredictConfig,
    PredictError,
    Predictor,
    fingerprint,
    open_classifier,
)
from jobs.cluster import actors, connect
from jobs.run.config import ConfigError
from jobs.run.folder import check_same, describe
from jobs.run.machine import hardware, versions
from jobs.run.main import run_job
from jobs.run.progress import LOG_SECONDS, clock
from jobs.run.signals import Stop
from jobs.run.submitted import absolute, refuse_relative
from jobs.storage.errors import explained
from jobs.storage.lease import exclusive
from jobs.storage.location import Location, StorageError, check_writable
from jobs.weights.classifier import load_weights
from vit.data.decode import DataError
from vit.weights import WeightsError


def run(config: PredictConfig) -> int:
    """Run the stages of the job in order; returns its exit code."""
    # 1. Checks that need no workers.
    refuse_relative(config.out)
    config = absolute(config, "out", "weights", "data")
    out = Location.parse(config.out)
    weights = load_weights(config.weights)
    _, about = open_classifier(weights, torch.device("cpu"))
    wanted = fingerprint(weights, about, config.format)
    parts = plan(find(config.data), wanted)
    if not parts:
        raise ConfigError("--data: the Parquet files have no rows")
    with exclusive(out, "jobs.predict"):
        check_writable(out)
        check_same(out, config, began="predictions")
        describe(out, config)
        return predict(config, out, parts, wanted)


def predict(config: PredictConfig, out: Location, parts: Sequence[Part], wanted: str) -> int:
    """Predict the parts that `out` lacks, and write the summary; returns the exit code."""
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
                print("stopped; the same command resumes")
                return stop.exit_code
    seconds = time.monotonic() - started
    # 3. The summary.
    try:
        errors = conclude(config, out, parts, there, sum(map(len, todo)), seconds)
    except StorageError as error:
        raise PredictError(f"all parts are published, but {error}") from error
    if errors == total:
        raise PredictError(
            f"none of the {total:,} images could be classified; the column `error` of the"
            " predictions says why"
        )
    return 0


def execute(config: PredictConfig, todo: Sequence[Part], wanted: str, stop: Stop) -> None:
    """Predict the parts on workers; returns when all are published or a stop was requested.

    Raises:
        PredictError: a worker failed for a reason that is not one image's.
        ClusterError: the cluster has no room for the workers.
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
    progress = PredictProgress(sum(map(len, todo)))
    try:
        actors.wait_for(lambda: progress.follow(done.iter_rows()), stop, progress.show)
    except Exception as error:  # of any kind of Ray's, with the worker's own inside
        reason = actors.reason(error)
        raise PredictError(
            f"a worker failed: {reason}; published parts stay, and the same command resumes"
        ) from error


class PredictProgress:
    """Prints lines about the images that are done, not more often than every LOG_SECONDS."""

    def __init__(self, total: int) -> None:
        """Start the clock of a job that predicts `total` images."""
        self._total, self._done, self._errors = total, 0, 0
        self._started = self._printed = time.monotonic()

    def follow(self, rows: Iterable[dict[str, Any]]) -> None:
        """Count the images of published parts; returns after the last part."""
        for row in rows:
            self._done += row["n"]
            self._errors += row["errors"]

    def show(self) -> None:
        """Print a line if the last one is at least LOG_SECONDS old."""
        now = time.monotonic()
        if now - self._printed < LOG_SECONDS or not self._done:
            return
        self._printed, rate = now, self._done / (now - self._started)
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
) -> int:
    """Publish and print the summary, and delete the parts of an earlier input.

    Returns the number of images with an error.

    Args:
        config: settings of the job.
        out: folder of the run.
        parts: all parts of the input.
        there: files of parts that existed before this start.
        made: number of images that this start predicted.
        seconds: time that this start took.
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
    return errors


def count_errors(place: Location) -> int:
    """Return the number of rows with an error in the part at `place`."""
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
    return run_job(run, PredictConfig, argv, "jobs.predict", __doc__, (DataError, WeightsError))


if __name__ == "__main__":
    sys.exit(main())
