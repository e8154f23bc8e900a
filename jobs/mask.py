"""Mask videos from a table of clicks, on as many workers as there are; resumable, one by one.

    python -m jobs.mask --manifest clicks.csv --weights mini --out runs/masks --workers 2

A manifest is CSV, JSON lines or Parquet, one row a point: uri, object_id, frame (or time_s), x, y,
label (`masking.manifest.rows.COLUMNS` has all). `--out` then holds

    masks/<video_id>.parquet   a row a frame and object (`masking.outputs.rows`)
    videos.parquet             a row a video: status, code and error, frames, states of its objects
    review.csv                 uncertain and lost spans, worst first, and where a click would help
    summary.json               counts, frames per second, versions
    export/                    with --export: DAVIS, PNG, COCO, YouTube-VOS, cut-outs, overlays
    score.json                 with --score TRUTH: J, F and J&F of every object

A video is done when its marker under `commits/` says so, under a key of the file, its prompts, the
weights and the settings; the same command does what is missing or changed. A video that fails is a
row with its code, and costs the others nothing. What has no sound marker is no result, whatever
else lies in the folder.
"""

import fcntl
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from jobs.cluster import connect
from jobs.masks import plan as mask_plan
from jobs.masks import score
from jobs.masks.batch import mask_all, mask_errors
from jobs.masks.config import MaskConfig
from jobs.masks.exports import delete_exports, export_all
from jobs.masks.finish import finish_all, on_workers
from jobs.masks.folder import masked_videos, read_markers
from jobs.masks.ledger import ledger_bytes, review_csv
from jobs.masks.plan import BatchPlan, VideoWork
from jobs.masks.video import RETRIED
from jobs.run.config import ConfigError
from jobs.run.folder import check_same, describe, hardware, versions
from jobs.run.main import run_job
from jobs.run.signals import Stop
from jobs.run.submitted import refuse_relative
from jobs.storage.location import Location, check_writable
from jobs.weights.segmenter import NAMES, announce, locate
from masking.outputs.formats import DAVIS_IDS
from masking.segmenter.sam import CheckpointError


def run(config: MaskConfig) -> int:
    """The stages of the job, in order."""
    # 1. What can be known without workers.
    refuse_relative(config.out)
    config = absolute(config)
    out = Location.parse(config.out)
    wanted = mask_plan.settings_of(locate(config.weights), config.precision, config.track)
    plan = mask_plan.plan_batch(config.manifest, config.root, wanted)
    if plan.unreadable or (plan.faults and not config.skip_invalid):
        raise ConfigError(listed(plan.faults, bool(plan.unreadable)))
    if "davis" in config.export and (faults := beyond_davis(plan)):
        raise ConfigError("\n".join(faults))
    if config.score is not None and not Location.parse(config.score).exists():
        raise ConfigError(f"--score {config.score}: there is no such folder")
    done, there = read_markers(out), masked_videos(out)
    todo = [work for work in plan.work if not is_done(done.get(work.video_id), work, config, there)]
    print(planned(plan, len(plan.work) - len(todo)))
    if config.check:
        for fault in plan.faults:  # of what --skip-invalid leaves out
            print(fault)
        return 0
    check_writable(out)
    check_same(out, config, began="commits")
    with alone(out):
        describe(out, config)
        announce(config.weights)
        delete_exports(out, [work.video_id for work in todo if work.video_id in there])
        return work_on(config, out, plan, todo, wanted)


@contextmanager
def alone(out: Location) -> Iterator[None]:
    """Refuse a second start on the same local folder: each would delete what the other has not
    published. Object storage has no such locks."""
    with ExitStack() as held:
        if out.local_path is not None:
            out.local_path.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((out.local_path / ".lock").open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"--out {out}: another jobs.mask is at work there; wait for it, or stop it"
                ) from None
            except OSError:  # a file system without locks
                pass
        yield


def work_on(
    config: MaskConfig, out: Location, plan: BatchPlan, todo: Sequence[VideoWork], wanted: str
) -> int:
    """The stages that take time; the exit code."""
    started = time.monotonic()
    needed = bool(todo) or on_workers(config, len(plan.work))
    with Stop() as stop, connect.connect() if needed else nullcontext():
        # 2. The missing videos, on workers.
        records = mask_all(config, out, todo, wanted, stop) if todo else []
        seconds = time.monotonic() - started
        if len(records) < len(todo):
            return stopped(stop)
        # 3. What it leaves.
        with mask_errors():
            good, failed = conclude(config, out, plan, records, seconds)
            lost = finish(config, out, plan, good, len(failed), stop)
        if stop.requested.is_set():
            return stopped(stop)
    return 1 if lost + len(failed) + len(plan.loose) > config.max_failed else 0


def stopped(stop: Stop) -> int:
    """Say so; the exit code."""
    print("stopped; the same command goes on")
    return stop.exit_code


def planned(plan: BatchPlan, done: int) -> str:
    """What there is to do, in a line."""
    objects = sum(len({row.object_id for row in work.rows}) for work in plan.work)
    return (
        f"{len(plan.work):,} videos, {objects:,} objects,"
        f" {done:,} videos done, {len(plan.invalid):,} with faults"
    )


