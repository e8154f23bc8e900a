"""Videos, a session over two of them, and a server for the tests in a browser."""

import struct

import pytest
import torch

from docs.demo import SIZE as CLIP_SIZE
from docs.demo import stages
from jobs.page import videos as prompt_videos
from jobs.page.review import MaskRun
from jobs.page.server import Server
from jobs.page.session import Session
from jobs.page.store import Store
from jobs.weights.segmenter import load_segmenter
from masking.video.writer import Film
from tests.jobs.page.rows import LENGTH
from tests.masking.tracking.test_masking import film
from tests.moving import picture, segmenter


@pytest.fixture(scope="module")
def clip():
    return [picture({1: (30 + 2 * t, 40, 13), 2: (130 - 2 * t, 70, 13)}) for t in range(LENGTH)]


@pytest.fixture(scope="module")
def videos(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    film(folder / "a.mp4", clip)
    film(folder / "b.mp4", clip[:9])
    return folder


@pytest.fixture
def session(videos, tmp_path):
    store = Store(tmp_path / "m.csv")
    source = prompt_videos.find(str(videos), tmp_path / "m.csv", None)
    found = Session(store, source.clips, segmenter(), None)
    yield found
    found.close()


@pytest.fixture(scope="module")
def mini():
    return load_segmenter("mini", torch.device("cpu"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """The demo's clip, a short one, and the short one rotated."""
    folder = tmp_path_factory.mktemp("clips")
    with Film(folder / "demo.mp4", "overlay", CLIP_SIZE) as target:
        for index, (image, _) in zip(range(30), stages()["flower"], strict=False):
            target.write(image, index / 25)
    film(folder / "discs.mp4", [picture({1: (30 + 2 * t, 40, 13)}) for t in range(12)])
    turned = (folder / "discs.mp4").read_bytes()
    at = turned.index(b"tkhd") + 4 + 40  # the matrix of the track's header: a quarter turn
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 96 << 16, 0, 1 << 30)
    (folder / "turned.mp4").write_bytes(turned[:at] + matrix + turned[at + 36 :])
    return folder


@pytest.fixture
def serve(clips, tmp_path):
    """Return a function that serves some of the clips with a segmenter."""
    started = []

    def begin(segmenter, videos=clips, run=None):
        source = prompt_videos.find(str(run or videos), tmp_path / "m.csv", None)
        store = Store(tmp_path / "m.csv", source.rows)
        reviewed = None if source.run is None else MaskRun(source.run)
        server = Server(Session(store, source.clips, segmenter, reviewed), "127.0.0.1", 0)
        started.append(server)
        return server

    yield begin
    for server in started:
        server.stop()
        server.wait()
