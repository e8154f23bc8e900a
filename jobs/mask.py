"""Mask videos from a table of clicks, on as many workers as there are; an interrupted run resumes.

    python -m jobs.mask --manifest clicks.csv --weights mini --out runs/masks --workers 2

A manifest is CSV, JSON lines or Parquet, one row a point: uri, object_id, frame (or time_s), x, y,
label (`masking.manifest.rows.COLUMNS` has all). `--out` then holds

    masks/<video_id>.parquet   a row a frame and object (`masking.outputs.rows`)
    videos.parquet             a row a video: status, code and error, frames, states of its objects
    review.csv                 spans to check: where clicks are expected to gain most
    summary.json               counts, frames per second, versions
    export/                    with --export: DAVIS, PNG, COCO, YouTube-VOS, cut-outs, overlays,
                               crops of the objects
    score.json                 with --score TRUTH: J, F and J&F of every object

A video is done when its marker in `commits/` holds the key of its file, prompts, weights and
settings; the same command masks videos that are missing or changed. A video that fails is a row
with its code, and does not stop the others. Masks without such a marker are no result.
"""

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from jobs.cluster import connect
from jobs.masks import score
from jobs.masks.annotations import plan_labels
from jobs.masks.batch import mask_all, mask_errors
from jobs.masks.config import MaskConfig
from jobs.masks.crops import VideoCrops, conclude_crops, crop_faults, plan_crops
from jobs.masks.exports import delete_exports, export_all
from jobs.masks.finish import finish_all, on_workers
from jobs.masks.folder import read_markers
from jobs.masks.ledger import ledger_bytes, outlook_of, review_csv, review_of
from jobs.masks.names import read_names
from jobs.masks.plan import BatchPlan, VideoWork, plan_batch, settings_of
from jobs.masks.results import read_results
from jobs.run.config import ConfigError
from jobs.run.folder import check_same, describe
from jobs.run.machine import hardware, versions
from jobs.run.main import run_job, working
from jobs.run.signals import Stop
from jobs.run.submitted import absolute, refuse_relative
from jobs.storage.lease import exclusive
from jobs.storage.location import Location, check_writable
from jobs.weights.segmenter import NAMES, announce, judged_by, locate
from masking.manifest.faults import LISTED
from masking.outputs.formats import DAVIS_IDS
from masking.sam2.weights import check as check_weights
from masking.segmenter.sam import SegmenterWeightsError

Records = Sequence[Mapping[str, Any]]
"""Records of videos, as their markers hold them (`jobs.masks.video`)."""


def run(config: MaskConfig) -> int:
    """The stages of the job, in order; returns its exit code."""
    # 1. What can be checked without workers.
    refuse_relative(config.out)
    paths = [
        "out",
        "manifest",
        "root",
        "score",
        "names",
        *([] if config.weights in NAMES else ["weights"]),
    ]
    config = absolute(config, *paths)
    out = Location.parse(config.out)
    wanted = settings_of(locate(config.weights), config.precision, config.track, config.polish)
    plan = plan_batch(config.manifest, config.root, wanted)
    if plan.unreadable or (plan.faults and not config.skip_invalid):
        raise ConfigError(fault_list(plan.faults, bool(plan.unreadable)))
    if "davis" in config.export and (faults := davis_faults(plan)):
        raise ConfigError("\n".join(faults))
    if "crops" in config.export and (faults := crop_faults(named(plan), config.crops)):
        raise ConfigError("\n".join(faults))
    classes = {} if config.names is None else read_names(Location.parse(config.names))
    if config.names is not None and not any(work.video_id in classes for work in plan.work):
        raise ConfigError(
            f"--names {config.names}: none of its {len(classes):,} videos is in the manifests"
        )
    if config.score is not None and not Location.parse(config.score).exists():
        raise ConfigError(f"--score {config.score}: there is no such folder")
    with nullcontext() if config.check else exclusive(out, "jobs.mask"):
        results = read_results(out, plan.work, read=bool(config.export or config.score))
        todo = [work for work in plan.work if not results.is_done(work, config.retry_failed)]
        print_first(results.messages())
        print(plan_line(plan, len(plan.work) - len(todo)))
        if config.check:
            for fault in plan.faults:  # there are some with --skip-invalid
                print(fault)
            return 0
        if todo:
            check_weights(locate(config.weights))
        check_writable(out)
        check_same(out, config, began="commits")
        with working():
            describe(out, config)
            announce(config.weights)
            print(f"states, scores and qualities follow from {judged_by(config.weights)}")
            delete_exports(out, [w.video_id for w in todo if results.has_exports(w.video_id)])
            return mask_videos(config, out, plan, todo, wanted)


