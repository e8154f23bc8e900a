"""Classes of the objects of a video, on a worker: its frames are decoded once and not written."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from jobs.classifier.predictor import BATCH, PredictConfig, Predictor, class_columns, encode
from jobs.masks.folder import fetch_video, table_of
from jobs.objects.plan import VideoPart
from jobs.storage import scratch
from jobs.storage.location import Location, StorageError
from masking.outputs.crops import CropConfig, crops, trusted_rows
from masking.video.frame import VideoError
from masking.video.reader import Video
from vit.classifier import Classifier
from vit.data.decode import decode

_IDENTITY = ("frame", "time_s", "object_id", "state")
"""Columns that predictions have from the mask table."""


class ObjectPredictor(Predictor):
    """An actor of Ray Data that holds the model and publishes the predictions of videos."""

    def __init__(self, config: PredictConfig, *arguments: Any) -> None:
        """Load the model; the arguments are those of `Predictor`."""
        super().__init__(config, *arguments)
        self.every, self.cutting = config.objects.every, config.objects.cutting(self.about.crops)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Predict and publish {"part": JSON}; returns {"n": rows, "errors": rows with an error}."""
        part = VideoPart.from_json(row["part"])
        table = predict_objects(part, self.model, self.about.classes, self.cutting, self.every)
        (self.folder / f"{part.name}.{self.format}").write_bytes(encode(table, self.format))
        return {"n": len(table), "errors": len(table) - table["error"].null_count}


def predict_objects(
    part: VideoPart, model: Classifier, classes: Sequence[str], cutting: CropConfig, every: int
) -> pa.Table:
    """Return the predictions of a video, a row for each object on each frame.

    If the video cannot be read, or is not the one that was masked, the rows from there on have an
    error instead of a class.

    Args:
        part: the video.
        model: the classifier.
        classes: names of its classes.
        cutting: how objects are cut out.
        every: of the frames 0, `every`, 2 * `every`, ... only.

    Raises:
        StorageError: the masks are not those of the run's ledger, or S3 fails.
    """
    record = {
        "video_id": part.video_id, "uri": part.uri, "content_sha256": part.content_sha256,
        "masks_sha256": part.masks_sha256,
    }  # fmt: skip
    rows = trusted_rows(table_of(Location.parse(part.run), record), every)
    done, probabilities, reason = 0, [torch.empty(0, len(classes))], ""
    try:
        with scratch.folder() as folder, Video.open(fetch_video(record, folder)) as video:
            images = (decode(c.image, model.stored_size) for c in crops(video, rows, cutting))
            for batch in _batches(images):
                logits = model(torch.from_numpy(np.stack(batch)))
                probabilities.append(logits.softmax(dim=1).cpu())
                done += len(batch)
    except (OSError, VideoError) as error:
        if isinstance(error, StorageError) and Location.parse(part.uri).is_s3:
            raise  # storage fails, not this video: stop, to resume later
        reason = str(error)
    errors = [None] * done + [reason] * (len(rows) - done)
    columns: dict[str, Any] = {
        "path": pa.array([part.uri] * len(rows), pa.string()),
        "video_id": pa.array([part.video_id] * len(rows), pa.string()),
    }
    columns |= {name: rows[name] for name in _IDENTITY}
    return pa.table(columns | class_columns(errors, torch.cat(probabilities), classes))


def _batches(images: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(images, BATCH)):
        yield batch
