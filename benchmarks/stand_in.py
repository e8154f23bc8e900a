"""A stand-in for encoder and decoder, and workers of `jobs.mask` that use it.

The stand-in returns at once, or sleeps as long as a GPU would take, which leaves the CPU idle; only
one call sleeps at a time, as a GPU works on one call at a time. It returns a disc around the
clicks, so that the tracker and the output have their usual work.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jobs import mask
from jobs.masks import batch
from jobs.masks.video import Masker
from masking.segmenter.sam import Segmenter

ENCODE_SHARE = 0.8
"""Share of a frame's sleep in the encoder; the rest is in each call of the decoder."""


class StandIn(nn.Module):
    """A network with the methods that `Segmenter` calls, and without weights."""

    mask_stride, fill, radius = 4, (0.0, 0.0, 0.0), 24.0
    autocast = True

    def __init__(self, seconds: float) -> None:
        """Take the time of a frame in seconds; 0: it returns at once."""
        super().__init__()
        self.seconds, self.busy, self._one = seconds, 0.0, threading.Lock()

    def _work(self, share: float) -> None:
        if self.seconds:
            with self._one:
                time.sleep(share * self.seconds)
                self.busy += share * self.seconds

    def scale(self, frame_size: tuple[int, int]) -> float:
        """Return 1: frames are not resized."""
        return 1.0

    def canvas(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """Return the size of a frame, rounded up to multiples of 16 pixels."""
        h, w = (-(-side // 16) * 16 for side in frame_size)
        return h, w

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the mean colours of cells of 16 x 16 pixels."""
        self._work(ENCODE_SHARE * len(images))
        return (F.avg_pool2d(images, 16),)

    def keys(self, features: tuple[Tensor, ...]) -> Tensor:
        """Return how red each cell is, which separates the disc from the background."""
        red = features[0][:, :1] - features[0][:, 1:2]
        return torch.cat([red, torch.full_like(red, 20.0)], dim=1)

    def decode(
        self,
        features: tuple[Tensor, ...],
        frames: Tensor | None,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor,
        mask_input: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return a disc around the mean of the positive points."""
        self._work(1 - ENCODE_SHARE)
        h, w = (4 * side for side in features[0].shape[-2:])
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        positive = (labels == 1).float()[..., None]
        middle = (points * positive).sum(1) / positive.sum(1).clamp(min=1) / self.mask_stride
        distance = torch.hypot(x - middle[:, 0, None, None], y - middle[:, 1, None, None])
        logits = (self.radius / self.mask_stride - distance).clamp(-8, 8)
        return logits[:, None].expand(-1, 4, -1, -1), torch.full((len(points), 4), 0.95)


class Timed(nn.Module):
    """A network with a clock: `busy` is the time spent in it, in s, summed over threads."""

    def __init__(self, network: Any) -> None:
        """Wrap a network."""
        super().__init__()
        self.network, self.busy = network, 0.0

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Call the network's `encode`."""
        started = time.perf_counter()
        found: tuple[Tensor, ...] = self.network.encode(images)
        self.busy += time.perf_counter() - started
        return found

    def decode(self, *asked: Any) -> tuple[Tensor, Tensor]:
        """Call the network's `decode`."""
        started = time.perf_counter()
        found: tuple[Tensor, Tensor] = self.network.decode(*asked)
        self.busy += time.perf_counter() - started
        return found


class Worker(Masker):
    """A worker of `jobs.mask` whose records have the time spent in the network."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Mask a video as `Masker` does, with begun, ended and busy in the record."""
        begun, busy = time.time(), self.network.busy
        record = json.loads(super().__call__(row)["record"])
        record |= {"begun": begun, "ended": time.time(), "busy": self.network.busy - busy}
        return {"record": json.dumps(record)}


class MiniWorker(Worker):
    """A worker with the network of `--weights`."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        """Take the arguments of `Masker`."""
        super().__init__(*arguments, **more)
        self.network = Timed(self.segmenter.network)
        self.segmenter = Segmenter(
            self.network,
            self.segmenter.device,
            self.segmenter.precision,  # type: ignore[arg-type]
        )


class SleepingWorker(Worker):
    """A worker with a stand-in that takes 25 ms per frame."""

    seconds = 0.025

    def __init__(self, *arguments: Any, **more: Any) -> None:
        """Take the arguments of `Masker`."""
        super().__init__(*arguments, **more)
        self.network = StandIn(self.seconds)
        self.segmenter = Segmenter(self.network, torch.device("cpu"), "float32")  # type: ignore[arg-type]


class InstantWorker(SleepingWorker):
    """A worker with a stand-in that returns at once."""

    seconds = 0.0


@contextmanager
def workers(kind: type[Masker]) -> Iterator[None]:
    """Make `jobs.mask` use another class of workers when it is called in this process."""
    before = batch.Masker
    batch.Masker = kind  # type: ignore[misc]
    try:
        yield
    finally:
        batch.Masker = before  # type: ignore[misc]


def run(kind: type[Masker], *flags: object) -> int:
    """Run `jobs.mask` with other workers, in this process, on a Ray of its own.

    Returns:
        The exit code.
    """
    os.environ["RAY_ADDRESS"] = "local"  # not a cluster that runs on this machine
    with workers(kind):
        return mask.main([*map(str, flags), "--device", "cpu"])


def write_clip(path: Path, frames: int, size: tuple[int, int], seed: int = 0) -> Path:
    """Write a film of a bright disc that moves over a textured background."""
    random = np.random.default_rng(seed)
    h, w = size
    ground = np.kron(random.integers(60, 160, (h // 6 + 1, w // 6 + 1)), np.ones((6, 6)))[:h, :w]
    y, x = np.mgrid[:h, :w]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = h, w, "yuv420p"
        for t in range(frames):
            middle = (0.5 + 0.3 * np.sin(t / 40)) * w, 0.5 * h
            image = np.repeat(ground[..., None], 3, axis=2).astype(np.uint8)
            inside = np.hypot(x - middle[0], y - middle[1]) < min(h, w) / 10
            # Optical flow needs a texture that moves with the disc.
            texture = 25 * np.sin((x - middle[0]) / 3) * np.cos((y - middle[1]) / 3)
            image[inside] = np.array([200, 60, 60]) + texture[inside][:, None]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_manifest(path: Path, names: list[str], size: tuple[int, int]) -> Path:
    """Write a manifest with a click on the disc of each clip."""
    lines = [f"{name},1,0,{size[1] // 2},{size[0] // 2}" for name in names]
    path.write_text("\n".join(["uri,object_id,frame,x,y", *lines]) + "\n")
    return path
