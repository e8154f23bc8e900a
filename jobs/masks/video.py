"""Masks one video on a worker, within a time limit, and returns a record of the result.

A worker writes to a folder that only this start of the job reads; the driver publishes. So a worker
that a killed job left behind does no harm, however late it writes.
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch

from jobs.masks.attempts import Attempts, node_alive, node_here, refusal_message
from jobs.masks.folder import hash_of, part_place
from jobs.masks.plan import VideoWork, settings_of
from jobs.run.device import settle
from jobs.storage import scratch
from jobs.storage.cache import localize_in
from jobs.storage.location import Location
from jobs.weights.segmenter import load_segmenter, locate
from masking.manifest.faults import ManifestError
from masking.outputs.polish import OFF, PolishConfig, polish
from masking.outputs.review import READ, Span, missing_of, spans
from masking.outputs.rows import MaskFile
from masking.segmenter.sam import Precision, Segmenter
from masking.tracking.masking import Masking, resolve_prompts
from masking.tracking.masks import FrameMasks
from masking.tracking.prefetch import prefetch
from masking.tracking.state import TrackConfig
from masking.video.frame import VideoError
from masking.video.reader import Video

RETRIED = ("storage", "out_of_memory", "not_found")
"""Codes of failures that the next start of the job tries again without `--retry-failed`: their
cause may not be the video. A file that the driver found and a worker does not is often on a mount
that the worker's node lacks."""


CODES = {
    "not_found": "no file or folder is at the uri",
    "not_a_video": "the file does not open as a video, or an image of the folder does not decode",
    "no_video_stream": "the file has no video stream",
    "no_decoder": "there is no decoder for the codec of the video",
    "no_frames": "no frame of the video decodes",
    "damaged": "some of the frames did not decode; the status is partial",
    "manifest": "rows of the manifest have faults, and `--skip-invalid` left the video out",
    "prompts": "the prompts do not fit the size, the length or the timestamps of the video",
    "storage": "storage failed while the video was read or its masks were published",
    "out_of_memory": "the worker or its GPU ran out of memory",
    "quarantined": "the video ended its worker process twice",
    "time_limit": "the video took longer than `--time-limit`",
    "unexpected": "an error that is none of the above",
}
"""Codes of videos that failed or are partial, and what each means."""


class WorkerError(RuntimeError):
    """A worker cannot mask any video."""


def mask(
    work: VideoWork,
    segmenter: Segmenter,
    config: TrackConfig,
    target: Path,
    polishing: PolishConfig = OFF,
) -> dict[str, Any]:
    """Mask a video, and write its masks to a local file.

    Args:
        work: the video.
        segmenter: makes the masks.
        config: settings of the tracker.
        target: file to write; a video in S3 is fetched to the same folder.
        polishing: how masks are polished before they are written.

    Returns:
        The video's record; its status is ok, partial (some of the file did not decode) or failed.
    """
    started = time.perf_counter()
    record = _new_record(work)
    try:
        path = localize_in(target.parent / "video", Location.parse(work.uri))
        with Video.open(path) as video:
            record["content_sha256"] = hash_of(path)
            plans, size = resolve_prompts(video, work.rows)
            with Masking(video, segmenter, plans, size, config) as run:
                shown = (polish(frame, polishing, config.exclusive) for frame in run)
                _write(run, shown, target, record, video.names)
            record |= _stream_facts(video, size)
    except VideoError as error:
        record |= {"code": error.code, "error": str(error)}
    except ManifestError as error:
        record |= {"code": "prompts", "error": str(error)}
    except OSError as error:  # from storage, or from this machine's disk
        record |= {"code": "storage", "error": str(error)}
    except MemoryError as error:
        record |= {"code": "out_of_memory", "error": str(error) or "the worker is out of memory"}
    except torch.OutOfMemoryError as error:
        advice = "; give each worker more of a GPU (--gpus-per-worker), or choose smaller --weights"
        record |= {"code": "out_of_memory", "error": str(error).splitlines()[0] + advice}
    except torch.AcceleratorError:
        os._exit(1)  # this process can no longer use the GPU; its attempt at the video counts
    except Exception as error:  # an error of one video must not end the batch
        record |= {"code": "unexpected", "error": f"{type(error).__name__}: {error}"}
    record["seconds"] = time.perf_counter() - started
    return record


