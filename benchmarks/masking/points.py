"""Measures whether carried points stay on their object, with a segmenter that is always right.

    python -m benchmarks.masking.points --data vos/ --json FILE

The truth takes the place of SAM: prompted with points, it returns the object that most positive
points lie on. So only motion, filters and re-seeding are measured: the share of the points carried
to a frame since the last re-seeding that are still on the object, over all frames in which it is
visible and has points.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.masking.tracking import Clip, clicks, sequences
from jobs.cluster.workers import keep_memory
from jobs.run.machine import hardware, versions
from jobs.weights.segmenter import load_segmenter
from masking.manifest.prompt import FramePrompt
from masking.segmenter.sam import Embeddings, Prompts, Segmenter
from masking.tracking.expectation import carry_tracks
from masking.tracking.state import Scene, TrackConfig, begin, shrunk_grey
from masking.tracking.step import advance
from masking.video.reader import Video


class Right(Segmenter):
    """A segmenter with the keys of a real encoder and the true masks."""

    def __init__(self, segmenter: Segmenter) -> None:
        """Take the network of a segmenter."""
        super().__init__(segmenter.network, segmenter.device, segmenter.precision)
        self.truth: NDArray[np.uint8] = np.zeros((1, 1), np.uint8)
        """(H, W) of the frame that is decoded next."""

    def logits(self, embeddings: Embeddings, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Return true masks as logits (N, 4, h, w), and their scores (N, 4)."""
        h, w = self.low_res(embeddings.frame_size)
        found = []
        for points, labels in zip(prompts.points, prompts.labels, strict=True):
            x, y = points[labels == 1].round().long().unbind(dim=1)
            under = self.truth[y.numpy(), x.numpy()]
            number = int(np.bincount(under).argmax()) if len(under) else 0
            found.append(self._low(self.truth == number if number else self.truth > 255, (h, w)))
        logits = torch.stack(found)[:, None].expand(-1, 4, -1, -1)
        return logits, torch.where(logits.amax(dim=(2, 3)) > 0, 0.95, 0.1)

    def _low(self, mask: NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
        """Return a mask (H, W) as a network's logits (h, w): on the canvas, shrunk."""
        scale = self.mask_scale((mask.shape[0], mask.shape[1])) * self.network.mask_stride
        large = cv2.resize(mask.astype(np.float32), None, fx=scale, fy=scale)
        below, right = (
            s * self.network.mask_stride - e for s, e in zip(size, large.shape, strict=True)
        )
        canvas = F.pad(torch.from_numpy(large), (0, max(0, right), 0, max(0, below)))
        canvas = canvas[: size[0] * self.network.mask_stride, : size[1] * self.network.mask_stride]
        return 16 * F.avg_pool2d(canvas[None, None], self.network.mask_stride)[0, 0] - 8


def purity(segmenter: Right, clip: Clip, config: TrackConfig) -> dict[str, Any]:
    """Return for each object the share of carried points on it, and its frames without points."""
    tracker = begin(len(clip.objects))
    shares: list[list[float]] = [[] for _ in clip.objects]
    without = [0] * len(clip.objects)
    with Video.open(clip.folder) as video:
        for frame in video:
            truth = segmenter.truth = clip.truth[frame.index]
            embeddings = segmenter.encode(frame.image[None])
            here = Scene(embeddings, segmenter.keys(embeddings)[0], shrunk_grey(frame.image))
            prompts = {}
            if frame.index == 0:
                for row, number in enumerate(clip.objects):
                    points = clicks(truth == number, 1)
                    prompts[row] = FramePrompt(points, np.ones(len(points), np.int64))
            scale = segmenter.mask_scale(embeddings.frame_size)
            for row, track in enumerate(carry_tracks(tracker, here, scale) if frame.index else ()):
                number = clip.objects[row]
                if not (truth == number).any():
                    continue
                if not len(track.points):
                    without[row] += 1
                    continue
                x, y = track.points.round().astype(int).T
                x, y = x.clip(0, truth.shape[1] - 1), y.clip(0, truth.shape[0] - 1)
                shares[row].append(float((truth[y, x] == number).mean()))
            tracker, _ = advance(segmenter, config, tracker, here, prompts)
    return {
        "on_object": [float(np.mean(each)) for each in shares],
        "visible_frames_without_points": without,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table by sequence and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder as DAVIS has it")
    parser.add_argument("--sequences", nargs="*", default=[], help="some of its sequences")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args(argv)
    keep_memory()
    segmenter = Right(load_segmenter("mini", torch.device("cpu")))
    found = {}
    print("| sequence | on the object | visible frames without points |\n| --- | ---: | ---: |")
    for clip in sequences(options.data, options.sequences):
        found[clip.name] = purity(segmenter, clip, TrackConfig())
        on, without = found[clip.name].values()
        print(f"| {clip.name} | {np.mean(on):.3f} | {sum(without)} |", flush=True)
    mean = float(np.mean([share for each in found.values() for share in each["on_object"]]))
    print(f"| mean over objects | {mean:.3f} | |")
    facts = {"hardware": hardware(), "versions": versions()}
    if options.json:
        result = {"mean": mean, "sequences": found, **facts}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
