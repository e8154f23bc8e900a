"""How long a person at the page of jobs.prompt waits for masks, frames and saves.

    python -m benchmarks.masks.prompt --json benchmarks/results/masks/prompt.json

The times are those of HTTP requests as the page sends them, without the drawing in the browser. The
clip is generated: 1920 x 1080, H.264 with one key frame, a camera that pans over a photograph of
scikit-learn.

    click to mask           a second click on a frame that is encoded
    first click of a frame  a click on a frame that must be encoded first
    click to saved          until the click is on disk
    frame step, frame back  the next frame, the previous frame
    any frame               a frame at random
    first frame             opening a video for the first time, and loading its first frame
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
    """Sends requests as the page does."""

    def __init__(self, server: Server) -> None:
        """Take the address and token of a server."""
        self.base, self.token = f"http://127.0.0.1:{server.port}", server.token

    def ask(self, path: str, body: Any = None, method: str = "POST") -> Any:
        """Send a request, and return the answer, decoded if it is JSON."""
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
    """Write a film in which a camera pans over a photograph of a town."""
    backdrop = panned(np.asarray(load_sample_image("china.jpg")), SIZE, (3.0, 1.0))
    with Film(path, "overlay", SIZE) as film:
        for index in range(frames):
            film.write(backdrop(index), index / RATE)


def timed(call: Callable[[], Any]) -> float:
    """Return how many milliseconds a call takes."""
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the distribution of times in ms."""
    return {
        "n": len(values),
        "median_ms": statistics.median(values),
        "p95_ms": float(np.percentile(values, 95)),
        "least_ms": min(values),
        "most_ms": max(values),
    }


def open_video(browser: Browser, name: str) -> str:
    """Open a video as the page does; returns the version of its file."""
    version: str = browser.ask(f"/api/video?id={name}")["version"]
    browser.ask(f"/api/frame?id={name}&index=0&version={version}")
    return version


def measure(browser: Browser, files: Sequence[str], n: int, frames: int) -> dict[str, Any]:
    """Measure all figures; returns the distribution of each."""
    draw = random.Random(0)
    first = []
    for name in files:
        first.append(timed(lambda name=name: open_video(browser, name)))
        while not browser.ask(f"/api/timestamps?id={name}&start=0")["complete"]:
            time.sleep(0.1)  # so that its scan does not share the cores with the next video
    version = open_video(browser, name)

    def frame(index: int) -> Any:
        return browser.ask(f"/api/frame?id={name}&index={index}&version={version}")

    def click(index: int, clicks: Sequence[dict[str, int]]) -> None:
        objects = [{"object_id": 1, "clicks": clicks}]
        body = {"id": name, "index": index, "version": version, "objects": objects}
        browser.ask("/api/preview", body)

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
