"""Exports and scores masked videos, a video at a time."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.cluster import actors
from jobs.masks.annotations import FRAME_FOLDERS, OTHERS, Labels, export_frames
from jobs.masks.attempts import Attempts, node_alive, node_here, refusal_message
from jobs.masks.batch import mask_errors, new_token
from jobs.masks.config import MaskConfig
from jobs.masks.crops import VideoCrops, export_crops
from jobs.masks.exports import BATCH_FORMATS, export_video, named_table
from jobs.masks.score import score_video
from jobs.run.signals import Stop
from jobs.storage.location import Location

FRAMES = "frames"
"""The frames themselves, among formats that are written of a video: into the folders of those of
`FRAME_FOLDERS` that are written, too."""


def finish_video(
    out: Location,
    record: Mapping[str, Any],
    kinds: Sequence[str],
    truth: str | None,
    crops: VideoCrops | None = None,
    labels: Labels | None = None,
) -> dict[str, Any]:
    """Export and score a video.

    Args:
        out: folder of the run.
        record: of the video.
        kinds: formats to export that have files of each video.
        truth: path or s3:// address of the true masks; None: no scores.
        crops: what `--export crops` writes of the video; None: nothing.
        labels: names of its objects, and of all classes; None: none have names.

    Returns:
        `video_id`; `errors`, a message for each export or score that failed; `notes`, what films
        lack; `crops`, the number of crops by the names of the objects; and `scores`, as
        `score_video` returns them, or None.
    """
    errors: list[str] = []
    notes: list[str] = []
    made: dict[str, int] = {}
    scores, table = None, None
    for kind in kinds:
        try:
            table = named_table(out, record) if table is None else table
            if kind == "crops":
                made = export_crops(out, record, table, crops) if crops else {}
                continue
            if kind == FRAMES:
                export_frames(out, record, table, [one for one in kinds if one in FRAME_FOLDERS])
            if kind in (FRAMES, OTHERS):
                continue
            lacks = export_video(out, record, table, kind, labels or Labels())
            notes += [f"{record['video_id']} as {kind}: {note}" for note in lacks]
        except Exception as error:  # it costs neither the other videos nor the other formats
            reason = f"{type(error).__name__}: {error}"
            errors.append(f"not exported: {record['video_id']} as {kind}: {reason}")
    try:
        if truth is not None:
            table = named_table(out, record) if table is None else table
            scores = score_video(table, record["video_id"], Location.parse(truth))
    except Exception as error:
        errors.append(f"not scored: {record['video_id']}: {type(error).__name__}: {error}")
    return {
        "video_id": record["video_id"],
        "errors": errors,
        "notes": notes,
        "crops": made,
        "scores": scores,
    }


class Finisher:
    """An actor of Ray Data that exports and scores the video of a record."""

    def __init__(
        self,
        out: str,
        token: str,
        kinds: Sequence[str],
        truth: str | None,
        time_limit: float,
        node: Callable[[], str] = node_here,
        alive: Callable[[str], bool] = node_alive,
    ) -> None:
        """Take the arguments of `finish_video` and, from `token` on, those of `Masker`."""
        self.out, self.kinds, self.truth, self.node = Location.parse(out), kinds, truth, node
        self.time_limit = time_limit
        self.attempts = Attempts(self.out / ".parts" / token / "finishing", alive)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Turn a row {"record": JSON, "crops": JSON, "labels": JSON} into {"finished": JSON}."""
        record = json.loads(row["record"])
        crops = json.loads(row["crops"])
        wanted = None if crops is None else VideoCrops.from_json(crops)
        labels = Labels.from_json(json.loads(row["labels"]))
        try:
            code = self.attempts.begin(record["video_id"], self.node())
            if code is None:
                with self.attempts.limited(self.time_limit):
                    finished = finish_video(
                        self.out, record, self.kinds, self.truth, wanted, labels
                    )
                self.attempts.done()
                return {"finished": json.dumps(finished)}
            reason = refusal_message(code, self.time_limit)
        except OSError as error:
            reason = str(error)
        failed = f"not exported: {record['video_id']}: {reason}"
        finished = {"video_id": record["video_id"], "errors": [failed], "notes": [], "crops": {}}
        finished["scores"] = None
        return {"finished": json.dumps(finished)}


def finish_all(
    config: MaskConfig,
    out: Location,
    records: Sequence[Mapping[str, Any]],
    stop: Stop,
    crops: Mapping[str, VideoCrops],
    labels: Mapping[str, Labels],
) -> dict[str, dict[str, Any]]:
    """Export and score videos, on workers if there are several.

    Args:
        config: settings of the job.
        out: folder of the run.
        records: of the videos.
        stop: ends the work when a person interrupts it.
        crops: what `--export crops` writes of each video, by its id.
        labels: what the objects of each video are called, by its id.

    Returns:
        What `finish_video` returns for each video, by its id.
    """
    done: dict[str, dict[str, Any]] = {}
    kinds = [kind for kind in config.export if kind not in BATCH_FORMATS]
    if config.export_frames:
        kinds.append(FRAMES)
        if not config.export or set(config.export) - FRAME_FOLDERS.keys():
            kinds.append(OTHERS)
    if not on_workers(config, len(records)):
        for record in records:
            if stop.requested.is_set():
                break
            wanted = crops.get(record["video_id"])
            done[record["video_id"]] = finish_video(
                out, record, kinds, config.score, wanted, labels[record["video_id"]]
            )
        return done

    def take(row: dict[str, Any]) -> str:
        finished = json.loads(row["finished"])
        done[finished["video_id"]] = finished
        return str(finished["video_id"])

    token = new_token()
    rows = {}
    for record in records:
        wanted = crops.get(record["video_id"])
        rows[record["video_id"]] = {
            "record": json.dumps(record),
            "crops": json.dumps(None if wanted is None else wanted.to_json()),
            "labels": json.dumps(labels[record["video_id"]].to_json()),
        }
    arguments = (config.out, token, kinds, config.score, config.time_limit)
    with mask_errors():
        actors.run(rows, Finisher, arguments, config, None, take, stop, lambda: None)
    (out / ".parts" / token).delete()
    return done


def on_workers(config: MaskConfig, videos: int) -> bool:
    """Return whether to finish videos on workers: one worker, or one video, is not worth it."""
    return min(config.workers, videos) > 1 and bool(
        config.export or config.export_frames or config.score
    )
