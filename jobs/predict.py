"""Predict the class of images or masked objects with Ray Data; Parquet or CSV out.

    python -m jobs.predict --weights runs/digits --data photos/ --out runs/photos --workers 2
    python -m jobs.predict --weights runs/kinds --data runs/masks --out runs/names --workers 2

`--data` is images (folders, globs or Parquet), or the `--out` of `jobs.mask`.

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

Of a mask run, a part is a video, and a row an object on a frame: video_id, frame, time_s, object_id
and state stand in place of `row`. `tracks.parquet` then has a row for each object: its class by
votes of its frames, probability, frames, and how many agree.
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
from jobs.cluster.workers import SHARING
from jobs.objects.classify import ObjectPredictor
from jobs.objects.plan import VideoPart, find_run, plan_objects
from jobs.objects.tracks import write_tracks
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
from masking.images.decode import ImageError
from masking.outputs.crops import CropConfig
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
    parts: Sequence[Part | VideoPart]
    if (masked := find_run(config.data)) is not None:
        cutting = config.objects.cutting(about.crops)
        parts = plan_objects(masked, wanted, cutting, config.objects)
        source = "as the weights say" if about.crops else "which the weights do not say"
        print(f"objects are cut out with {describe_cutting(cutting)}, {source}")
    else:
        parts = plan(find(config.data), wanted)
    if not parts:
        raise ConfigError("--data: the Parquet files have no rows")
    with exclusive(out, "jobs.predict"):
        check_writable(out)
        check_same(out, config, began="predictions")
        describe(out, config)
        return predict(config, out, parts, wanted, about.classes)


def describe_cutting(cutting: CropConfig) -> str:
    """Return how objects are cut out, for people."""
    return f"margin {cutting.margin:g}, {cutting.shape}, background {cutting.background}"


def predict(
    config: PredictConfig,
    out: Location,
    parts: Sequence[Part | VideoPart],
    wanted: str,
    classes: Sequence[str],
) -> int:
    """Predict the parts that `out` lacks, and write the summary; returns the exit code."""
    there = {entry.name for entry in (out / "predictions").list()}
    todo = [part for part in parts if f"{part.name}.{config.format}" not in there]
    total = sum(map(len, parts))
    done = len(parts) - len(todo)
    print(f"{total:,} {things(parts)} in {len(parts):,} parts, {done:,} of them done")
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
        n, errors = conclude(config, out, parts, there, sum(map(len, todo)), seconds, classes)
    except StorageError as error:
        raise PredictError(f"all parts are published, but {error}") from error
    if n and errors == n:
        raise PredictError(
            f"none of the {n:,} {things(parts)} could be classified; the column `error` of the"
            " predictions says why"
        )
    return 0


def things(parts: Sequence[Part | VideoPart]) -> str:
    """Return what a row of predictions is of, for people."""
    return "objects on frames" if isinstance(parts[0], VideoPart) else "images"


def execute(
    config: PredictConfig,
    todo: Sequence[Part | VideoPart],
    wanted: str,
    stop: Stop,
) -> None:
    """Predict the parts on workers; returns when all are published or a stop was requested.

    Raises:
        PredictError: a worker failed for a reason that is not one image's.
        ClusterError: the cluster has no room for the workers.
    """
    workers = min(config.workers, len(todo))
    cuda, gpus = connect.choose_device(
        config.device,
        workers,
        config.cpus_per_worker,
        config.gpus_per_worker,
        sharing=SHARING,
    )
    connect.require(workers, config.cpus_per_worker, gpus, stop, wait=config.wait_for_nodes)
    device = torch.device("cuda" if cuda else "cpu")
    arguments = (config, wanted, max(1, int(config.cpus_per_worker)), device, gpus)
    rows = [{"part": json.dumps(asdict(part))} for part in todo]
    actor = ObjectPredictor if isinstance(todo[0], VideoPart) else Predictor
    done = actors.dataset(rows, actor, arguments, config, workers, gpus if cuda else None)
    progress = PredictProgress(sum(map(len, todo)), things(todo))
    try:
        actors.wait_for(lambda: progress.follow(done.iter_rows()), stop, progress.show)
    except Exception as error:  # of any kind of Ray's, with the worker's own inside
        reason = actors.reason(error)
        raise PredictError(
            f"a worker failed: {reason}; published parts stay, and the same command resumes"
        ) from error


class PredictProgress:
    """Prints lines about the images that are done, not more often than every LOG_SECONDS."""

    def __init__(self, total: int, what: str) -> None:
        """Start the clock of a job that predicts `total` images, or what else they are."""
        self._total, self._what, self._done, self._errors = total, what, 0, 0
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
        print(f"{self._done:,} of {self._total:,} {self._what}{errors}, {rate:,.0f}/s, {left} left")


def conclude(
    config: PredictConfig,
    out: Location,
    parts: Sequence[Part | VideoPart],
    there: set[str],
    made: int,
    seconds: float,
    classes: Sequence[str] = (),
) -> tuple[int, int]:
    """Publish and print the summary, and delete the parts of an earlier input.

    Returns the number of rows of predictions, and of those with an error.

    Args:
        config: settings of the job.
        out: folder of the run.
        parts: all parts of the input.
        there: files of parts that existed before this start.
        made: number of images that this start predicted.
        seconds: time that this start took.
        classes: names of the classes; images need none.
    """
    names = [f"{part.name}.{config.format}" for part in parts]
    folder = out / "predictions"
    videos = [part for part in parts if isinstance(part, VideoPart)]
    if videos:
        counts = write_tracks(out, videos, config.format, classes)
    else:
        with ThreadPoolExecutor(16) as pool:
            errors = sum(pool.map(lambda name: count_errors(folder / name), names))
        counts = {"n": sum(map(len, parts)), "errors": errors}
    rate = made / seconds if made else None
    summary = {
        "format": FORMAT,
        **counts,
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
        f"done: {counts['n']:,} {things(parts)}, {counts['errors']:,} of them without a class{pace}"
    )
    if videos:
        print(
            f"  tracks       {out / f'tracks.{config.format}'}: {counts['tracks']:,},"
            f" {counts['unknown']:,} of them without a class"
        )
    print(f"  predictions  {folder}\n  summary      {out / 'summary.json'}")
    return counts["n"], counts["errors"]


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
    return run_job(
        run, PredictConfig, argv, "jobs.predict", __doc__, (DataError, WeightsError, ImageError)
    )


if __name__ == "__main__":
    sys.exit(main())
