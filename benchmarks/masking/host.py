"""What a frame costs the CPU, part by part, and the frames per second of a job: before and after.

    python -m benchmarks.masking.host --before ../before --json FILE

`--before` is a checkout of an earlier commit (`git worktree add ../before COMMIT`). Both versions
take turns, each in processes of its own that run this file. A clip of a disc on a still background
(`benchmarks.stand_in`) is masked by `mini` from one click, at 480p and 1080p, with one thread for
each library.

1. Parts: milliseconds of CPU a frame, without waits. Decoding and the conversion to RGB are passes
   of their own, in which all threads count; the other parts are measured inside of a run of a mask
   worker, by the thread that does them. The smallest of all turns is given: other programs on the
   machine only add to it.
2. Masks: whether both versions write the same file, in the precision that is asked for.
3. The job (`--jobs`): `jobs.mask` with two workers of a thread each, a clip each; frames per second
   from the start of the first video to the end of the last one, and frames per second of CPU.
"""

import argparse
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SIZES = {"480p": (480, 854), "1080p": (1080, 1920)}
PARTS = {
    "grey for optical flow": [
        "masking.tracking.prefetch.shrunk_grey",
        "masking.tracking.by_image.shrunk_grey",
    ],
    "resize": ["masking.segmenter.sam.Segmenter.prepare"],
    "optical flow": [
        f"masking.{place}.motion.{name}"
        for place in ("tracking", "images")
        for name in ("follow", "common_motion", "warped")
    ],
    "corners": ["masking.tracking.learning.Learning._corners"],
    "network": [
        f"masking.segmenter.mini.Mini.{name}" for name in ("encode", "keys", "decode", "follow")
    ],
    "memory": ["masking.tracking.memory.Memory.read"],
    "rest of the step": ["masking.tracking.passes.advance", "masking.tracking.by_image.advance"],
    "masks of full size": [
        f"masking.tracking.passes.{name}"
        for name in ("Passes._full_size", "Passes._merge", "Passes._obey", "forward_masks")
    ],
    "rows and run lengths": ["masking.outputs.rows.MaskFile.add"],
}
"""Functions that make up a part, in any version that has them; a part inside of another one does
not count to that."""


class Clock:
    """Seconds of CPU by part and thread, each part without those inside of it."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.seconds: Counter[tuple[str, str]] = Counter()
        self._local = threading.local()

    def wrap(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts its time to a part."""

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            outer, self._local.inner = getattr(self._local, "inner", 0.0), 0.0
            begun = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                spent = time.thread_time() - begun
                name = threading.current_thread().name
                self.seconds[name, part] += spent - self._local.inner
                self._local.inner = outer + spent

        return timed

    def install(self) -> None:
        """Wrap all parts, and the run of every thread as what is left of it."""
        for part, names in PARTS.items():
            for name in names:
                owner, attribute = _find(name)
                if owner is not None and hasattr(owner, attribute):
                    setattr(owner, attribute, self.wrap(part, getattr(owner, attribute)))
        threading.Thread.run = self.wrap("rest", threading.Thread.run)  # type: ignore[method-assign]


def _find(name: str) -> tuple[Any, str]:
    """Return the module or class, and the attribute, of a dotted name; None: there is no such."""
    words = name.split(".")
    at = next(i for i, word in enumerate(words) if word[0].isupper() or i == len(words) - 1)
    try:
        owner: Any = importlib.import_module(".".join(words[:at]))
    except ModuleNotFoundError:
        return None, words[-1]
    return functools.reduce(lambda o, w: getattr(o, w, None), words[at:-1], owner), words[-1]


def measure_here(clip: Path, frames: int, precision: str) -> dict[str, Any]:
    """Measure the version that this process imports; the first run of the worker only warms up."""
    import cv2
    import torch

    from jobs.masks.plan import VideoWork
    from jobs.masks.video import mask
    from jobs.weights.segmenter import load_segmenter
    from masking.manifest.rows import read_rows
    from masking.tracking.state import TrackConfig
    from masking.video.reader import Video

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    segmenter = load_segmenter("mini", torch.device("cpu"), precision)  # type: ignore[arg-type]
    spent = []
    for what in ("timestamps", "forward"):
        with Video.open(clip) as video:
            begun = time.process_time()
            for _ in getattr(video, what)():
                pass
            spent.append(1000 * (time.process_time() - begun) / frames)
            if what == "timestamps":
                continue
    found = {"decode": spent[0], "convert to RGB": spent[1] - spent[0]}
    with Video.open(clip) as video:
        h, w = next(video.forward()).image.shape[:2]
    rows = tuple(read_rows([{"object_id": 1, "frame": 0, "x": w / 2, "y": h / 2}]))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        work = VideoWork("clip", str(clip), rows, {}, clip.stat().st_size, "key")
        for number in range(2):
            if number:
                clock.install()
            begun, all_begun = time.thread_time(), time.process_time()
            record = mask(work, segmenter, TrackConfig(), Path(folder) / "masks.parquet")
            assert record["status"] == "ok", record
        main, everything = time.thread_time() - begun, time.process_time() - all_begun
    threads: Counter[str] = Counter()
    for (thread, part), seconds in clock.seconds.items():
        if part != "rest":
            found[part] = found.get(part, 0.0) + 1000 * seconds / frames
        threads[thread] += seconds
    threads["MainThread"] = main  # with what no part counts
    return {
        "parts": found,
        "threads": {name: 1000 * seconds / frames for name, seconds in threads.items()},
        "network by thread": {
            thread: 1000 * seconds / frames
            for (thread, part), seconds in clock.seconds.items()
            if part == "network"
        },
        "all": 1000 * everything / frames,
        "masks": record["masks_sha256"],
    }