def mask_videos(
    config: MaskConfig, out: Location, plan: BatchPlan, todo: Sequence[VideoWork], wanted: str
) -> int:
    """Mask the videos `todo`, then write tables, exports and scores; returns the exit code."""
    started = time.monotonic()
    needed = bool(todo) or on_workers(config, len(plan.work))
    with Stop() as stop, connect.connect() if needed else nullcontext():
        # 2. The missing videos, on workers.
        records = mask_all(config, out, todo, wanted, stop) if todo else []
        seconds = time.monotonic() - started
        if len(records) < len(todo):
            return stopped(stop)
        # 3. Tables, exports, scores.
        with mask_errors():
            masked, failed = conclude(config, out, plan, records, seconds)
            unfinished = finish(config, out, plan, masked, len(failed), stop)
            (out / ".parts").delete()  # of this start, and of starts that were killed
        if stop.requested.is_set():
            return stopped(stop)
    return 1 if unfinished + len(failed) + len(plan.loose) > config.max_failed else 0


def stopped(stop: Stop) -> int:
    """Say that the job was stopped; returns the exit code."""
    print("stopped; the same command resumes")
    return stop.exit_code


def print_first(lines: Sequence[str]) -> None:
    """Print lines, the first of them if there are many."""
    for line in lines[:LISTED]:
        print(line)
    if len(lines) > LISTED:
        print(f"... and {len(lines) - LISTED:,} more")


def plan_line(plan: BatchPlan, done: int) -> str:
    """Return the numbers of videos and objects of a plan, `done` videos of which have masks."""
    objects = sum(len({row.object_id for row in work.rows}) for work in plan.work)
    return (
        f"{len(plan.work):,} videos, {objects:,} objects,"
        f" {done:,} videos done, {len(plan.invalid):,} with faults"
    )


def fault_list(faults: Sequence[str], unreadable: bool) -> str:
    """Return a message with all faults; `unreadable`: whether some are of whole manifests."""
    remedy = "Correct them, or leave out their videos with --skip-invalid."
    if unreadable:
        remedy = "Correct them; --skip-invalid leaves out videos, not unreadable manifests."
    count = f"{len(faults):,} fault{'s' * (len(faults) > 1)}"
    title = f"{count} in the manifests; nothing was started:"
    return "\n".join([title, *faults, remedy])


def davis_faults(plan: BatchPlan) -> list[str]:
    """Return a message for each video with an object id that an indexed PNG cannot hold."""
    largest = {work.video_id: max(row.object_id for row in work.rows) for work in plan.work}
    return [
        f"--export davis: {video_id}: object {number}; an indexed PNG holds ids up to {DAVIS_IDS}."
        " Leave davis out, or number the objects from 1 in each video"
        for video_id, number in largest.items()
        if number > DAVIS_IDS
    ]


def named(plan: BatchPlan) -> set[str]:
    """Return the names of all objects of a plan."""
    return {row.name for work in plan.work for row in work.rows if row.name}


def object_names(plan: BatchPlan, records: Records) -> dict[str, dict[int, str]]:
    """Return the manifest's names of objects, by video of the records and object id."""
    wanted = {record["video_id"] for record in records}
    return {
        work.video_id: {row.object_id: row.name for row in work.rows if row.name}
        for work in plan.work
        if work.video_id in wanted
    }


def with_classes(
    config: MaskConfig, names: Mapping[str, Mapping[int, str]]
) -> dict[str, dict[int, str]]:
    """Return names of objects, with the classes of `--names` for objects that have none."""
    classes = {} if config.names is None else read_names(Location.parse(config.names))
    return {video_id: {**classes.get(video_id, {}), **mine} for video_id, mine in names.items()}


def conclude(
    config: MaskConfig, out: Location, plan: BatchPlan, records: Records, seconds: float
) -> tuple[Records, Records]:
    """Write ledger, review and summary, and print the result.

    Args:
        config: settings of the job.
        out: its folder.
        plan: all videos of the manifests.
        records: records of the videos that this start masked.
        seconds: time that masking them took.

    Returns:
        The records of all videos with masks, and those of all that failed.
    """
    masked, failed = all_records(plan, read_markers(out))
    (out / "videos.parquet").write_bytes(ledger_bytes([*masked, *failed]))
    review = review_of(masked, plan.accepted)
    (out / "review.csv").write_text(review_csv(review))
    frames = sum(record["frames"] for record in records)
    summary = {
        "videos": len(masked) + len(failed),
        "ok": sum(record["status"] == "ok" for record in masked),
        "partial": sum(record["status"] == "partial" for record in masked),
        "failed": len(failed),
        "codes": Counter(record["code"] for record in failed),
        "loose_faults": plan.loose,
        "frames": sum(record["frames"] for record in masked),
        "made_videos": len(records),
        "made_frames": frames,
        "wall_s": seconds,
        "frames_per_s": frames / seconds if records else None,
        "workers": config.workers,
        "expected": outlook_of(masked, review),
        "versions": versions(),
        "hardware": hardware(),
    }
    (out / "summary.json").write_json(summary)
    print_result(out, summary, failed)
    return masked, failed


