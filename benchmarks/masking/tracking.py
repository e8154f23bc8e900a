"""Accuracy of masks through videos from clicks: J&F on DAVIS' sequences, and simpler methods'.

    python -m benchmarks.masking.tracking --data vos/ --clicks 1 3 5 --middle --json FILE
    python -m benchmarks.masking.tracking --data vos/ --clicks 1 --ablate --json FILE

Clicks are simulated: an object's deepest point, then the deepest point of its part outside of discs
of 0.35 of its equivalent radius around the earlier ones. `masking.mask_video` is compared, in the
same run, with the same segmenter and clicks, with (a) the same clicks on every frame, (b) the first
mask moved by dense optical flow (DIS). J&F is that of DAVIS: the first and the last frame of a
sequence are left out; the mean is over objects. Of sequences with several objects it is also said
on which share of the frames a mask covers at least half of another object.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs.cluster.workers import keep_memory
from jobs.run.machine import hardware, versions
from jobs.weights.segmenter import load_segmenter
from masking.images.arrays import Bools
from masking.images.masks import davis
from masking.segmenter.sam import Embeddings, Prepared, Prompts, Segmenter
from masking.tracking.masking import mask_video
from masking.tracking.state import TrackConfig
from masking.video.reader import Video

APART = 0.35
"""Least distance of two clicks, in equivalent radii of the object."""
TUNED_ON = (
    "bmx-bumps", "bus", "dogs-jump", "flamingo",
    "mallard-fly", "paragliding", "soccerball", "tennis",
)  # fmt: skip
"""Sequences that the defaults of `TrackConfig` were chosen on."""
ABLATIONS: dict[str, dict[str, Any]] = {
    "everything": {},
    "five recent frames": {"recent": 5},
    "prompted frames alone": {"recent": 0},
    "no search for lost objects": {"redetect": False},
    "objects do not compete": {"exclusive": False},
    "nothing is lost": {"patience": 10**6},
}


@dataclass(frozen=True)
class Clip:
    """A sequence of DAVIS."""

    name: str
    folder: Path
    truth: NDArray[np.uint8]
    """(T, H, W) uint8: the id of the object at each pixel."""
    objects: tuple[int, ...]


class Once(Segmenter):
    """A segmenter that encodes each frame of a sequence once, for all methods."""

    def __init__(self, segmenter: Segmenter) -> None:
        """Take the network of a segmenter."""
        super().__init__(
            segmenter.network, segmenter.device, segmenter.precision, metadata=segmenter.metadata
        )
        self._seen: dict[bytes, Embeddings] = {}

    def encode(self, frames: Any) -> Embeddings:
        """Return the embeddings of frames, from the cache where it has them."""
        prepared = frames if isinstance(frames, Prepared) else self.prepare(frames)
        found = []
        for canvas in torch.cat(prepared.canvases)[: prepared.count]:
            key = canvas[::4, ::4].numpy().tobytes()
            if key not in self._seen:
                one = Prepared((canvas[None],), 1, prepared.frame_size)
                self._seen[key] = super().encode(one)
            found.append(self._seen[key])
        features = zip(*(one.features for one in found), strict=True)
        return Embeddings(tuple(torch.cat(part) for part in features), prepared.frame_size)

    def forget(self) -> None:
        """Empty the cache before another sequence."""
        self._seen.clear()


def sequences(root: Path, names: Sequence[str]) -> Iterator[Clip]:
    """Yield the sequences under `JPEGImages` and `Annotations`, or those with the given names."""
    for folder in sorted((root / "JPEGImages").iterdir()):
        if names and folder.name not in names:
            continue
        files = sorted((root / "Annotations" / folder.name).glob("*.png"))
        truth = np.stack([np.asarray(Image.open(file)) for file in files])
        objects = tuple(int(i) for i in np.unique(truth) if 0 < i < 255)
        yield Clip(folder.name, folder, truth, objects)


def seen(one: Clip, frame: int) -> Clip:
    """Return a sequence with those objects alone that can be seen on a frame."""
    return replace(one, objects=tuple(i for i in one.objects if (one.truth[frame] == i).any()))


def clicks(mask: Bools, count: int) -> NDArray[np.float32]:
    """Return (count, 2) simulated clicks (x, y) on an object, fewer if it is too small."""
    left, found = mask.copy(), []
    radius = APART * (np.count_nonzero(mask) / np.pi) ** 0.5
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    while left.any() and len(found) < count:
        padded = np.pad(left.astype(np.uint8), 1)
        depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        row, column = divmod(int(depth.argmax()), mask.shape[1])
        found.append((column, row))
        left &= (x - column) ** 2 + (y - row) ** 2 > radius**2
    return np.array(found, np.float32).reshape(-1, 2)


def carried(segmenter: Segmenter, one: Clip, frame: int, count: int, config: TrackConfig) -> Bools:
    """Return the masks (K, T, H, W) of `mask_video`."""
    rows = [
        {"object_id": i, "frame": frame, "x": float(x), "y": float(y)}
        for i in one.objects
        for x, y in clicks(one.truth[frame] == i, count)
    ]
    found = mask_video(one.folder, rows, segmenter, config=config)
    return np.stack([each.masks for each in found], axis=1)


def standing(segmenter: Segmenter, one: Clip, frame: int, count: int) -> Bools:
    """Return masks (K, T, H, W) from the same clicks on every frame."""
    points = [clicks(one.truth[frame] == i, count) for i in one.objects]
    labels = [np.ones(len(each), np.int64) for each in points]
    masks = []
    with Video.open(one.folder) as video:
        for each in video:
            embeddings = segmenter.encode(each.image[None])
            prompts = Prompts.of(embeddings.frame_size, points, labels)
            outputs = "best" if count == 1 else "single"
            masks.append(segmenter.decode(embeddings, prompts, outputs).masks[:, 0].cpu().numpy())
    return np.stack(masks, axis=1)


def flowed(one: Clip, frame: int, first: Bools) -> Bools:
    """Move the masks (K, H, W) of one frame to all others by dense flow: (K, T, H, W)."""
    with Video.open(one.folder) as video:
        grey = [cv2.cvtColor(each.image, cv2.COLOR_RGB2GRAY) for each in video]
    masks: dict[int, NDArray[np.float32]] = {frame: first.astype(np.float32)}
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    y, x = np.mgrid[: first.shape[1], : first.shape[2]].astype(np.float32)
    for step, stop in ((1, len(grey)), (-1, -1)):
        for t in range(frame + step, stop, step):
            flow = dis.calc(grey[t], grey[t - step], None)
            there = x + flow[..., 0], y + flow[..., 1]
            masks[t] = np.stack([cv2.remap(m, *there, cv2.INTER_LINEAR) for m in masks[t - step]])
    return np.stack([masks[t] > 0.5 for t in range(len(grey))], axis=1)


def score(one: Clip, found: Bools) -> list[float]:
    """Return J&F of each object."""
    return [
        sum(davis(list(one.truth == i), list(masks))) / 2
        for i, masks in zip(one.objects, found, strict=True)
    ]


def swallowed(one: Clip, found: Bools) -> float:
    """Return the share of frames on which a mask (K, T, H, W) covers half of another object."""
    truth = np.stack([one.truth == i for i in one.objects])
    covered = np.einsum("ithw,jthw->tij", found, truth, dtype=np.int64)
    sizes = np.count_nonzero(truth, axis=(2, 3)).T[:, None]
    others = ~np.eye(len(one.objects), dtype=np.bool_)
    return float(((2 * covered >= sizes) & (sizes > 0) & others).any(axis=(1, 2)).mean())


def compare(
    segmenter: Once, one: Clip, count: int, middle: bool, ours_only: bool
) -> tuple[dict[str, list[float]], float]:
    """Return J&F of each object that is on the clicked frame, by method, and the share of frames
    with swallowed objects."""
    frame = len(one.truth) // 2 if middle else 0
    one = seen(one, frame)
    ours = carried(segmenter, one, frame, count, TrackConfig())
    scores, share = {"carried": score(one, ours)}, swallowed(one, ours)
    if not ours_only:
        stand = standing(segmenter, one, frame, count)
        scores["standing"] = score(one, stand)
        scores["flow"] = score(one, flowed(one, frame, stand[:, frame]))
    return scores, share


def report(title: str, results: dict[str, dict[str, list[float]]]) -> None:
    """Print a table by sequence, and means over all, the tuned-on and the other sequences."""
    methods = list(next(iter(results.values())))
    print(f"\n{title}\n| sequence | {' | '.join(methods)} |\n| --- |{' ---: |' * len(methods)}")
    for name, by_method in results.items():
        print(f"| {name} | {' | '.join(f'{np.mean(by_method[m]):.3f}' for m in methods)} |")
    for label, names in (
        ("mean", list(results)),
        ("mean, tuned on", [n for n in results if n in TUNED_ON]),
        ("mean, others", [n for n in results if n not in TUNED_ON]),
    ):
        if names:
            means = [np.mean([v for n in names for v in results[n][m]]) for m in methods]
            print(f"| {label} | {' | '.join(f'{mean:.3f}' for mean in means)} |", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder as DAVIS has it")
    parser.add_argument("--sequences", nargs="*", default=[], help="some of its sequences")
    parser.add_argument("--weights", default="mini")
    parser.add_argument("--clicks", type=int, nargs="*", default=[1])
    parser.add_argument("--middle", action="store_true", help="one click on the middle frame, too")
    parser.add_argument("--ours", action="store_true", help="without the simpler methods")
    parser.add_argument("--ablate", action="store_true", help="ideas switched off, at one click")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args(argv)
    keep_memory()
    segmenter = Once(load_segmenter(options.weights, torch.device("cpu")))
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    shares: dict[str, dict[str, float]] = {}
    started = time.perf_counter()
    for one in sequences(options.data, options.sequences):
        segmenter.forget()
        if options.ablate:
            for name, off in ABLATIONS.items():
                shown = seen(one, 0)
                masks = carried(segmenter, shown, 0, 1, TrackConfig(**off))
                values = score(shown, masks)
                found.setdefault("ablation, 1 click", {}).setdefault(one.name, {})[name] = values
        else:
            ways = [(f"{n} clicks on the first frame", n, False) for n in options.clicks]
            ways += [("1 click on the middle frame", 1, True)] if options.middle else []
            for name, count, middle in ways:
                scores, share = compare(segmenter, one, count, middle, options.ours)
                found.setdefault(name, {})[one.name] = scores
                if len(one.objects) > 1:
                    shares.setdefault(name, {})[one.name] = share
        print(f"{one.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    for name, results in found.items():
        report(name, results)
        for sequence, share in shares.get(name, {}).items():
            print(f"{sequence}: a mask covers half of another object on {share:.1%} of the frames")
    facts = {"hardware": hardware(), "versions": versions()}
    print(f"\n{json.dumps(facts['hardware'])}\n{json.dumps(facts['versions'])}")
    if options.json:
        options.json.write_text(
            json.dumps({"j_and_f": found, "swallowed": shares, **facts}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
