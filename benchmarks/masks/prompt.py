"""How long a person at the page of jobs.prompt waits: click to mask, frame step, first frame.

    python -m benchmarks.masks.prompt --json benchmarks/results/masks/prompt.json

Measured over HTTP, as the page asks: from sending a request to having the answer, without what the
browser takes to draw it. The clip is made: 1920 x 1080, H.264 with one key frame, a camera
that pans over a photograph of scikit-learn. `click to mask` is a second click on a frame that is
encoded, `first click` is one on a frame that has to be encoded first; `click to saved` has the
click on disk; `frame step` is the next frame, `frame back` the one before, `any frame` lies
anywhere; `first frame` opens a file, size, rows and JPEG, that was not opened before.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from sklearn.datasets import load_sample_image

from jobs.cluster.workers import keep_memory
from jobs.page import videos
from jobs.page.server import Server
from jobs.page.session import Session
from jobs.page.store import Store
from jobs.run.machine import hardware, versions
from jobs.weights.segmenter import load_segmenter
from masking.training.staged import panned
from masking.video.writer import Film

SIZE, RATE = (1080, 1920), 25


class Browser:
    """Asks as the page does."""

    def __init__(self, server: Server) -> None:
        """Of a server."""
        self.base, self.token = f"http://127.0.0.1:{server.port}", server.token

    def ask(self, path: str, body: Any = None, method: str = "POST") -> Any:
        """The answer, decoded if it is JSON."""
        headers = {"Cookie": f"prompt-{self.base.rpartition(':')[2]}={self.token}"}
        content = None if body is None else json.dumps(body).encode()
        verb = "GET" if body is None else method
        request = urllib.request.Request(self.base + path, content, headers, method=verb)
        with urllib.request.urlopen(request) as response:
            data = response.read()
        return (
            json.loads(data) if response.headers["Content-Type"].startswith("application") else data
        )


def clip(path: Path, frames: int) -> None:
    """Write a film of a town that a camera pans over."""
    backdrop = panned(np.asarray(load_sample_image("china.jpg")), SIZE, (3.0, 1.0))
    with Film(path, "overlay", SIZE) as film:
        for index in range(frames):
            film.write(backdrop(index), index / RATE)


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds that it takes."""
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile, ms."""
    return {
        "n": len(values),
        "median_ms": statistics.median(values),
        "p95_ms": float(np.percentile(values, 95)),
        "least_ms": min(values),
        "most_ms": max(values),
    }


def opened(browser: Browser, name: str) -> None:
    """Open a video as the page does."""
    browser.ask(f"/api/video?id={name}")
    browser.ask(f"/api/frame?id={name}&index=0")


def measure(browser: Browser, files: Sequence[str], n: int, frames: int) -> dict[str, Any]:
    """All figures."""
    draw = random.Random(0)
    first = []
    for name in files:
        first.append(timed(lambda name=name: opened(browser, name)))
        while not browser.ask(f"/api/timestamps?id={name}&start=0")["complete"]:
            time.sleep(0.1)  # or the next one would share the cores with it

    def frame(index: int) -> Any:
        return browser.ask(f"/api/frame?id={name}&index={index}")

    def click(index: int, clicks: Sequence[dict[str, int]]) -> None:
        objects = [{"object_id": 1, "clicks": clicks}]
        browser.ask("/api/preview", {"id": name, "index": index, "objects": objects})

    steps = range(10, 10 + n)
    forward = [timed(lambda i=i: frame(i)) for i in steps]
    back = [timed(lambda i=i: frame(i)) for i in reversed(range(frames - n - 20, frames - 20))]
    anywhere = [timed(lambda: frame(draw.randrange(frames))) for _ in range(n)]

    def place() -> dict[str, int]:
        return {"x": draw.randrange(SIZE[1]), "y": draw.randrange(SIZE[0]), "label": 1}

    cold, warm, save = [], [], []
    for index in steps:
        frame(index)
        clicks = [place()]
        cold.append(timed(lambda i=index, c=tuple(clicks): click(i, c)))
        clicks.append(place())
        rows = browser.ask(f"/api/rows?id={name}")
        kept = [{"row": number} for number in range(len(rows["rows"]))]
        body = {"id": name, "revision": rows["revision"],
                "rows": [*kept, {"object_id": 1, "frame": index, **clicks[0]}]}  # fmt: skip
        save.append(timed(lambda b=body: browser.ask("/api/rows", b, "PUT")))
        warm.append(timed(lambda i=index, c=tuple(clicks): click(i, c)))
    return {
        "click to mask": spread(warm), "first click of a frame": spread(cold),
        "click to saved": spread(save), "frame step": spread(forward),
        "frame back": spread(back), "any frame": spread(anywhere), "first frame": spread(first),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--weights", default="mini")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args(argv)
    keep_memory()
    cv2.setNumThreads(torch.get_num_threads())
    frames = options.n + 30
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = [f"clip{number:02}" for number in range(options.n)]
        clip(folder / f"{names[0]}.mp4", frames)
        for name in names[1:]:
            shutil.copyfile(folder / f"{names[0]}.mp4", folder / f"{name}.mp4")
        source = videos.find(temporary, folder / "clicks.csv", None)
        segmenter = load_segmenter(options.weights, torch.device("cpu"))
        session = Session(Store(folder / "clicks.csv"), source.clips, segmenter, None)
        server = Server(session, "127.0.0.1", 0)
        found = measure(Browser(server), names, options.n, frames)
        server.stop()
        server.wait()
    print(f"| 1920 x 1080, {options.weights} | n | median, ms | 95th percentile, ms |")
    print("| --- | ---: | ---: | ---: |")
    for what, figures in found.items():
        print(f"| {what} | {figures['n']} | {figures['median_ms']:.0f} | {figures['p95_ms']:.0f} |")
    facts = {"hardware": hardware(), "versions": versions()}
    print(f"\n{json.dumps(facts['hardware'])}\n{json.dumps(facts['versions'])}")
    if options.json:
        result = {"size": SIZE, "frames": frames, "weights": options.weights, "ms": found, **facts}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
