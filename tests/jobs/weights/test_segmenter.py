import hashlib
import multiprocessing
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jobs.storage import cache as fetching
from jobs.storage.location import Location, StorageError
from jobs.weights import segmenter as segmenters
from jobs.weights.segmenter import NAMES, OFFICIAL, Published, load_segmenter, locate
from masking.segmenter.mini import Mini
from masking.segmenter.sam import SegmenterWeightsError
from tests.masking.segmenter.networks import small_sam

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and no waiting between attempts."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PATCHRAY_CACHE", str(folder))
    monkeypatch.setattr(fetching, "RETRY_WAITS", (0, 0, 0))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Bytes of a checkpoint as Meta's, of a small SAM."""
    file = tmp_path_factory.mktemp("weights") / "sam.pth"
    torch.save(small_sam().state_dict(), file)
    return file.read_bytes()


class Web:
    """A server of one file, at any path."""

    def __init__(self, data):
        self.data, self.requests, self.truncate = data, [], []
        handler = type("Handler", (_Handler,), {"web": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        web, wanted = self.web, self.headers.get("Range")
        web.requests.append((self.path, wanted))
        start = int(wanted[len("bytes=") : -1]) if wanted else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(web.data) - start))
        self.end_headers()
        self.wfile.write(web.data[start:][: web.truncate.pop(0) if web.truncate else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def web(checkpoint, monkeypatch):
    """The small checkpoint where vit_b is looked for."""
    web = Web(checkpoint)
    thread = threading.Thread(target=web.server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(segmenters, "SOURCE", web.url)
    sha256 = hashlib.sha256(checkpoint).hexdigest()
    monkeypatch.setitem(segmenters.OFFICIAL, "vit_b", Published("sam_b.pth", sha256))
    yield web
    web.server.shutdown()
    web.server.server_close()
    thread.join()


def left(folder):
    """Files in the cache, but for locks."""
    return [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")]


def test_published_checkpoints():
    assert {name: (p.file, p.sha256[:6], len(p.sha256)) for name, p in OFFICIAL.items()} == {
        "vit_b": ("sam_vit_b_01ec64.pth", "ec2df6", 64),
        "vit_l": ("sam_vit_l_0b3195.pth", "3adcc4", 64),
        "vit_h": ("sam_vit_h_4b8939.pth", "a7bf3b", 64),
    }


def test_a_name_is_fetched_once(web, cache):
    segmenter = load_segmenter("vit_b", CPU)
    assert segmenter.mask_scale((128, 64)) == 0.5  # 256 pixels of canvas, 64 of logits
    assert web.requests == [("/sam_b.pth", None)]
    assert locate("vit_b").is_relative_to(cache)
    assert len(web.requests) == 1


def test_a_download_goes_on_where_it_broke_off(web, checkpoint):
    web.truncate = [1000, 5000]
    assert locate("vit_b").read_bytes() == checkpoint
    assert [wanted for _, wanted in web.requests] == [None, "bytes=1000-", "bytes=6000-"]


def test_a_download_that_stays_truncated(web, cache):
    web.truncate = [1000, 0, 0, 0]
    with pytest.raises(StorageError, match=r"1000 of \d+ bytes arrived; run again"):
        load_segmenter("vit_b", CPU)
    assert not list(cache.rglob("sam_b.pth"))


def test_a_tampered_download(web, cache):
    web.data = web.data[:-1] + bytes([web.data[-1] ^ 1])
    with pytest.raises(StorageError, match=r"sam_b\.pth is not the file that was expected"):
        load_segmenter("vit_b", CPU)
    assert left(cache) == []


def test_processes_that_ask_at_once_download_once(web, cache):
    """Forked, for the time that an import takes: they only download."""
    context = multiprocessing.get_context("fork")
    start, found = context.Barrier(2), context.SimpleQueue()

    def ask():
        start.wait()
        found.put(str(locate("vit_b")))

    children = [context.Process(target=ask) for _ in range(2)]
    for child in children:
        child.start()
    (path,) = {found.get() for _ in children}
    for child in children:
        child.join()
    assert len(web.requests) == 1
    assert left(cache) == [Path(path)]


@pytest.mark.parametrize("where", ["local", "s3"])
@pytest.mark.parametrize("named", ["file", "export", "run"])
def test_a_path(where, named, tmp_path, request):
    text = request.getfixturevalue("s3") if where == "s3" else str(tmp_path)
    run = Location.parse(text) / "run"
    file = tmp_path / "mini.safetensors"
    save_file(Mini().state_dict(), file, {"architecture": "mini"})
    (run / "export" / "model.safetensors").write_bytes(file.read_bytes())
    (run / "checkpoints" / "big").write_bytes(b"not to be copied")
    parts = {"file": run / "export" / "model.safetensors", "export": run / "export", "run": run}
    assert isinstance(load_segmenter(str(parts[named]), CPU).network, Mini)
    assert list((tmp_path / "cache").rglob("big")) == []


def test_neither_a_name_nor_a_path():
    with pytest.raises(
        SegmenterWeightsError, match=r"vit_x: neither a name \(mini, vit_b, vit_l, vit_h"
    ):
        load_segmenter("vit_x", CPU)


def test_mini_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(segmenters.masking, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(SegmenterWeightsError, match=r"mini: .*mini\.safetensors is missing"):
        load_segmenter("mini", CPU)


def test_mini_ships_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(segmenters.masking, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "weights").mkdir()
    save_file(
        {name: tensor.half() for name, tensor in Mini().state_dict().items()},
        tmp_path / "weights" / "mini.safetensors",
        {"architecture": "mini"},
    )
    assert isinstance(load_segmenter("mini", CPU).network, Mini)
    assert NAMES[0] == "mini"
