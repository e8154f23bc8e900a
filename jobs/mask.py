"""Mask videos from a table of clicks, on as many workers as there are; resumable, one by one.

    python -m jobs.mask --manifest clicks.csv --weights mini --out runs/masks --workers 2

A manifest is CSV, JSON lines or Parquet, one row a point: uri, object_id, frame (or time_s), x, y,
label (`masking.rows.COLUMNS` has all). `--out` then holds

    masks/<video_id>.parquet   a row a frame and object (`masking.outputs`)
    videos.parquet             a row a video: status, code and error, frames, states of its objects
    review.csv                 uncertain and lost spans, worst first, and where a click would help
    summary.json               counts, frames per second, versions
    export/                    with --export: DAVIS, PNG, COCO, YouTube-VOS, cut-outs, overlays

A video is done when its marker under `commits/` says so, under a key of the file, its prompts, the
weights and the settings; the same command does what is missing or changed. A video that fails is a
row with its code, and costs the others nothing. What has no sound marker is no result, whatever
else lies in the folder.
"""

import csv
import io
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs import actors, cluster, mask_plan, runs, segmenters
from jobs.config import MAY_CHANGE, ConfigError, JobConfig, parse
from jobs.mask_exports import KINDS, export_all, export_video
from jobs.mask_plan import Plan, Work, commit_place, commits, masks_place, part_place
from jobs.mask_work import RETRIED, Masker
from jobs.progress import clock
from jobs.signals import Stop
from jobs.storage import Location, StorageError, check_writable
from masking.rows import Row
from masking.sam import CheckpointError, Precision, resolve
from masking.track import TrackConfig