def all_records(plan: BatchPlan, markers: Mapping[str, Any]) -> tuple[Records, Records]:
    """Return the records of the plan's videos with masks, and of those that failed.

    A video without a marker has failed: no video may be missing from the ledger.
    """
    # The manifest is newer than the marker: a video may have moved, columns may have changed.
    found = [
        {**markers[work.video_id], "uri": work.uri, "extra": dict(work.extra)}
        for work in plan.work
        if work.video_id in markers
    ]
    masked = [record for record in found if record["status"] != "failed"]
    failed = [record for record in found if record["status"] == "failed"]
    failed += [
        {"video_id": video_id, "status": "failed", "code": "manifest", "error": "; ".join(faults)}
        for video_id, faults in plan.invalid.items()
    ]
    failed += [
        {"video_id": work.video_id, "uri": work.uri, "status": "failed", "code": "storage",
         "error": "its marker in commits/ is gone or damaged; the same command masks it again"}
        for work in plan.work
        if work.video_id not in markers
    ]  # fmt: skip
    return masked, failed


def print_result(out: Location, summary: Mapping[str, Any], failed: Records) -> None:
    """Print counts, places, the first failed videos and the faults that belong to no video."""
    pace = summary["frames_per_s"]
    print(
        f"done: {summary['ok']:,} ok, {summary['partial']:,} partial, {len(failed):,} failed"
        + ("" if pace is None else f", {pace:,.1f} frames/s with start-up")
    )
    print(f"  masks   {out / 'masks'}\n  ledger  {out / 'videos.parquet'}")
    print(f"  review  {out / 'review.csv'}: {_outlook(summary['expected'])}")
    for record in failed[:5]:
        print(f"  failed: {record['video_id']}: {record['code']}: {record['error']}")
    for fault in summary["loose_faults"]:
        print(f"  left out: {fault}")


def _outlook(expected: Mapping[str, Any]) -> str:
    """Say which IoU is to be expected, now and after some clicks of the review."""
    now = f"IoU {expected['iou']:.2f} expected"
    after = [f"{iou:.2f} after {count}" for count, iou in expected["iou_after"].items()][:3]
    return ", ".join([now, *after]) + (" clicks" if after else "")


def finish(
    config: MaskConfig, out: Location, plan: BatchPlan, records: Records, failed: int, stop: Stop
) -> int:
    """Write exports and scores of videos with masks; returns the number of videos with errors."""
    if not (config.export or config.export_frames or config.score is not None):
        return 0
    names = object_names(plan, records)
    crops: dict[str, VideoCrops] = {}
    if "crops" in config.export:
        crops = plan_crops(records, names, config.crops, config.seed)
        (out / "export/crops").delete()  # of other settings, or with videos in other sets
    labels = plan_labels(records, with_classes(config, names))
    done = finish_all(config, out, records, stop, crops, labels)
    if stop.requested.is_set():
        return 0
    errors = [error for each in done.values() for error in each["errors"]]
    for line in (*errors, *(note for each in done.values() for note in each["notes"])):
        print(f"  {line}")
    if config.score is not None:
        scores = {name: each["scores"] for name, each in done.items()}
        found = score.summarize(scores, failed)
        (out / "score.json").write_json(found)
        print(f"  score   {out / 'score.json'}")
        score.print_scores(found)
    if config.export:
        export_all(out, records, with_classes(config, names), config.export)
        if "crops" in config.export:
            made = {name: each["crops"] for name, each in done.items() if each["crops"]}
            unnamed = sum(len(r["objects"]) - len(names[r["video_id"]]) for r in records)
            for line in conclude_crops(out, config.crops, crops, made, unnamed):
                print(f"  {line}")
        print(f"  export  {out / 'export'}")
    return sum(bool(each["errors"]) for each in done.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    return run_job(run, MaskConfig, argv, "jobs.mask", __doc__, (SegmenterWeightsError,))


if __name__ == "__main__":
    sys.exit(main())