def absolute(config: MaskConfig) -> MaskConfig:
    """The same config with paths that mean the same in a worker's folder, or on another day."""
    named = config.weights in NAMES
    return replace(
        config,
        out=str(Location.parse(config.out)),
        manifest=tuple(str(Location.parse(path)) for path in config.manifest),
        root=None if config.root is None else str(Location.parse(config.root)),
        weights=config.weights if named else str(Location.parse(config.weights)),
        score=None if config.score is None else str(Location.parse(config.score)),
    )


def listed(faults: Sequence[str], unreadable: bool) -> str:
    """All faults, and what to do; `unreadable`: whether some are of whole manifests."""
    if unreadable:
        remedy = "Mend them; --skip-invalid leaves out videos, not manifests that do not read."
    else:
        remedy = "Mend them, or leave their videos out with --skip-invalid."
    return "\n".join(
        [f"{len(faults):,} faults in the manifests; nothing was started:", *faults,
         remedy]
    )  # fmt: skip


def beyond_davis(plan: BatchPlan) -> list[str]:
    """Of each video whose objects an indexed PNG cannot hold, why."""
    largest = {work.video_id: max(row.object_id for row in work.rows) for work in plan.work}
    return [
        f"--export davis: {video_id}: object {number}; an indexed PNG holds ids up to {DAVIS_IDS}."
        " Leave davis out, or number the objects from 1 in each video"
        for video_id, number in largest.items()
        if number > DAVIS_IDS
    ]


def names_of(plan: BatchPlan, records: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, str]]:
    """Of the videos of the records, what the manifest calls their objects."""
    wanted = {record["video_id"] for record in records}
    return {
        work.video_id: {row.object_id: row.name for row in work.rows if row.name}
        for work in plan.work
        if work.video_id in wanted
    }


def is_done(
    marker: Mapping[str, Any] | None, work: VideoWork, config: MaskConfig, there: Collection[str]
) -> bool:
    """Whether nothing is to be done for a video; `there`: those that have masks."""
    if marker is None or marker["key"] != work.key:
        return False
    if marker["status"] != "failed":
        return work.video_id in there  # they may have been deleted by hand
    return not config.retry_failed and marker["code"] not in RETRIED


Records = list[Mapping[str, Any]]


def conclude(
    config: MaskConfig,
    out: Location,
    plan: BatchPlan,
    records: Sequence[Mapping[str, Any]],
    seconds: float,
) -> tuple[Records, Records]:
    """Write ledger, review and summary; says what came out; records with masks, and those failed.

    Args:
        config: of the job.
        out: its folder.
        plan: what was asked for.
        records: of the videos that this start masked.
        seconds: that it took.
    """
    markers = read_markers(out)
    # Where the video is and what its columns say now: the marker has it from when it was masked.
    mine = [
        {**markers[work.video_id], "uri": work.uri, "extra": dict(work.extra)}
        for work in plan.work
        if work.video_id in markers
    ]
    good: Records = [record for record in mine if record["status"] != "failed"]
    failed: Records = [record for record in mine if record["status"] == "failed"]
    failed += [
        {"video_id": video_id, "status": "failed", "code": "manifest", "error": "; ".join(faults)}
        for video_id, faults in plan.invalid.items()
    ]
    (out / "videos.parquet").write_bytes(ledger_bytes([*good, *failed]))
    (out / "review.csv").write_text(review_csv(good, plan.accepted))
    frames = sum(record["frames"] for record in records)
    summary = {
        "videos": len(good) + len(failed),
        "ok": sum(record["status"] == "ok" for record in good),
        "partial": sum(record["status"] == "partial" for record in good),
        "failed": len(failed),
        "codes": Counter(record["code"] for record in failed),
        "loose_faults": plan.loose,
        "frames": sum(record["frames"] for record in good),
        "made_videos": len(records),
        "made_frames": frames,
        "wall_s": seconds,
        "frames_per_s": frames / seconds if records else None,
        "workers": config.workers,
        "versions": versions(),
        "hardware": hardware(),
    }
    (out / "summary.json").write_json(summary)
    pace = f", {frames / seconds:,.1f} frames/s with start-up" if records else ""
    print(
        f"done: {summary['ok']:,} ok, {summary['partial']:,} partial,"
        f" {len(failed):,} failed{pace}\n"
        f"  masks   {out / 'masks'}\n  ledger  {out / 'videos.parquet'}\n"
        f"  review  {out / 'review.csv'}"
    )
    for record in failed[:5]:
        print(f"  failed: {record['video_id']}: {record['code']}: {record['error']}")
    for fault in plan.loose:
        print(f"  left out: {fault}")
    return good, failed


def finish(
    config: MaskConfig, out: Location, plan: BatchPlan, records: Records, failed: int, stop: Stop
) -> int:
    """Exports and scores of the videos that have masks; returns of how many something failed."""
    if not config.export and config.score is None:
        return 0
    done = finish_all(config, out, records, stop)
    if stop.requested.is_set():
        return 0
    errors = [error for each in done.values() for error in each["errors"]]
    for error in errors:
        print(f"  {error}")
    if config.score is not None:
        scores = {name: each["scores"] for name, each in done.items()}
        found = score.summarize(scores, failed)
        (out / "score.json").write_json(found)
        print(f"  score   {out / 'score.json'}")
        score.print_scores(found)
    if config.export:
        export_all(out, names_of(plan, records), config.export)
        print(f"  export  {out / 'export'}")
    return sum(bool(each["errors"]) for each in done.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    return run_job(run, MaskConfig, argv, "jobs.mask", __doc__, (CheckpointError,))


if __name__ == "__main__":
    sys.exit(main())
