"""Damaged output folders and true masks, as a resumed `jobs.mask --export --score` reads them."""

import hashlib
import io
import json
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.mutation import damaged, odd, replaced
from jobs.masks.exports import export_all, export_video, named_table
from jobs.masks.folder import file_name, id_path, masks_place
from jobs.masks.ledger import ledger_bytes, outlook_of, review_csv, review_of
from jobs.masks.plan import VideoWork
from jobs.masks.results import read_results
from jobs.masks.score import print_scores, score_video, summarize
from jobs.storage.location import Location, StorageError
from masking.images.decode import ImageError
from masking.outputs.rows import MaskFile
from masking.tracking.masks import FrameMasks, Mask
from masking.video.frame import VideoError

REFUSALS = (StorageError, ImageError, VideoError)
_SIZE, _FRAMES = (12, 16), 4
_IDS = ("a", "a.parquet/b", ".patchray-x", "day 1/a", "a/00000.png", "%2E", "é" * 90)


def attempt(random: Random, folder: Path) -> object:
    """Resume a run of one video of which some files were damaged; export and score it."""
    out, video_id = Location.parse(folder / "run"), random.choice(_IDS)
    names = random.choice([None, None, [f"{5 * n:05d}.jpg" for n in range(_FRAMES)]])
    content = _masks(tuple(names) if names else None)
    record = _record(video_id, names, content)
    _write(random, out, record, content)
    truth = _write_truth(random, folder, video_id, names)
    work = [VideoWork(video_id, str(folder), (), {}, 0, "key")]
    results = read_results(out, work, read=random.random() < 0.5)
    results.messages()
    done = [each for each in work if results.is_done(each, False)]
    records = [results.markers[each.video_id] for each in done]
    ledger_bytes(results.markers.values())
    masked = [one for one in results.markers.values() if one["status"] != "failed"]
    review = review_of(masked, {})
    review_csv(review)
    outlook_of(masked, review)
    masked = [one for one in records if one["status"] != "failed"]
    for one in masked:
        table = named_table(out, one)
        if random.random() < 0.2:  # slow: each file is forced to the disk
            export_video(out, one, table, random.choice(["davis", "png"]))
        found = summarize({video_id: score_video(table, video_id, truth)}, 0)
        with redirect_stdout(io.StringIO()):
            print_scores(found)
    if random.random() < 0.2:
        export_all(out, masked, {}, ["coco", "youtube-vos"])
    return len(masked)


@cache
def _masks(names: tuple[str, ...] | None) -> bytes:
    target = io.BytesIO()
    file = MaskFile(target, names)
    for index in range(_FRAMES):
        here = np.zeros(_SIZE, np.bool_)
        here[2:8, index : index + 6] = True
        found = (Mask("tracked", here, 0.9, 0.8, "forward"), None)
        logits = np.zeros((2, *_SIZE), np.float32)
        image = np.zeros((*_SIZE, 3), np.uint8)
        file.add(FrameMasks(index, None, image, (1, 2), found, logits))
    file.close()
    return target.getvalue()


def _record(video_id: str, names: list[str] | None, content: bytes) -> dict[str, Any]:
    span = {
        "video_id": video_id, "object_id": 1, "first_frame": 0, "last_frame": 1, "reason": "lost",
        "click_frame": 0, "severity": 2.0,
    }  # fmt: skip
    return {
        "video_id": video_id, "uri": "v", "key": "key", "status": "ok", "code": None, "error": None,
        "frames": _FRAMES, "extra": {}, "seconds": 1.0, "content_sha256": "", "notes": [],
        "corrupt_packets": 0, "cut_off": False, "unsorted": 0, "objects": {"1": {"tracked": 4}},
        "review": [span], "expected": {"frames": 4, "missing": 1.5},
        "masks_sha256": hashlib.sha256(content).hexdigest(),
        "masks_bytes": len(content), "height": _SIZE[0], "width": _SIZE[1], "rotation": 0,
        "rate": 25.0, "codec": "images" if names else "h264",
    }  # fmt: skip


def _write(random: Random, out: Location, record: dict[str, Any], content: bytes) -> None:
    """Write marker and masks, one of them perhaps damaged, and perhaps other files."""
    value: Any = record
    for _ in range(random.choice([0, 0, 1, 2])):
        value = replaced(random, value, odd)
    marker = json.dumps(value).encode(errors="surrogatepass")
    if random.random() < 0.2:
        marker = damaged(random, marker)
    if random.random() < 0.3:
        content = damaged(random, content)
    video_id = record["video_id"]
    _put(masks_place(out, video_id), content)
    _put(out / "commits" / f"{file_name(video_id)}.json", marker)
    if random.random() < 0.2:
        name = random.choice([".DS_Store", "note.txt", "x.json", "a (1).json"])
        _put(out / "commits" / name, random.choice([b"{}", b"", marker]))


def _put(place: Location, content: bytes) -> None:
    """Write a file without forcing it to the disk."""
    path = Path(place.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_truth(random: Random, folder: Path, video_id: str, names: list[str] | None) -> Location:
    truth = Location.parse(folder / "truth")
    stems = [f"{n:05d}" for n in range(_FRAMES)]
    if names and random.random() < 0.5:
        stems = [Path(name).stem for name in names]
    for stem in stems:
        labels = np.zeros(_SIZE, np.uint8)
        labels[2:8, 2:8] = random.choice([1, 2, 255, 100])
        if random.random() < 0.1:
            labels = np.linspace(0, 255, labels.size).reshape(_SIZE).astype(np.uint8)
        picture = io.BytesIO()
        Image.fromarray(labels).save(picture, "png")
        png = picture.getvalue()
        if random.random() < 0.1:
            png = damaged(random, png)
        if random.random() < 0.05:
            stem = random.choice(["x", "00099", "1", "²"])
        place = truth / id_path(video_id) / random.choice(["", "", "1"])
        _put(place / f"{stem}.png", png)
    return truth
