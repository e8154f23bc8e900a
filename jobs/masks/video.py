"""Masking one video on a worker: attempts written down, a time limit, a record of what came out.

A worker writes under a name that only this start of the job reads; the driver publishes. So a
worker that a killed job left behind harms nothing, however late it writes.
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pyarrow.parquet as pq
import torch

from jobs.masks.attempts import Attempts, node_alive, node_here, why_not
from jobs.masks.folder import hash_of, part_place
from jobs.masks.plan import Work, settings_of
from jobs.storage import scratch
from jobs.storage.cache import localize_in
from jobs.storage.location import Location
from jobs.weights.segmenter import load_segmenter, locate
from masking.manifest.rows import ManifestError
from masking.outputs.rows import MaskFile, spans
from masking.segmenter.sam import Precision, Segmenter
from masking.tracking.masking import Masking, plan
from masking.tracking.state import TrackConfig
from masking.video.reader import Video, VideoError

RETRIED = ("storage", "out_of_memory", "not_found")
"""Codes of failures that a rerun tries again unasked: they need not be the video's fault. What the
job found and a worker does not is a mount that its node lacks."""


class WorkerError(RuntimeError):
    """A worker that cannot do any work; the message is what a person needs of it."""


def mask(work: Work, segmenter: Segmenter, config: TrackConfig, target: Path) -> dict[str, Any]:
    """Mask a video into a local file; a video in S3 lies beside it meanwhile.

    Returns:
        Its record: status ok, partial (something did not decode) or failed, with a code.
    """
    started = time.perf_counter()
    record = _begun(work)
    try:
        path = localize_in(target.parent / "video", Location.parse(work.uri))
        with Video.open(path) as video:
            record["content_sha256"] = hash_of(path)
            plans, size = plan(video, work.rows)
            with Masking(video, segmenter, plans, size, config) as run:
                _write(run, target, record)
            record |= _about(video, size)
    except VideoError as error:
        record |= {"code": error.code, "error": str(error)}
    except ManifestError as error:
        record |= {"code": "prompts", "error": str(error)}
    except OSError as error:  # of storage, and of this machine's own disk
        record |= {"code": "storage", "error": str(error)}
    except MemoryError as error:
        record |= {"code": "out_of_memory", "error": str(error) or "no memory left"}
    except torch.OutOfMemoryError as error:
        record |= {"code": "out_of_memory", "error": str(error).splitlines()[0]}
    except torch.AcceleratorError:
        os._exit(1)  # nothing works on this GPU's context any more; the attempt counts
    except Exception as error:  # one video's trouble, whatever it is, is not the batch's
        record |= {"code": "unexpected", "error": f"{type(error).__name__}: {error}"}
    record["seconds"] = time.perf_counter() - started
    return record


def _write(run: Masking, target: Path, record: dict[str, Any]) -> None:
    file = MaskFile(str(target))
    states: dict[int, Counter[str]] = {number: Counter() for number in run.objects}
    try:
        for frame in run:
            file.add(frame)
            record["frames"] += 1
            for number, state in zip(frame.objects, frame.states, strict=True):
                states[number][state or "not_asked"] += 1
    finally:
        file.close()
    report = run.report
    lost = report.corrupt_packets > 0 or report.cut_off
    rows = pq.read_table(target, columns=["frame", "object_id", "state", "quality"]).to_pylist()
    record |= {
        "status": "partial" if lost else "ok",
        "code": "damaged" if lost else None,
        "corrupt_packets": report.corrupt_packets,
        "cut_off": report.cut_off,
        "unsorted": report.unsorted,
        "notes": report.notes,
        "objects": {number: dict(counts) for number, counts in states.items()},
        "review": [vars(span) for span in spans(record["video_id"], rows)],
        "masks_sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
    }


def _about(video: Video, size: tuple[int, int]) -> dict[str, Any]:
    rate = None if video.rate is None else float(video.rate)
    return {
        "height": size[0],
        "width": size[1],
        "rotation": video.rotation,
        "rate": rate,
        "codec": video.codec,
    }


class Masker:
    """What an actor of Ray Data holds: the segmenter; called with a video, it masks that one."""

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
        node: Callable[[], str] = node_here,
        alive: Callable[[str], bool] = node_alive,
    ) -> None:
        """Load the segmenter.

        Args:
            out: folder of the run.
            token: of this start of the job.
            weights: a name or a path.
            wanted: `settings_of` the weights that the driver saw.
            precision: as of `masking.segmenter.sam.load`.
            config: how objects are followed.
            threads: of this process.
            device: where it computes.
            time_limit: seconds that a video may take.
            node: name of the node that this is.
            alive: whether a node of a name is still there.
        """
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)  # it would take all cores, beside the other workers
        self.segmenter = load_segmenter(weights, device, precision)
        if settings_of(locate(weights), precision, config) != wanted:
            raise WorkerError(
                f"--weights {weights} are others on node {node()} than where the job was started;"
                " put them where all nodes see the same"
            )
        self.config, self.time_limit, self.node = config, time_limit, node
        self.parts = Location.parse(out) / ".parts" / token
        self.attempts = Attempts(self.parts / "attempts", alive)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Mask a video: {"work": JSON} to {"record": JSON}, its masks under `.parts`."""
        work = Work.from_json(row["work"])
        record = _begun(work)
        try:
            code = self.attempts.begin(work.video_id, self.node())
            if code is not None:
                record |= {"code": code, "error": why_not(code, self.time_limit)}
            else:
                record |= self._masked(work)
                self.attempts.done()
        except OSError as error:  # storage, or this node's disk: the batch goes on without it
            record |= {"status": "failed", "code": "storage", "error": str(error)}
        return {"record": json.dumps(record)}

    def _masked(self, work: Work) -> dict[str, Any]:
        with scratch.folder() as folder, self.attempts.limited(self.time_limit):
            record = mask(work, self.segmenter, self.config, folder / "masks")
            if record["status"] != "failed":
                content = (folder / "masks").read_bytes()
                part_place(self.parts, work.video_id).write_bytes(content)
        return record


def _begun(work: Work) -> dict[str, Any]:
    """The record of a video of which nothing is masked yet."""
    return {
        "video_id": work.video_id, "uri": work.uri, "key": work.key, "status": "failed",
        "code": None, "error": None, "frames": 0, "extra": dict(work.extra), "seconds": 0.0,
    }  # fmt: skip