def job_here(clip: Path, size: tuple[int, int]) -> dict[str, float]:
    """Run `jobs.mask` of the version that this process imports on two copies of a clip."""
    import shutil

    import psutil

    from benchmarks import stand_in
    from jobs import mask
    from jobs.masks.folder import read_markers
    from jobs.storage.location import Location

    os.environ["RAY_ADDRESS"] = "local"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for copy in ("a.mp4", "b.mp4"):
            shutil.copy(clip, folder / copy)
        manifest = stand_in.write_manifest(folder / "clicks.csv", ["a.mp4", "b.mp4"], size)
        flags = ("--manifest", manifest, "--out", folder / "out", "--workers", 2, "--device", "cpu")
        assert mask.main([str(flag) for flag in flags]) == 0
        records = list(read_markers(Location.parse(folder / "out")).values())
    wall = max(record["seconds"] for record in records)
    load = psutil.getloadavg()[0]
    return {"frames_per_s": sum(record["frames"] for record in records) / wall, "load": load}


def child(root: Path, *arguments: object) -> Any:
    """Run this file in a process of its own that imports a version; return what it found."""
    variables = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", __file__, *map(str, arguments)]
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def least(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the smallest figure of all turns, part by part."""
    return {
        kind: {name: min(one[kind][name] for one in found) for name in found[0][kind]}
        for kind in ("parts", "threads", "network by thread")
    } | {"all": min(one["all"] for one in found), "masks": sorted({o["masks"] for o in found})}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both versions in turns, print a table and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--jobs", type=int, default=0, help="turns of the whole job; 0: none")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--child", choices=["parts", "job"], help=argparse.SUPPRESS)
    parser.add_argument("--clip", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        [size] = options.sizes
        if options.child == "parts":
            found: Any = measure_here(options.clip, options.frames, options.precision)
        else:
            found = job_here(options.clip, SIZES[size])
        print(json.dumps(found))
        return 0
    here = Path(__file__).parents[2]
    roots = {"after": here} | ({"before": options.before.absolute()} if options.before else {})
    result: dict[str, Any] = {"frames": options.frames, "repeats": options.repeats}
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            clip = _clip(Path(folder) / f"{size}.mp4", options.frames, SIZES[size])
            arguments = ("--clip", clip, "--sizes", size, "--frames", options.frames)
            arguments = (*arguments, "--precision", options.precision)
            turns: dict[str, list[Any]] = {name: [] for name in roots}
            jobs: dict[str, list[Any]] = {name: [] for name in roots}
            for _ in range(options.repeats):
                for name, root in roots.items():
                    turns[name].append(child(root, "--child", "parts", *arguments))
            for _ in range(options.jobs):
                for name, root in roots.items():
                    jobs[name].append(child(root, "--child", "job", *arguments))
            result[size] = {name: least(found) for name, found in turns.items()}
            for name, found in jobs.items():
                result[size][name]["jobs"] = found
            show(size, result[size])
    if options.json:
        from jobs.run.machine import hardware, versions

        result |= {"hardware": hardware(), "versions": versions()}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _clip(path: Path, frames: int, size: tuple[int, int]) -> Path:
    from benchmarks.stand_in import write_clip

    return write_clip(path, frames, size)


def show(size: str, found: dict[str, Any]) -> None:
    """Print the figures of a size."""
    versions = [name for name in ("before", "after") if name in found]
    print(f"| {size}, ms of CPU a frame | {' | '.join(versions)} |")
    print(f"| --- |{' ---: |' * len(versions)}")
    for kind in ("parts", "threads"):
        names = dict.fromkeys(name for v in versions for name in found[v][kind])
        for name in names:
            row = (
                f"{found[v][kind][name]:.1f}" if name in found[v][kind] else "" for v in versions
            )
            print(f"| {'thread ' if kind == 'threads' else ''}{name} | {' | '.join(row)} |")
    print("| all | " + " | ".join(f"{found[v]['all']:.1f}" for v in versions) + " |")
    for v in versions:
        if found[v].get("jobs"):
            rates = [one["frames_per_s"] for one in found[v]["jobs"]]
            print(f"{v}: the job {statistics.median(rates):.1f} frames/s {rates}")
    masks = {digest for v in versions for digest in found[v]["masks"]}
    print(f"masks of all runs {'are the same file' if len(masks) == 1 else 'DIFFER'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