def _write(
    run: Masking,
    shown: Generator[FrameMasks],
    target: Path,
    record: dict[str, Any],
    names: Sequence[str] | None,
) -> None:
    file = MaskFile(str(target), names)
    states: dict[int, Counter[str]] = {number: Counter() for number in run.objects}
    try:
        # Objects are tracked in a thread of their own: run lengths are made meanwhile.
        with closing(prefetch(shown, "track", most=1)) as frames:
            for frame in frames:
                file.add(frame)
                record["frames"] += 1
                for number, state in zip(frame.objects, frame.states, strict=True):
                    states[number][state or "not_asked"] += 1
    finally:
        file.close()
    report = run.report
    lost = report.corrupt_packets > 0 or report.cut_off
    table = pq.read_table(target, columns=list(READ))
    missing = missing_of(table)
    content = target.read_bytes()
    record |= {
        "status": "partial" if lost else "ok",
        "code": "damaged" if lost else None,
        "corrupt_packets": report.corrupt_packets,
        "cut_off": report.cut_off,
        "unsorted": report.unsorted,
        "notes": report.notes,
        "objects": {number: dict(counts) for number, counts in states.items()},
        "review": [_review(span, names) for span in spans(record["video_id"], table)],
        "expected": {
            "frames": int(np.count_nonzero([s is not None for s in table["state"].to_pylist()])),
            "missing": float(missing.sum()),
        },
        "masks_sha256": hashlib.sha256(content).hexdigest(),
        "masks_bytes": len(content),
    }


def _review(span: Span, names: Sequence[str] | None) -> dict[str, Any]:
    """Return a span as review.csv has it, where the frames of a folder have names."""
    return vars(span) | ({} if names is None else {"click_name": names[span.click_frame]})


def _stream_facts(video: Video, size: tuple[int, int]) -> dict[str, Any]:
    rate = None if video.rate is None else float(video.rate)
    return {
        "height": size[0],
        "width": size[1],
        "rotation": video.rotation,
        "rate": rate,
        "codec": video.codec,
    }


class Masker:
    """An actor of Ray Data that holds a segmenter and masks the video of each row."""

    def __init__(
        self,
        out: str,
        token: str,
        weights: str,
        wanted: str,
        precision: Precision,
        config: TrackConfig,
        threads: int,
        device: torch.device,
        time_limit: float,
        gpus: float = 1.0,
        polishing: PolishConfig = OFF,
        node: Callable[[], str] = node_here,
        alive: Callable[[str], bool] = node_alive,
    ) -> None:
        """Load the segmenter.

        Args:
            out: folder of the run.
            token: name of this start of the job.
            weights: name or path of the weights.
            wanted: what `settings_of` returned for the weights that the driver read.
            precision: precision of the encoder, as in `masking.segmenter.sam.load`.
            config: settings of the tracker.
            threads: CPU threads of this process.
            device: device of the segmenter.
            time_limit: seconds that a video may take.
            gpus: share of the GPU that this process has.
            polishing: how masks are polished before they are written.
            node: returns the id of this node.
            alive: returns whether the node with an id is alive.

        Raises:
            WorkerError: the weights differ from those of the driver.
        """
        settle(device, gpus)
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)  # by default it takes all cores, although workers share them
        self.segmenter = load_segmenter(weights, device, precision)
        if settings_of(locate(weights), precision, config, polishing) != wanted:
            raise WorkerError(
                f"--weights {weights}: node {node()} has other weights than the node where the job"
                " was started; put them in storage that all nodes share"
            )
        self.config, self.time_limit, self.node = config, time_limit, node
        self.polishing = polishing
        self.parts = Location.parse(out) / ".parts" / token
        self.attempts = Attempts(self.parts / "attempts", alive)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Turn a row {"work": JSON} into {"record": JSON}; the masks are written below `.parts`."""
        work = VideoWork.from_json(row["work"])
        record = _new_record(work)
        try:
            code = self.attempts.begin(work.video_id, self.node())
            if code is not None:
                record |= {"code": code, "error": refusal_message(code, self.time_limit)}
            else:
                record |= self._mask(work)
                self.attempts.done()
        except OSError as error:  # from storage, or this node's disk: the batch continues
            record |= {"status": "failed", "code": "storage", "error": str(error)}
        return {"record": json.dumps(record)}

    def _mask(self, work: VideoWork) -> dict[str, Any]:
        with scratch.folder() as folder, self.attempts.limited(self.time_limit):
            record = mask(work, self.segmenter, self.config, folder / "masks", self.polishing)
            if record["status"] != "failed":
                content = (folder / "masks").read_bytes()
                part_place(self.parts, work.video_id).write_bytes(content)
        return record


def _new_record(work: VideoWork) -> dict[str, Any]:
    """Return the record of a video that is not masked yet."""
    return {
        "video_id": work.video_id, "uri": work.uri, "key": work.key, "status": "failed",
        "code": None, "error": None, "frames": 0, "extra": dict(work.extra), "seconds": 0.0,
    }  # fmt: skip
