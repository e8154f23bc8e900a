"""Frames per second with a model that has a memory: transformers' own session against ours.

    python -m benchmarks.masking.memory --side 1024 --objects 1 8 --frames 8 --json FILE

The network is SAM 2.1 tiny with random weights, on a canvas of `--side` pixels; sam2.1-tiny's own
is 1,024. A clip (a disc for each object, 480 x 270) is decoded from its file and masked from a
click on each object on the first frame, in float32:

- plain: a session of `Sam2VideoModel`, as its documentation shows it, masks enlarged to the frame;
- ours: `masking.mask_video`.

Both take turns in this process, `--repeats` times; the medians are compared, by wall time and by
the processor's time, on which other programs have less influence. One more run of ours counts the
processor's time of each part.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Sam2VideoVideoProcessor
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from benchmarks.masking.host import Clock
from benchmarks.masking.random_sam2 import random_model
from jobs.run.machine import hardware, versions
from masking.sam2.network import VideoNetwork
from masking.segmenter.sam import Segmenter
from masking.tracking.masking import mask_video
from masking.video.reader import Video
from masking.video.writer import Film

SIZE = (270, 480)
PARTS = {"encoder": "encode", "attention": "attend", "decoder": "segment", "memory": "remember"}
"""Methods of `VideoNetwork` that make up a part."""


def place(row: int, frame: int) -> tuple[int, int]:
    """Return the middle of an object's disc (x, y) in pixels."""
    return 40 + 55 * row + 2 * frame, 60 + 45 * (row % 4)


def make(path: Path, frames: int, objects: int) -> None:
    """Write the clip."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    still = np.random.default_rng(0).integers(60, 120, (*SIZE, 3), dtype=np.uint8)
    with Film(path, "overlay", SIZE) as film:
        for frame in range(frames):
            image = still.copy()
            for row in range(objects):
                middle = place(row, frame)
                disc = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 <= 20**2
                image[disc] = (20 * row, 255 - 20 * row, 200)
            film.write(image, frame / 25)


def plain(model: Any, path: Path, objects: int) -> int:
    """Mask the clip by a session of transformers; the number of frames."""
    with Video.open(path) as video:
        images = np.stack([frame.image for frame in video.forward()])
    side = model.config.image_size
    processor = Sam2VideoVideoProcessor(size={"height": side, "width": side})
    pixels = processor(videos=images, return_tensors="pt").pixel_values_videos[0]
    session = Sam2VideoInferenceSession(
        video=pixels, video_height=SIZE[0], video_width=SIZE[1], dtype=torch.float32
    )
    scale = torch.tensor([side / SIZE[1], side / SIZE[0]])
    for row in range(objects):
        point = (torch.tensor(place(row, 0)) * scale)[None, None, None]
        inputs = {"point_coords": point, "point_labels": torch.ones(1, 1, 1, dtype=torch.int64)}
        session.add_point_inputs(session.obj_id_to_idx(row), 0, inputs)
        session.obj_with_new_inputs.append(row)
    with torch.inference_mode():
        for frame in range(len(images)):
            found = model(session, frame_idx=frame)
            masks = F.interpolate(found.pred_masks, SIZE, mode="bilinear", align_corners=False) > 0
            assert masks.shape == (objects, 1, *SIZE)
    return len(images)


def ours(segmenter: Segmenter, path: Path, objects: int) -> int:
    """Mask the clip by this project; the number of frames."""
    rows = [
        {"object_id": row + 1, "frame": 0, "x": place(row, 0)[0], "y": place(row, 0)[1]}
        for row in range(objects)
    ]
    return sum(1 for frame in mask_video(path, rows, segmenter) if frame.masks.shape[0] == objects)


def timed(call: Callable[[], int], frames: int) -> tuple[float, float]:
    """Return the seconds and the processor's seconds of a frame."""
    wall, processor = time.perf_counter(), time.process_time()
    assert call() == frames
    return (
        (time.perf_counter() - wall) / frames,
        (time.process_time() - processor) / frames,
    )


def shares(model: Any, path: Path, objects: int) -> dict[str, float]:
    """Return the share of each part in the processor's time of our threads, with one thread for
    each computation."""
    clock, before, threads = Clock(), dict[str, Any](), torch.get_num_threads()
    torch.set_num_threads(1)
    for part, name in PARTS.items():
        before[name] = getattr(VideoNetwork, name)
        setattr(VideoNetwork, name, clock.wrap(part, before[name]))
    try:
        segmenter = Segmenter(VideoNetwork(model), torch.device("cpu"), "float32")
        started = time.process_time()
        ours(segmenter, path, objects)
        total = time.process_time() - started
    finally:
        torch.set_num_threads(threads)
        for name, method in before.items():
            setattr(VideoNetwork, name, method)
    found = dict.fromkeys(PARTS, 0.0)
    for (_, part), seconds in clock.seconds.items():
        found[part] += seconds / total
    return {**found, "ours": 1 - sum(found.values())}


def measure(side: int, objects: int, frames: int, repeats: int) -> dict[str, Any]:
    """Return the row of a number of objects."""
    model = random_model(side)
    segmenter = Segmenter(VideoNetwork(model), torch.device("cpu"), "float32")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        make(path, frames, objects)
        short = Path(folder) / "short.mp4"
        make(short, 2, objects)
        plain(model, short, objects)
        ours(segmenter, short, objects)
        runs: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
        for _ in range(repeats):
            runs["plain"].append(timed(lambda: plain(model, path, objects), frames))
            runs["ours"].append(timed(lambda: ours(segmenter, path, objects), frames))
        parts = shares(model, path, objects)
    row: dict[str, Any] = {"side": side, "objects": objects, "frames": frames, "repeats": repeats}
    for kind, name in enumerate(("seconds", "cpu_seconds")):
        middle = {who: statistics.median(run[kind] for run in some) for who, some in runs.items()}
        row[name] = {who: [run[kind] for run in some] for who, some in runs.items()}
        row[f"{name}_ratio"] = middle["plain"] / middle["ours"]
    return {**row, "shares": parts}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row a number of objects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="add the rows to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    for side in options.side:
        for objects in options.objects:
            row = measure(side, objects, options.frames, options.repeats)
            print(json.dumps(row), flush=True)
            if options.json:
                _add(options.json, row | {"threads": options.threads})
    return 0


def _add(file: Path, row: dict[str, Any]) -> None:
    """Put a row into the file in place of an older one of the same kind."""
    old = json.loads(file.read_text())["rows"] if file.exists() else []
    same = ("side", "objects", "threads")
    rows = [one for one in old if any(one[name] != row[name] for name in same)]
    facts = {"hardware": hardware(), "versions": versions()}
    file.write_text(json.dumps({"rows": [*rows, row], **facts}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
