"""Click objects in a browser: a folder of videos becomes the manifest that `jobs.mask` takes.

    python -m jobs.prompt videos/ --out clicks.csv

It prints an address and opens it. VIDEOS is a folder of videos or of images, a video, a manifest
(.csv, .jsonl, .parquet), or the --out of a jobs.mask run, whose masks are then shown and whose
doubtful spans are corrected or accepted one by one. Every click is in --out before the page shows
it; the same command continues with the clicks there. Over SSH: `ssh -L 8765:127.0.0.1:8765 HOST`,
then open the printed address.

From Python, also in a notebook:

    from jobs.prompt import click
    clicks = click("videos/", "clicks.csv")  # a DataFrame, once "Done" is pressed in the page
"""

import os
import shlex
import sys
import time
import webbrowser
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from jobs.page import videos as prompt_videos
from jobs.page.review import MaskRun
from jobs.page.server import Server
from jobs.page.session import Session
from jobs.page.store import Store
from jobs.run.config import ConfigError, Positional
from jobs.run.device import choose_device
from jobs.run.main import run_job
from jobs.run.signals import Stop, background
from jobs.storage.location import Location
from jobs.storage.publish import sweep
from jobs.weights.segmenter import announce, load_segmenter
from masking.manifest.faults import ManifestError
from masking.manifest.rows import object_faults, parse_rows, prompts
from masking.segmenter.sam import SegmenterWeightsError

_PATIENCE = 3.0  # seconds for a start to end by itself after a signal


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Settings of `jobs.prompt`."""

    videos: Positional[str]
    """A folder of videos or images, a video, a manifest, or the --out of a jobs.mask run."""
    out: str
    """Manifest to create or continue: a local .csv, .jsonl or .parquet file."""
    root: str | None = None
    """Folder to which relative uris refer. Default: the folder of the manifest."""
    weights: str | None = None
    """Weights for previews, as for jobs.mask: mini, vit_b, vit_l, vit_h, sam2.1-tiny, sam2.1-small,
    sam2.1-base-plus, sam2.1-large, edgetam, sam3-tracker; or a file or folder, local or s3://.
    Default: mini, or those of the mask run in VIDEOS."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on a GPU if there is one, else on the CPU."""
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 opens the page to every network of this machine: anyone who has
    the address with its token can see the videos, and the connection is not encrypted."""
    port: int = 8765
    """Port to listen on; 0: any free port."""
    browser: bool = True
    """Open the page in a browser of this machine."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"--port is {self.port}; 0 to 65535 is needed")
        if "://" in self.out:
            raise ConfigError(f"--out {self.out}: a local file is needed; copy it from there later")


def start(config: PromptConfig) -> Server:
    """The stages of the job, in order; returns the server of the page."""
    # 1. The videos, and the clicks so far.
    out = Path(config.out).expanduser().absolute()
    source = prompt_videos.find(config.videos, out, config.root)
    run = None if source.run is None else MaskRun(source.run)
    # 2. The segmenter for previews.
    weights = config.weights or ("mini" if run is None else run.weights)
    announce(weights)
    segmenter = load_segmenter(weights, choose_device(config.device))
    # 3. The manifest, in which every click is saved at once.
    try:
        store = Store(out, source.rows)
    except ManifestError as error:
        raise prompt_videos.manifest_error(out, error) from error
    try:
        sweep(out.parent, deep=False)
        base = Location.parse(out.parent if config.root is None else config.root)
        clips = prompt_videos.join_clips(
            prompt_videos.clips_of(store.videos.values(), base), source.clips
        )
        # 4. The page.
        return Server(Session(store, clips, segmenter, run, base), config.host, config.port)
    except BaseException:
        store.close()
        raise


def show(config: PromptConfig, server: Server) -> None:
    """Print the address of the page, and open it."""
    videos = len(server.session.videos())
    print(
        f"{videos:,} videos, clicks in {server.session.store.path}\n  {server.address}\n"
        "End with Ctrl-C, or Done in the page; every click is saved at once.",
        flush=True,
    )
    if config.browser:
        _open(server.address_once)


def conclude(server: Server, config: PromptConfig) -> None:
    """Print the number of clicks, the faults in them, and the command that masks the videos."""
    store, run = server.session.store, server.session.run
    videos = objects = clicks = 0
    faults: list[str] = []
    for video_id in store.videos:
        rows = prompts(parse_rows(store.rows(video_id))[0])
        videos += bool(rows)
        clicks += len(rows)
        objects += len({row.object_id for row in rows})
        faults += [f"{video_id}: {fault}" for fault in object_faults(rows)]
    print(f"{clicks:,} clicks on {objects:,} objects of {videos:,} videos: {store.path}")
    for fault in faults:
        print(f"  not ready: {fault}")
    if clicks and not faults:
        root = config.root or (None if run is None else str(store.path.parent))
        flags = ["--manifest", str(store.path), *([] if root is None else ["--root", root])]
        # A run is resumed with its own settings: others are refused.
        kept = [] if run is None or run.out.is_s3 else ["--config", f"{run.out}/config.yaml"]
        out = ["--out", "runs/masks" if run is None else str(run.out)]
        print(f"  next: {shlex.join(['python', '-m', 'jobs.mask', *kept, *flags, *out])}")


def click(
    videos: str | Path, out: str | Path = "clicks.csv", weights: str | None = None, **settings: Any
) -> pd.DataFrame:
    """Click objects in a browser; returns the clicks after "Done" is pressed in the page.

    Args:
        videos: a folder of videos, a video, a manifest, or the --out of jobs.mask.
        out: the manifest that every click is saved in at once; its clicks so far are kept.
        weights: weights for previews, as in `PromptConfig`.
        settings: other fields of `PromptConfig`, such as `port`.

    Returns:
        The manifest, one row a click.

    Raises:
        ConfigError, SegmenterWeightsError, StorageError: the page cannot be started.
    """
    config = PromptConfig(videos=str(videos), out=str(out), weights=weights, **settings)
    server = start(config)
    show(config, server)
    try:
        server.wait()
    except KeyboardInterrupt:  # the stop button of a notebook
        server.stop()
        server.wait()
    return server.session.store.table()


def run(config: PromptConfig) -> int:
    """Serve the page until it is closed, or a signal comes; returns the exit code."""
    with Stop() as stop:
        server = _started(background(lambda: start(config)), stop)
        if server is None:
            return stop.exit_code
        stop.then(server.stop)
        show(config, server)
        server.wait()
    conclude(server, config)
    return stop.exit_code


def _started(starting: Future[Server], stop: Stop) -> Server | None:
    """Wait for the server; None: a signal came, and the start takes longer than a person waits."""
    deadline: float | None = None
    while not starting.done():
        if stop.requested.wait(0.02):
            deadline = deadline or time.monotonic() + _PATIENCE
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)
    return starting.result()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    return run_job(
        run, PromptConfig, argv, "jobs.prompt", __doc__, (SegmenterWeightsError, ManifestError)
    )


def _open(address: str) -> None:
    """Open a browser if this machine has a display."""
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)


if __name__ == "__main__":
    sys.exit(main())
