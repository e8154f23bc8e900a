"""Masks the videos of a job on Ray workers, and publishes each video as soon as it is masked."""

import errno
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from jobs.cluster import actors, connect
from jobs.cluster.workers import SHARING
from jobs.masks.config import MaskConfig
from jobs.masks.folder import marker_place, masks_place, part_place
from jobs.masks.plan import VideoWork
from jobs.masks.video import Masker
from jobs.run.main import JobError
from jobs.run.progress import LOG_SECONDS, clock
from jobs.run.signals import Stop
from jobs.storage.location import Location, StorageError
from masking.segmenter.sam import resolve

PUBLISH_WAITS = (1.0, 5.0, 30.0)
"""Seconds to wait before each retry when storage refuses a video's masks."""
REFUSED_IN_A_ROW = 3
"""Videos in a row whose masks storage refuses after which the job ends."""
_LASTING = {
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EROFS, errno.EACCES,
    errno.EPERM,
}  # fmt: skip
"""Answers of a local disk that are the same the next time."""
_REMEDY = "published videos stay, and the same command resumes"
LARGE = ("vit_l", "vit_h", "sam2.1-large", "sam3-tracker")
"""Weights with more parameters than `jobs.cluster.workers.SMALL_MODEL`, by name: their workers
share a GPU only if a person says so."""


class MaskError(JobError):
    """The workers failed, and a retry will not help."""


def mask_all(
    config: MaskConfig, out: Location, todo: Sequence[VideoWork], wanted: str, stop: Stop
) -> list[Mapping[str, Any]]:
    """Mask videos on workers, publish each as soon as it is masked, and return their records.

    Args:
        config: settings of the job.
        out: folder of the run.
        todo: videos to mask.
        wanted: what `settings_of` returned for the weights that the driver read.
        stop: ends the job when a person interrupts it.

    Raises:
        MaskError: a worker failed for a reason that is not one video's.
        ClusterError: the cluster has no room for the workers.
    """
    workers = min(config.workers, len(todo))
    cuda, gpus = connect.choose_device(
        config.device,
        workers,
        config.cpus_per_worker,
        config.gpus_per_worker,
        sharing=1 if config.weights in LARGE else SHARING,
    )
    device = torch.device("cuda" if cuda else "cpu")
    # What a GPU multiplies is not known here: the driver may run on a head without one.
    if config.precision == "bfloat16" and not cuda and resolve("auto", device) == "float32":
        print("--precision bfloat16 is slow here: this processor has no bfloat16 instructions")
    token = new_token()
    arguments = (
        config.out, token, config.weights, wanted, config.precision, config.track,
        max(1, int(config.cpus_per_worker)), device, config.time_limit, gpus,
        config.polish,
    )  # fmt: skip
    rows = {work.video_id: {"work": work.to_json()} for work in todo}
    progress = BatchProgress(len(todo))
    publisher = Publisher(out, out / ".parts" / token)

    def take(row: dict[str, Any]) -> str:
        record = publisher.publish(json.loads(row["record"]))
        progress.add(record)
        return str(record["video_id"])

    with mask_errors():
        if actors.run(rows, Masker, arguments, config, gpus or None, take, stop, progress.show):
            (out / ".parts").delete()  # with the parts of starts that were killed
    return progress.records


def new_token() -> str:
    """Return a name for the temporary files of one start of the job."""
    return f"{int(time.time())}-{secrets.token_hex(4)}"


@contextmanager
def mask_errors() -> Iterator[None]:
    """Turn the errors of workers and of storage into MaskError."""
    try:
        yield
    except (MaskError, connect.ClusterError):
        raise
    except (StorageError, actors.LostNodesError) as error:
        raise MaskError(f"{error}; {_REMEDY}") from error
    except Exception as error:  # Ray wraps the worker's own error in one of several classes
        raise MaskError(f"a worker failed: {actors.reason(error)}; {_REMEDY}") from error


class BatchProgress:
    """Prints from time to time how many videos are done."""

    def __init__(self, total: int) -> None:
        """Start the clock; `total` is the number of videos to mask."""
        self.records: list[Mapping[str, Any]] = []
        self._total, self._frames, self._failed = total, 0, 0
        self._started = self._printed = time.monotonic()

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a video that was published."""
        self.records.append(record)
        self._frames += record["frames"]
        self._failed += record["status"] == "failed"

    def show(self) -> None:
        """Print a line if the last one is at least `LOG_SECONDS` old."""
        now, count = time.monotonic(), len(self.records)
        if now - self._printed < LOG_SECONDS or not count:
            return
        self._printed, spent = now, now - self._started
        left = clock((self._total - count) * spent / count)
        print(
            f"{count:,} of {self._total:,} videos, {self._failed:,} failed,"
            f" {self._frames / spent:,.1f} frames/s, {left} left"
        )


class Publisher:
    """Publishes the masks of videos; a video whose masks cannot be published has failed.

    Storage that refuses several videos in a row refuses all: then the job ends.
    """

    def __init__(self, out: Location, parts: Location) -> None:
        """Publish to the folder of a run; workers wrote the masks to `parts`."""
        self._out, self._parts, self._refused = out, parts, 0

    def publish(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """Publish a video, and return the record that its marker then has.

        Raises:
            StorageError: storage refused `REFUSED_IN_A_ROW` videos, or even a marker.
        """
        try:
            publish(record, self._out, self._parts)
        except StorageError as error:
            self._refused += 1
            if self._refused >= REFUSED_IN_A_ROW:
                raise
            failed = {**record, "frames": 0, "status": "failed", "code": "storage"}
            failed["error"] = f"the masks cannot be published: {error}"
            publish(failed, self._out, self._parts)
            return failed
        self._refused = 0
        return record


def publish(record: Mapping[str, Any], out: Location, parts: Location) -> None:
    """Move a video's masks to their final name, then write its marker; retry if storage fails.

    Args:
        record: of the video; it becomes the marker.
        out: folder of the run.
        parts: folder of this start of the job, where the worker wrote the masks.

    Raises:
        StorageError: storage refuses.
    """
    for wait in PUBLISH_WAITS:
        try:
            _publish(record, out, parts)
        except StorageError as error:
            if error.errno in _LASTING:
                raise
            time.sleep(wait)
        else:
            return
    _publish(record, out, parts)


def _publish(record: Mapping[str, Any], out: Location, parts: Location) -> None:
    video_id = record["video_id"]
    marker = marker_place(out, video_id)
    if record["status"] != "failed":
        marker.delete()  # of other settings: it must not vouch for the new masks
        part, masks = part_place(parts, video_id), masks_place(out, video_id)
        try:
            part.move(masks)
        except StorageError:  # an earlier try may have moved it and lost the answer
            if part.exists() or not masks.exists():
                raise
    marker.write_json(record)
    if record["status"] == "failed":
        with suppress(StorageError):  # masks of other prompts, if any; no marker vouches for them
            masks_place(out, video_id).delete()
