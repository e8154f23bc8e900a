"""Click objects in a browser: a folder of videos becomes the manifest that `jobs.mask` takes.

    python -m jobs.prompt videos/ --out clicks.csv

It prints an address and opens it. VIDEOS is a folder of videos or of images, a video, a manifest
(.csv, .jsonl, .parquet), or the --out of a jobs.mask run: then its masks are shown, and one goes
from doubtful span to doubtful span to correct or accept them. Every click is in --out before the
page says so; the same command goes on with what is there. Over SSH: `ssh -L 8765:127.0.0.1:8765
HOST`, then open the printed address.

From Python, a notebook too:

    from jobs.prompt import click
    clicks = click("videos/", "clicks.csv")  # a DataFrame, once "Done" is pressed in the page
"""

import os
import shlex
import sys
import webbrowser
from collections.abc import Sequence
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
from jobs.run.signals import Stop
from jobs.storage.location import Location
from jobs.weights.segmenter import announce, load_segmenter
from masking.manifest.rows import ManifestError, object_faults, parse_rows, prompts
from masking.segmenter.sam import SegmenterWeightsError


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Settings of `jobs.prompt`."""

    videos: Positional[str]
    """A folder of videos or images, a video, a manifest, or the --out of a jobs.mask run."""
    out: str
    """The manifest to make, or to go on with: a local .csv, .jsonl or .parquet."""
    root: str | None = None
    """What relative uris are relative to, as of jobs.mask. Default: the folder of the manifest."""
    weights: str | None = None
    """Of previews: mini, vit_b, vit_l, vit_h, or a file or a run's folder, local or s3://. Default:
    mini, or those of the mask run that is looked through."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    host: str = "127.0.0.1"
    """Where to listen. 0.0.0.0 is every network of this machine: whoever has the address with its
    token sees the videos, unencrypted."""
    port: int = 8765
    """Port to listen on; 0: any that is free."""
    browser: bool = True
    """Open the page in a browser of this machine."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"--port is {self.port}; 0 to 65535 is needed")
        if "://" in self.out:
            raise ConfigError(f"--out {self.out}: a local file is needed; copy it from there later")


def begin(config: PromptConfig) -> Server:
    """The stages of the job, in order; the last one answers requests."""
    # 1. What there is to click on, and what was clicked.
    out = Path(config.out).expanduser().absolute()
    source = prompt_videos.find(config.videos, out, config.root)
    run = None if source.run is None else MaskRun(source.run)
    # 2. What previews are made with.
    weights = config.weights or ("mini" if run is None else run.weights)
    announce(weights)
    segmenter = load_segmenter(weights, choose_device(config.device))
    # 3. The manifest, in which every click is saved at once.
    try:
        store = Store(out, source.rows)
    except ManifestError as error:
        raise prompt_videos.manifest_error(out, error) from error
    try:
        base = Location.parse(out.parent if config.root is None else config.root)
        clips = prompt_videos.join_clips(
            prompt_videos.clips_of(store.videos.values(), base), source.clips
        )
        # 4. The page.
        return Server(Session(store, clips, segmenter, run), config.host, config.port)
    except BaseException:
        store.close()
        raise


def show(config: PromptConfig, server: Server) -> None:
    """Say where the page is, and open it."""
    videos = len(server.session.videos())
    print(
        f"{videos:,} videos, clicks in {server.session.store.path}\n  {server.address}\n"
        "Ctrl-C, or Done in the page, ends it; every click is saved at once.",
        flush=True,
    )
    if config.browser:
        _open(server.address)


def conclude(server: Server, config: PromptConfig) -> None:
    """Say what there is, and what comes next."""
    store, run, videos = server.session.store, server.session.run, 0
    objects = clicks = 0
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
        # A run goes on with its own settings: others are refused.
        kept = [] if run is None or run.out.is_s3 else ["--config", f"{run.out}/config.yaml"]
        out = ["--out", "runs/masks" if run is None else str(run.out)]
        print(f"  next: {shlex.join(['python', '-m', 'jobs.mask', *kept, *flags, *out])}")


def click(
    videos: str | Path, out: str | Path = "clicks.csv", weights: str | None = None, **settings: Any
) -> pd.DataFrame:
    """Click objects in a browser; returns the clicks once "Done" is pressed in the page.

    Args:
        videos: a folder of videos, a video, a manifest, or the output of jobs.mask.
        out: the manifest, in which every click is saved at once; one that is there is gone on with.
        weights: that masks are previewed with, as of `PromptConfig`.
        settings: others of `PromptConfig`, such as `port`.

    Returns:
        The manifest, one row a click.

    Raises:
        ConfigError, SegmenterWeightsError, StorageError: it cannot begin; the message says why.
    """
    config = PromptConfig(videos=str(videos), out=str(out), weights=weights, **settings)
    server = begin(config)
    show(config, server)
    try:
        server.wait()
    except KeyboardInterrupt:  # the kernel's stop button: what was clicked so far
        server.stop()
        server.wait()
    return server.session.store.table()


def run(config: PromptConfig) -> int:
    """Serve the page until it is closed, or a signal comes; returns the exit code."""
    with Stop() as stop:
        server = begin(config)
        stop.then(server.stop)
        show(config, server)
        server.wait()
    conclude(server, config)
    return stop.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    return run_job(
        run, PromptConfig, argv, "jobs.prompt", __doc__, (SegmenterWeightsError, ManifestError)
    )


def _open(address: str) -> None:
    """Open a browser, if there is a screen; it must not write between our lines."""
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)


if __name__ == "__main__":
    sys.exit(main())