LOG_SECONDS = 10.0
"""Between two lines on how far it is."""
SPAN_COLUMNS = (
    "video_id", "object_id", "first_frame", "last_frame", "reason", "click_frame", "severity",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MaskConfig(JobConfig):
    """Settings of `jobs.mask`."""

    manifest: tuple[str, ...] = field(metadata=MAY_CHANGE)
    """Tables of clicks, local or s3://: .csv, .jsonl or .parquet."""
    root: str | None = field(default=None, metadata=MAY_CHANGE)
    """What relative uris are relative to. Default: the folder of their manifest."""
    weights: str = "mini"
    """mini, vit_b, vit_l, vit_h, or a file or a run's folder, local or s3://."""
    precision: Precision = "auto"
    """Of the encoder; auto: bfloat16 where the processor multiplies it."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """How objects are followed."""
    check: bool = field(default=False, metadata=MAY_CHANGE)
    """Only check the manifests and print what there is to do."""
    skip_invalid: bool = field(default=False, metadata=MAY_CHANGE)
    """Go on without what has faults: such videos are failed in the ledger, rows without a video are
    named in summary.json and count as failed too."""
    retry_failed: bool = field(default=False, metadata=MAY_CHANGE)
    """Try videos again that failed for a reason of their own."""
    max_failed: int = field(default=0, metadata=MAY_CHANGE)
    """Failed videos up to which the exit code is 0."""
    time_limit: float = field(default=3600.0, metadata=MAY_CHANGE)
    """Seconds that a video may take; a decoder that hangs is ended then."""
    export: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """davis, png, coco, youtube-vos, cutout, overlay: other tools' formats, of all videos done."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        unknown = sorted(set(self.export) - set(KINDS))
        if unknown:
            raise ConfigError(f"--export {' '.join(unknown)}: expected {', '.join(KINDS)}")
        if self.time_limit <= 0:
            raise ConfigError(f"--time-limit is {self.time_limit:g}; seconds above 0 are needed")
        if self.max_failed < 0:
            raise ConfigError(f"--max-failed is {self.max_failed}; at least 0 is needed")


class MaskError(RuntimeError):
    """The workers failed for good; the message is what a person needs of it."""


def run(config: MaskConfig) -> int:
    """The stages of the job, in order."""
    # 1. What can be known without workers.
    cluster.refuse_relative(config.out)
    config = absolute(config)
    out = Location.parse(config.out)
    wanted = mask_plan.settings_of(
        segmenters.locate(config.weights), config.precision, config.track
    )
    plan = mask_plan.make(config.manifest, config.root, wanted)
    if plan.faults and not config.skip_invalid:
        raise ConfigError(listed(plan.faults))
    done = commits(out)
    todo = [work for work in plan.work if not is_done(done.get(work.video_id), work, config)]
    objects = sum(len({row.object_id for row in work.rows}) for work in plan.work)
    print(
        f"{len(plan.work):,} videos, {objects:,} objects,"
        f" {len(plan.work) - len(todo):,} videos done, {len(plan.invalid):,} with faults"
    )
    if config.check:
        return 0
    check_writable(out)
    runs.check_same(out, config, began="commits")
    runs.describe(out, config)
    segmenters.announce(config.weights)
    # 2. The missing videos, on workers.
    started = time.monotonic()
    records: list[dict[str, Any]] = []
    if todo:
        with Stop() as stop, cluster.connect():
            records = execute(config, out, todo, wanted, stop)
            if stop.requested.is_set() and len(records) < len(todo):
                print("stopped; the same command goes on")
                return stop.exit_code
    # 3. What it leaves.
    return conclude(config, out, plan, records, time.monotonic() - started)


def absolute(config: MaskConfig) -> MaskConfig:
    """The same config with paths that mean the same in a worker's folder, or on another day."""
    named = config.weights in segmenters.NAMES
    return replace(
        config,
        out=str(Location.parse(config.out)),
        manifest=tuple(str(Location.parse(path)) for path in config.manifest),
        root=None if config.root is None else str(Location.parse(config.root)),
        weights=config.weights if named else str(Location.parse(config.weights)),
    )


def listed(faults: Sequence[str]) -> str:
    """All faults, and what to do."""
    return "\n".join(
        [f"{len(faults):,} faults in the manifests; nothing was started:", *faults,
         "Mend them, or leave their videos out with --skip-invalid."]
    )  # fmt: skip


def is_done(marker: Mapping[str, Any] | None, work: Work, config: MaskConfig) -> bool:
    """Whether nothing is to be done for a video."""
    if marker is None or marker["key"] != work.key:
        return False
    if marker["status"] != "failed":
        return True
    return not config.retry_failed and marker["code"] not in RETRIED


def execute(
    config: MaskConfig, out: Location, todo: Sequence[Work], wanted: str, stop: Stop
) -> list[dict[str, Any]]:
    """Have workers mask the videos, and publish each as it comes; returns their records.

    Raises MaskError when a worker failed for a reason that is not one video's.
    """
    workers = min(config.workers, len(todo))
    cuda, gpus = cluster.choose_device(
        config.device, workers, config.cpus_per_worker, config.gpus_per_worker
    )
    cluster.require(workers, config.cpus_per_worker, gpus, stop)
    device = torch.device("cuda" if cuda else "cpu")
    if config.precision == "bfloat16" and resolve("auto", device) == "float32":
        print("bfloat16: this processor does not multiply it, and will be slow")
    token = f"{int(time.time())}-{secrets.token_hex(4)}"
    arguments = (
        config.out, token, config.weights, wanted, config.precision, config.track,
        max(1, int(config.cpus_per_worker)), device, config.time_limit,
    )  # fmt: skip
    rows = [{"work": work.to_json()} for work in todo]
    done = actors.dataset(rows, Masker, arguments, config, workers, gpus if cuda else None)
    progress = Progress(len(todo))
    parts = out / ".parts" / token
    try:
        if actors.follow(
            lambda: progress.follow(done.iter_rows(), out, parts), stop, progress.show
        ):
            (out / ".parts").delete()  # of killed starts too
    except StorageError:
        raise
    except Exception as error:  # Ray's, whatever kind, with the worker's own inside
        reason = actors.reason(error)
        raise MaskError(f"a worker failed: {reason}; what is published stays") from error
    return progress.records


class Progress:
    """Publishes videos as they come, and says now and then how far it is."""

    def __init__(self, total: int) -> None:
        """Of `total` videos."""
        self.records: list[dict[str, Any]] = []
        self._total, self._frames, self._failed = total, 0, 0
        self._started = self._said = time.monotonic()

    def follow(self, rows: Iterable[dict[str, Any]], out: Location, parts: Location) -> None:
        """Publish each video of a start of the job; returns after the last."""
        for row in rows:
            record = json.loads(row["record"])
            publish(record, out, parts)
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
    """Masks under their name, then the marker that says so."""
    video_id = record["video_id"]
    marker = commit_place(out, video_id)
    if record["status"] != "failed":
        marker.delete()  # of other settings: between the two acts there is no video
        part_place(parts, video_id).move(masks_place(out, video_id))
    marker.write_json(record)
    if record["status"] == "failed":
        masks_place(out, video_id).delete()  # of other prompts, if there are any


def conclude(
    config: MaskConfig,
    out: Location,
    plan: Plan,
    records: Sequence[Mapping[str, Any]],
    seconds: float,
) -> int:
    """The ledger, the review, the summary, exports; says what came out; the exit code."""
    markers = commits(out)
    mine = [markers[work.video_id] for work in plan.work if work.video_id in markers]
    good = [record for record in mine if record["status"] != "failed"]
    failed = [record for record in mine if record["status"] == "failed"]
    failed += [
        {"video_id": video_id, "status": "failed", "code": "manifest", "error": "; ".join(faults)}
        for video_id, faults in plan.invalid.items()
    ]
    (out / "videos.parquet").write_bytes(ledger([*good, *failed]))
    (out / "review.csv").write_text(review(good, plan.accepted))
    frames = sum(record["frames"] for record in records)
    codes = Counter(record["code"] for record in failed)
    summary = {
        "videos": len(good) + len(failed),
        "ok": sum(record["status"] == "ok" for record in good),
        "partial": sum(record["status"] == "partial" for record in good),
        "failed": len(failed),
        "codes": codes,
        "loose_faults": plan.loose,
        "frames": sum(record["frames"] for record in good),
        "made_videos": len(records),
        "made_frames": frames,
        "wall_s": seconds,
        "frames_per_s": frames / seconds if records else None,
        "workers": config.workers,
        "versions": runs.versions(),
        "hardware": runs.hardware(),
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
    lost = export(config, out, good) + len(plan.loose)
    return 1 if lost + len(failed) > config.max_failed else 0


def export(config: MaskConfig, out: Location, records: Sequence[Mapping[str, Any]]) -> int:
    """Other tools' formats of all videos done; returns how many could not be exported."""
    lost = 0
    for record in records if config.export else ():
        try:
            export_video(out, record, config.export)
        except StorageError:
            raise
        except Exception as error:  # one video's trouble is not the batch's
            lost += 1
            print(f"  not exported: {record['video_id']}: {type(error).__name__}: {error}")
    if config.export:
        export_all(out, records, config.export)
        print(f"  export  {out / 'export'}")
    return lost


def ledger(records: Sequence[Mapping[str, Any]]) -> bytes:
    """videos.parquet: what is nested in a record is JSON there."""
    names = (
        ("video_id", pa.string()), ("uri", pa.string()), ("status", pa.string()),
        ("code", pa.string()), ("error", pa.string()), ("frames", pa.int64()),
        ("height", pa.int32()), ("width", pa.int32()), ("rotation", pa.int32()),
        ("rate", pa.float64()), ("codec", pa.string()), ("corrupt_packets", pa.int64()),
        ("cut_off", pa.bool_()), ("unsorted", pa.int64()), ("notes", pa.string()),
        ("objects", pa.string()), ("extra", pa.string()), ("seconds", pa.float64()),
        ("content_sha256", pa.string()), ("masks_sha256", pa.string()), ("key", pa.string()),
    )  # fmt: skip
    rows = []
    for record in sorted(records, key=lambda each: each["video_id"]):
        row = {name: record.get(name) for name, _ in names}
        for name in ("notes", "objects", "extra"):
            row[name] = None if row[name] is None else json.dumps(row[name])
        rows.append(row)
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(names))), content)
    return content.getvalue()


def review(records: Iterable[Mapping[str, Any]], accepted: Mapping[str, Sequence[Row]]) -> str:
    """review.csv: spans of all videos, worst first, without those that a person accepted."""
    found = [
        span
        for record in records
        for span in record["review"]
        if not mask_plan.is_accepted(accepted.get(record["video_id"], ()), span)
    ]
    found.sort(key=lambda s: (-s["severity"], s["video_id"], s["object_id"], s["first_frame"]))
    text = io.StringIO()
    writer = csv.DictWriter(text, SPAN_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return run(parse(MaskConfig, argv, "jobs.mask", __doc__))
    except (ConfigError, CheckpointError, StorageError, cluster.ClusterError) as error:
        sys.stderr.write(f"jobs.mask: {error}\n")
        return 2
    except MaskError as error:
        sys.stderr.write(f"jobs.mask: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
