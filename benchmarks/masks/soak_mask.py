"""Kills a mask job many times, and compares its masks with those of an uninterrupted run.

    python -m benchmarks.masks.soak_mask --kills 20 --videos 12 --json soak_mask.json

Half of the kills are a `kill -9` of a worker, half of the driver, which is then started again with
the same command. Kill k of K comes not before k/K of the videos are done, at a random time while a
worker masks a video. Ray was started with `ray start` and keeps running, as on a cluster. At the
end the masks must have the same bytes as those of the uninterrupted run, every video must be in the
ledger once, and no video may have been masked again after its marker was written.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from benchmarks import stand_in
from jobs.masks.folder import read_markers
from jobs.run.machine import hardware, versions
from jobs.storage.location import Location

SIZE = (96, 160)
WORKER = "MapWorker(Map(Masker))"
AT_WORK = ".submit"
"""Part of the title of a worker that masks a video; while it loads its weights it has __init__."""


@contextlib.contextmanager
def start_ray(folder: Path) -> Iterator[tuple[dict[str, str], psutil.Process]]:
    """Run `ray start --head`; yields the environment of drivers that use it, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", "--port", str(port), "--num-cpus", "2"]
    command += ["--include-dashboard=false", "--object-store-memory", str(128 << 20)]
    with (folder / "ray.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(240):  # a busy machine may need minutes
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.5)
        yield environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}, psutil.Process(head.pid)
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()


def start(folder: Path, out: Path, workers: int, environment: dict[str, str], log: Path) -> Any:
    """Start or resume the job; returns its process."""
    command = [sys.executable, "-m", "jobs.mask", "--manifest", str(folder / "clicks.csv")]
    command += ["--out", str(out), "--workers", str(workers), "--device", "cpu", "--retry-failed"]
    command += ["--cpus-per-worker", "0.5"]
    with log.open("a") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def workers_of(head: psutil.Process, title: str = WORKER) -> list[psutil.Process]:
    """Return the processes below Ray's head with a text in their title."""
    found = []
    for process in head.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found


def committed(out: Path) -> dict[str, int]:
    """Return when the marker of each video was written, in ns, by the marker's file name."""
    return {
        file.name: file.stat().st_mtime_ns
        for file in (out / "commits").glob("*.json")
        if json.loads(file.read_text())["status"] != "failed"
    }


def soak(
    folder: Path, out: Path, options: argparse.Namespace, environment: dict[str, str], head: Any
) -> dict[str, Any]:
    """Run the job to its end through all kills; returns the kills and the videos done twice."""
    log, killed, again = folder / "log", [], set[str]()
    job, seen = start(folder, out, options.workers, environment, log), dict[str, int]()
    order = ["worker", "driver"] * (options.kills // 2)
    random.shuffle(order)

    def check_markers() -> None:
        now = committed(out)
        again.update(name for name in seen if now.get(name) != seen[name])
        seen.update(now)

    def over() -> bool:
        return job.poll() is not None

    for number, what in enumerate(order):
        due = number * options.videos // options.kills
        while (len(seen) < due or not workers_of(head, WORKER + AT_WORK)) and not over():
            check_markers()
            time.sleep(0.05)
        time.sleep(random.uniform(0, options.longest))
        check_markers()
        if over():
            break
        if what == "worker" and (at_work := workers_of(head)):
            with contextlib.suppress(psutil.Error):
                random.choice(at_work).kill()
        elif what == "driver":
            job.kill()
            job.wait()
            check_markers()
            job = start(folder, out, options.workers, environment, log)
        killed.append({"killed": what, "videos_done": len(seen)})
        print(killed[-1], flush=True)
    while not over():
        check_markers()
        time.sleep(0.2)
    starts = 1
    while job.returncode and starts < 4:  # for videos whose worker was killed twice
        job = start(folder, out, options.workers, environment, log)
        job.wait()
        starts += 1
    check_markers()
    assert job.returncode == 0, log.read_text()[-3000:]
    return {"kills": killed, "done_again": sorted(again), "starts_for_quarantined": starts - 1}


def dataset(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of masks."""
    files = sorted((out / "masks").rglob("*.parquet"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with kills; returns 0 if the masks are equal and no video was masked twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--frames", type=int, default=40, help="per video")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=4.0, help="seconds before a kill, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args(argv)
    random.seed(options.seed)
    command = " ".join(
        ["python -m benchmarks.masks.soak_mask", *(sys.argv[1:] if argv is None else argv)]
    )
    with tempfile.TemporaryDirectory() as name, start_ray(Path(name)) as (environment, head):
        folder = Path(name)
        names = [f"v{number:02}.mp4" for number in range(options.videos)]
        for number, clip in enumerate(names):
            stand_in.write_clip(folder / clip, options.frames + number, SIZE, number)
        stand_in.write_manifest(folder / "clicks.csv", names, SIZE)
        whole = start(folder, folder / "whole", options.workers, environment, folder / "log")
        assert whole.wait() == 0, (folder / "log").read_text()[-3000:]
        facts = soak(folder, folder / "killed", options, environment, head)
        expected, found = dataset(folder / "whole"), dataset(folder / "killed")
        ledger = pq.read_table(folder / "killed/videos.parquet").to_pylist()
        markers = read_markers(Location.parse(folder / "killed"))
        left = [str(p.name) for p in (folder / "killed/.parts").rglob("*") if p.is_file()]
    different = [clip for clip in expected if found.get(clip) != expected[clip]]
    result = {
        "command": command,
        "videos": options.videos,
        "workers": options.workers,
        **facts,
        "different": different,
        "too_many": sorted(set(found) - set(expected)),
        "rows_of_the_ledger": len(ledger),
        "twice_in_the_ledger": [
            clip for clip, n in Counter(r["video_id"] for r in ledger).items() if n > 1
        ],
        "markers": len(markers),
        "left_behind": left,
        "hardware": hardware(),
        "versions": versions(),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    bad = different or result["too_many"] or facts["done_again"] or len(ledger) != options.videos
    return 1 if bad or len(facts["kills"]) < options.kills else 0


if __name__ == "__main__":
    sys.exit(main())
