"""The videos of a mask job over its workers, each published as it comes."""

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from jobs.cluster import actors, connect
from jobs.masks.config import MaskConfig
from jobs.masks.folder import marker_place, masks_place, part_place
from jobs.masks.plan import VideoWork
from jobs.masks.video import Masker
from jobs.run.main import JobError
from jobs.run.progress import clock
from jobs.run.signals import Stop
from jobs.storage.location import Location, StorageError
from masking.segmenter.sam import resolve

PUBLISH_WAITS = (1.0, 5.0, 30.0)
"""Seconds before storage that refused a video's masks is tried again."""
LOG_SECONDS = 10.0
"""Between two lines on how far it is."""


class MaskError(JobError):
    """The workers failed for good; the message is what a person needs of it."""


def mask_all(
    config: MaskConfig, out: Location, todo: Sequence[VideoWork], wanted: str, stop: Stop
) -> list[dict[str, Any]]:
    """Have workers mask the videos, and publish each as it comes; returns their records.

    Raises:
        MaskError: a worker failed for a reason that is not one video's.
        ClusterError: the workers do not fit.
    """
    workers = min(config.workers, len(todo))
    cuda, gpus = connect.choose_device(
        config.device, workers, config.cpus_per_worker, config.gpus_per_worker
    )
    device = torch.device("cuda" if cuda else "cpu")
    if config.precision == "bfloat16" and resolve("auto", device) == "float32":
        print("bfloat16: this processor does not multiply it, and will be slow")
    token = new_token()
    arguments = (
        config.out, token, config.weights, wanted, config.precision, config.track,
        max(1, int(config.cpus_per_worker)), device, config.time_limit,
    )  # fmt: skip
    rows = {work.video_id: {"work": work.to_json()} for work in todo}
    progress = BatchProgress(len(todo))
    parts = out / ".parts" / token

    def take(row: dict[str, Any]) -> str:
        record = json.loads(row["record"])
        publish(record, out, parts)
        progress.add(record)
        return str(record["video_id"])

    with mask_errors():
        if actors.run(rows, Masker, arguments, config, gpus or None, take, stop, progress.show):
            (out / ".parts").delete()  # of killed starts too
    return progress.records


def new_token() -> str:
    """Names what one start of the job writes for itself."""
    return f"{int(time.time())}-{secrets.token_hex(4)}"


@contextmanager
def mask_errors() -> Iterator[None]:
    """Turn what goes wrong once work is under way into MaskError."""
    try:
        yield
    except (MaskError, connect.ClusterError):
        raise
    except (StorageError, actors.LostError) as error:
        raise MaskError(f"{error}; what is published stays") from error
    except Exception as error:  # Ray's, whatever kind, with the worker's own inside
        reason = actors.reason(error)
        raise MaskError(f"a worker failed: {reason}; what is published stays") from error


class BatchProgress:
    """Says now and then how far the videos are."""

    def __init__(self, total: int) -> None:
        """Of `total` videos."""
        self.records: list[dict[str, Any]] = []
        self._total, self._frames, self._failed = total, 0, 0
        self._started = self._said = time.monotonic()

    def add(self, record: dict[str, Any]) -> None:
        """Count a video that is published."""
        self.records.append(record)
        self._frames += record["frames"]
        self._failed += record["status"] == "failed"

    def show(self) -> None:
        """Print a line, if the last is old enough."""
        now, count = time.monotonic(), len(self.records)
        if now - self._said < LOG_SECONDS or not count:
            return
        self._said, spent = now, now - self._started
        left = clock((self._total - count) * spent / count)
        print(
            f"{count:,} of {self._total:,} videos, {self._failed:,} failed,"
            f" {self._frames / spent:,.1f} frames/s, {left} left"
        )


def publish(record: Mapping[str, Any], out: Location, parts: Location) -> None:
    """Masks under their name, then the marker that says so; again if storage stumbles."""
    for wait in PUBLISH_WAITS:
        try:
            _publish(record, out, parts)
        except StorageError:
            time.sleep(wait)
        else:
            return
    _publish(record, out, parts)


def _publish(record: Mapping[str, Any], out: Location, parts: Location) -> None:
    video_id = record["video_id"]
    marker = marker_place(out, video_id)
    if record["status"] != "failed":
        marker.delete()  # of other settings: between the two acts there is no video
        part, masks = part_place(parts, video_id), masks_place(out, video_id)
        try:
            part.move(masks)
        except StorageError:  # an earlier try moved it, and did not hear that it had
            if part.exists() or not masks.exists():
                raise
    marker.write_json(record)
    if record["status"] == "failed":
        masks_place(out, video_id).delete()  # of other prompts, if there are any
