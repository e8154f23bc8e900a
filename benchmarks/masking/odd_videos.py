"""Masks odd and broken files: each must end as ok, partial or with a typed error.

    python -m benchmarks.masking.odd_videos --data videos/ --json FILE

Every file is masked from a click in its middle with a time limit, in a process of its own. The
result has its frames and what did not decode, or the error's code; and whether there were as many
frames as the data's own table says that a plain decode gives.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.run.machine import hardware, versions
from masking.tracking.masking import mask_video
from masking.video.frame import VideoError
from masking.video.reader import Video


def mask(path: Path, most: int) -> dict[str, Any]:
    """Mask up to `most` frames of a file."""
    try:
        with Video.open(path) as video:
            height, width = next(iter(video)).image.shape[:2]
        rows = [{"object_id": 1, "frame": 0, "x": width // 2, "y": height // 2}]
        run, frames, shapes = mask_video(path, rows), 0, set()
        for found in run:
            if found.masks.shape[1:] != found.image.shape[:2] or found.index != frames:
                raise AssertionError(f"frame {found.index}: a mask that does not fit")
            frames += 1
            shapes.add(found.masks.shape[1:])
            if frames >= most:
                run.close()
                break
    except VideoError as error:
        return {"ends": "error", "code": error.code, "frames": 0}
    report = run.report
    lost = report.corrupt_packets > 0 or report.cut_off
    return {
        "ends": "partial" if lost else "ok",
        "frames": frames,
        "corrupt_packets": report.corrupt_packets,
        "sizes": len(shapes),
        "notes": report.notes,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a file and a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with videos.csv")
    parser.add_argument("--most", type=int, default=40, help="frames of each that are masked")
    parser.add_argument("--seconds", type=int, default=300, help="the time limit of each")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--mask", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.mask:
        print(json.dumps(mask(options.mask, options.most)))
        return 0
    found, ends = {}, Counter[str]()
    for row in csv.DictReader((options.data / "videos.csv").open()):
        command = [
            sys.executable,
            "-m",
            "benchmarks.masking.odd_videos",
            "--data",
            str(options.data),
        ]
        command += ["--most", str(options.most), "--mask", str(options.data / row["file"])]
        started = time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.seconds)
            result = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
            result = result or {"ends": "crash", "frames": 0, "error": done.stderr[-300:]}
        except subprocess.TimeoutExpired:
            result = {"ends": "hang", "frames": 0}
        wanted = min(int(row["decoded_frames"] or 0), options.most)
        result["as_a_plain_decode"] = result["frames"] == wanted
        found[row["file"]] = result | {"seconds": round(time.perf_counter() - started, 1)}
        ends[result["ends"]] += 1
        print(row["file"], json.dumps(found[row["file"]]), flush=True)
    other = [name for name, result in found.items() if not result["as_a_plain_decode"]]
    print(f"\n{dict(ends)}; frames other than a plain decode's: {other or 'none'}")
    if options.json:
        facts = {"hardware": hardware(), "versions": versions()}
        result = {"files": found, "ends": ends, "other_frames": other, **facts}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
