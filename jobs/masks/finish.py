"""What is made of masked videos once they are there: exports and scores, a video at a time."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobs.cluster import actors
from jobs.masks.attempts import Attempts, node_alive, node_here, why_not
from jobs.masks.batch import explained, new_token
from jobs.masks.config import MaskConfig
from jobs.masks.exports import export_video
from jobs.masks.folder import table_of
from jobs.masks.score import score_video
from jobs.run.signals import Stop
from jobs.storage.location import Location


def finish(
    out: Location, record: Mapping[str, Any], kinds: Sequence[str], truth: str | None
) -> dict[str, Any]:
    """Export and score a video: {"video_id", "errors": why not, "scores"}."""
    errors, scores, table = [], None, None
    for kind in kinds:
        try:
            table = table_of(out, record["video_id"]) if table is None else table
            export_video(out, record, table, kind)
        except Exception as error:  # one video's trouble is not the batch's, nor other formats'
            reason = f"{type(error).__name__}: {error}"
            errors.append(f"not exported: {record['video_id']} as {kind}: {reason}")
    try:
        if truth is not None:
            scores = score_video(out, record["video_id"], Location.parse(truth))
    except Exception as error:
        errors.append(f"not scored: {record['video_id']}: {type(error).__name__}: {error}")
    return {"video_id": record["video_id"], "errors": errors, "scores": scores}


class Finisher:
    """What an actor of Ray Data holds; called with a record, it finishes that video."""

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
        """As of `finish`; `token`, `time_limit`, `node` and `alive` as of `Masker`."""
        self.out, self.kinds, self.truth, self.node = Location.parse(out), kinds, truth, node
        self.time_limit = time_limit
        self.attempts = Attempts(self.out / ".parts" / token / "finishing", alive)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Finish a video: {"record": JSON} to {"finished": JSON}."""
        record = json.loads(row["record"])
        try:
            code = self.attempts.begin(record["video_id"], self.node())
            if code is None:
                with self.attempts.limited(self.time_limit):
                    finished = finish(self.out, record, self.kinds, self.truth)
                self.attempts.done()
                return {"finished": json.dumps(finished)}
            reason = why_not(code, self.time_limit)
        except OSError as error:
            reason = str(error)
        failed = f"not exported: {record['video_id']}: {reason}"
        finished = {"video_id": record["video_id"], "errors": [failed], "scores": None}
        return {"finished": json.dumps(finished)}


def finish_all(
    config: MaskConfig, out: Location, records: Sequence[Mapping[str, Any]], stop: Stop
) -> dict[str, dict[str, Any]]:
    """Export and score videos, over the workers where there are several; by video."""
    done: dict[str, dict[str, Any]] = {}
    kinds = [kind for kind in config.export if kind not in ("coco", "youtube-vos")]
    if not on_workers(config, len(records)):
        for record in records:
            if stop.requested.is_set():
                break
            done[record["video_id"]] = finish(out, record, kinds, config.score)
        return done

    def take(row: dict[str, Any]) -> str:
        finished = json.loads(row["finished"])
        done[finished["video_id"]] = finished
        return str(finished["video_id"])

    token = new_token()
    rows = {record["video_id"]: {"record": json.dumps(record)} for record in records}
    arguments = (config.out, token, kinds, config.score, config.time_limit)
    with explained():
        actors.run(rows, Finisher, arguments, config, None, take, stop, lambda: None)
    (out / ".parts" / token).delete()
    return done


def on_workers(config: MaskConfig, videos: int) -> bool:
    """Whether finishing is worth workers: of one, or for one video, the job's process will do."""
    return min(config.workers, videos) > 1 and bool(config.export or config.score)
