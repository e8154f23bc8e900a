"""Checks that unusual and broken files in a batch of `jobs.mask` each get the right status.

    python -m benchmarks.masks.odd_batch --data videos/ --json FILE

The batch has every file of `--data` (a folder with videos.csv, which says what decodes) and files
that are broken here: cut off, empty, noise, changed bytes, a folder with a broken image. A file
without a frame that decodes must be failed, with a code; one with decode errors partial; any other
file ok. The benchmark lists files with another status. A stand-in replaces encoder and decoder, as
only the reading of the files is checked.
"""

import argparse
import csv
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import stand_in
from jobs.run.machine import hardware, versions

SIZE = (96, 160)
LAST = 19
"""Last frame that is masked; all frames are decoded."""
FACTS = ("status", "code", "frames", "corrupt_packets", "cut_off")
"""Columns of videos.parquet that the result has."""


def expected(row: dict[str, str]) -> str:
    """Return the status that a file must have, by its row of videos.csv."""
    if not int(row["decoded_frames"] or 0):
        return "failed"
    return "partial" if int(row["decode_errors"] or 0) else "ok"


def fits(row: dict[str, Any], end: str) -> bool:
    """Return whether a file has the expected status.

    videos.csv counts decode errors, but neither packets that are marked corrupt nor containers that
    are cut off; so partial is right for these files, too.
    """
    damaged = row["status"] == "partial" and bool(row["corrupt_packets"] or row["cut_off"])
    return row["status"] == end or (end == "ok" and damaged)


def broken(folder: Path) -> dict[str, str]:
    """Write broken files; returns the status that each must have, by name."""
    sound = stand_in.write_clip(folder / "sound.mp4", 40, SIZE).read_bytes()
    stand_in.write_clip(folder / "sound.mkv", 40, SIZE)
    random = np.random.default_rng(0)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n" * 99)
    (folder / "noise.mp4").write_bytes(random.bytes(50_000))
    (folder / "cut.mp4").write_bytes(sound[: len(sound) // 2])
    matroska = (folder / "sound.mkv").read_bytes()
    (folder / "cut.mkv").write_bytes(matroska[: len(matroska) // 2])
    changed = bytearray(matroska)
    for place in random.integers(len(changed) // 3, len(changed), 60):
        changed[place] ^= 0xFF
    (folder / "changed.mkv").write_bytes(bytes(changed))
    images = folder / "images"
    images.mkdir()
    for number in range(4):
        Image.new("RGB", SIZE[::-1], (90, 90, 40 * number)).save(images / f"{number}.png")
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:60])
    return {
        "sound.mp4": "ok", "sound.mkv": "ok", "empty.mp4": "failed", "text.mp4": "failed",
        "noise.mp4": "failed", "cut.mp4": "failed", "cut.mkv": "partial", "changed.mkv": "partial",
        "images": "failed",
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the batch; returns 1 if it failed, or a video is missing or failed without a code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with videos.csv")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--time-limit", type=float, default=600, help="seconds of a video")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args(argv)
    wanted = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uris = {name: (folder / name, end) for name, end in broken(folder).items()}
        for row in csv.DictReader((options.data / "videos.csv").open()):
            uris[row["file"]] = (options.data.absolute() / row["file"], expected(row))
        lines = ["uri,video_id,object_id,frame,x,y,coords,end_frame"]
        for name, (place, end) in uris.items():
            video_id = name.replace(".", "_")
            wanted[video_id] = (name, end)
            lines.append(f"{place},{video_id},1,0,0.5,0.5,normalized,{LAST}")
        (folder / "clicks.csv").write_text("\n".join(lines) + "\n")
        flags = ("--manifest", folder / "clicks.csv", "--out", folder / "out", "--skip-invalid")
        more = ("--workers", options.workers, "--time-limit", options.time_limit)
        code = stand_in.run(stand_in.InstantWorker, *flags, *more, "--max-failed", len(uris))
        ledger = pq.read_table(folder / "out/videos.parquet").to_pylist()
    found: dict[str, Any] = {}
    for row in ledger:
        name, end = wanted[row["video_id"]]
        facts = {key: row[key] for key in FACTS}
        found[name] = facts | {"expected": end, "as_expected": fits(row, end)}
    other = {name: one for name, one in found.items() if not one["as_expected"]}
    no_code = [n for n, one in found.items() if one["status"] == "failed" and not one["code"]]
    result = {
        "command": "python -m benchmarks.masks.odd_batch --data videos",
        "files": len(uris),
        "in_the_ledger": len(ledger),
        "exit_code": code,
        "ends": Counter(one["status"] for one in found.values()),
        "codes": Counter(one["code"] for one in found.values() if one["code"]),
        "failed_without_a_code": no_code,
        "other_than_expected": other,
        "seconds": round(time.monotonic() - started),
        "each": found,
        "hardware": hardware(),
        "versions": versions(),
    }
    print(json.dumps({k: v for k, v in result.items() if k != "each"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(no_code) or len(ledger) != len(uris) or code != 0)


if __name__ == "__main__":
    sys.exit(main())
