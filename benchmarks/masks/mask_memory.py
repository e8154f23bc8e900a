"""What many videos cost the driver of `jobs.mask` and Ray's object store.

    python -m benchmarks.masks.mask_memory --videos 100 1000 10000 --json FILE

The videos have two tiny frames, and the stand-in that masks them takes no time. Each batch is a job
in a process of its own. Measured are its CPU time per video, its peak resident memory (with the
interpreter, torch and Ray, so that only the growth between batches is due to videos), and the peak
of the object store.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from benchmarks import stand_in
from jobs.run.machine import hardware, versions

SIZE = (48, 64)
LIMIT_MB = 50.0
"""Largest size of the object store with which the benchmark passes."""


class Store(threading.Thread):
    """A thread that measures the object store while a job runs."""

    def __init__(self) -> None:
        """Make the thread without starting it."""
        super().__init__(daemon=True)
        self.most, self.spilled, self.over = 0.0, 0.0, threading.Event()

    def run(self) -> None:
        """Measure twice a second until `over` is set."""
        while not self.over.wait(0.5):
            if not ray.is_initialized():
                continue
            try:
                state = get_state_from_address(ray.get_runtime_context().gcs_address)
                stats = get_memory_info_reply(state).store_stats
            except Exception as error:  # Ray is starting or ending
                print(f"  (object store: {error})", file=sys.stderr)
                continue
            self.most = max(self.most, stats.object_store_bytes_used / 2**20)
            self.spilled = max(self.spilled, stats.spilled_bytes_total / 2**20)


def measure(videos: int, workers: int) -> dict[str, Any]:
    """Mask a batch in this process, and return what it cost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = stand_in.write_clip(folder / "v00000.mp4", 2, SIZE)
        names = [f"v{number:05}.mp4" for number in range(videos)]
        for other in names[1:]:
            os.link(clip, folder / other)
        manifest = stand_in.write_manifest(folder / "clicks.csv", names, SIZE)
        store, process = Store(), psutil.Process()
        store.start()
        before, started = process.cpu_times(), time.monotonic()
        flags = ("--manifest", manifest, "--out", folder / "out", "--workers", workers)
        code = stand_in.run(stand_in.InstantWorker, *flags)
        after, seconds = process.cpu_times(), time.monotonic() - started
        store.over.set()
        summary = json.loads((folder / "out/summary.json").read_text())
    assert (code, summary["ok"]) == (0, videos), summary
    spent = after.user + after.system - before.user - before.system
    return {
        "videos": videos,
        "workers": workers,
        "driver_ms_a_video": 1000 * spent / videos,
        "driver_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "object_store_mb": store.most,
        "spilled_mb": store.spilled,
        "videos_per_s": videos / seconds,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each batch in a process of its own; returns 1 if the object store grew too large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        print("\n" + json.dumps(measure(options.videos[0], options.workers)))
        return 0
    found = []
    for videos in options.videos:
        command = [
            sys.executable,
            "-m",
            "benchmarks.masks.mask_memory",
            "--one",
            "--videos",
            str(videos),
        ]
        command += ["--workers", str(options.workers)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{videos} videos: {done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(found[-1]), flush=True)
    sizes = " ".join(map(str, options.videos))
    facts = {"hardware": hardware(), "versions": versions()}
    command_line = f"python -m benchmarks.masks.mask_memory --videos {sizes}"
    if options.json:
        result = {"command": command_line, "batches": found, **facts}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(one["object_store_mb"] > LIMIT_MB for one in found))


if __name__ == "__main__":
    sys.exit(main())
