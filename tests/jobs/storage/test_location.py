import errno
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from jobs.storage import cache as fetching
from jobs.storage.cache import fetch, localize, localize_in, once
from jobs.storage.location import CHUNK, Entry, Location, StorageError, check_writable
from tests.conftest import ROOT
from tests.flaky_s3 import flaky

MB = 1 << 20


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """An empty folder, on disk and in S3."""
    text = request.getfixturevalue("s3") if request.param == "s3" else str(tmp_path)
    return Location.parse(text) / "run"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and no waiting between attempts."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PATCHRAY_CACHE", str(folder))
    monkeypatch.setattr(fetching, "RETRY_WAITS", (0, 0, 0))
    return folder


def noise(size, seed=0):
    return np.random.default_rng(seed).bytes(size)


def all_files(folder):
    """Every file, hidden ones too, but for locks."""
    return sorted(
        str(path.relative_to(folder))
        for path in Path(folder).rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    )


def run_python(code, *args, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)], cwd=ROOT, **kwargs
    )


# Paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/abs/x", "/abs/x"),
        ("/abs/x/", "/abs/x"),
        ("file:///abs/a%20b", "/abs/a b"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket//a/b%20 c/", "s3://bucket/a/b%20 c"),
        ("s3://bucket/a?scheme=http", "s3://bucket/a?scheme=http"),
    ],
)
def test_parse_and_str(text, expected):
    location = Location.parse(text)
    assert str(location) == expected
    if not text.startswith("file:"):
        assert Location.parse(str(location)) == location


def test_relative_paths_are_absolute_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    location = Location.parse("runs/demo")
    monkeypatch.chdir("/")
    assert location.local_path == tmp_path / "runs/demo"
    assert Location.parse(Path("~/x")).local_path == Path.home() / "x"


def test_join_keeps_what_a_uri_carries():
    location = Location.parse("s3://bucket?scheme=http") / "a/b" / "c.json"
    assert str(location) == "s3://bucket/a/b/c.json?scheme=http"
    assert location.name == "c.json"
    assert location.local_path is None
    assert str(Location.parse("/") / "a") == "/a"


@pytest.mark.parametrize(
    "text", ["", "gs://bucket/x", "s3://", "s3:///x", "s3://key:secret@bucket/x", "s3:/bucket/x"]
)
def test_what_is_no_location_is_refused(text):
    with pytest.raises(StorageError) as caught:
        Location.parse(text)
    assert "secret" not in str(caught.value)


def test_a_name_cannot_leave_its_folder():
    with pytest.raises(StorageError, match=r"\.\."):
        Location.parse("s3://bucket/a") / "../b"


def test_ray_storage(tmp_path, s3):
    assert Location.parse(tmp_path).ray_storage() == (str(tmp_path), None)
    (Location.parse(s3) / "run/x").write_bytes(b"1")
    path, filesystem = pickle.loads(pickle.dumps((Location.parse(s3) / "run").ray_storage()))
    assert [info.path for info in filesystem.get_file_info(fs.FileSelector(path))] == [path + "/x"]


def test_options_in_the_uri(s3, s3_server, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    host = s3_server.removeprefix("http://")
    location = Location.parse(f"{s3}/a?endpoint_override={host}&scheme=http")
    location.write_bytes(b"x")
    assert location.read_bytes() == b"x"
    with pytest.raises(StorageError, match="endpoint_overide"):
        Location.parse(f"{s3}/a?endpoint_overide={host}").read_bytes()


# Files


@pytest.mark.parametrize("size", [0, 1, CHUNK, 2 * CHUNK + 5])
def test_write_and_read(place, size):
    data = noise(size)
    file = place / "deep/folder/data.bin"
    file.write_bytes(data)
    assert file.read_bytes() == data
    assert [(entry.path, entry.size) for entry in place.walk()] == [("deep/folder/data.bin", size)]


def test_write_replaces(place):
    file = place / "last.json"
    file.write_bytes(noise(100_000))
    file.write_bytes(b"new")
    assert file.read_bytes() == b"new"
    assert [entry.name for entry in place.list()] == ["last.json"]


def test_any_buffer(place):
    array = np.arange(6, dtype=np.float32)
    (place / "x").write_bytes(memoryview(array))
    assert (place / "x").read_bytes() == array.tobytes()


def test_names_are_literal(place):
    # pyarrow's streams would compress by the ending; URIs would decode the rest.
    for name in ["a.json.gz", "ü b%20#&+.txt"]:
        (place / name).write_bytes(b"plain")
        assert (place / name).read_bytes() == b"plain"
        assert name in [entry.name for entry in place.list()]


def test_text_and_json(place):
    (place / "t").write_text("grün\n")
    assert (place / "t").read_text() == "grün\n"
    (place / "j").write_json({"a": [1, None]})
    assert (place / "j").read_json() == {"a": [1, None]}
    with pytest.raises(StorageError, match=r"run/t is not JSON"):
        (place / "t").read_json()


def test_open_seeks(place):
    data = noise(100_000)
    (place / "x").write_bytes(data)
    with (place / "x").open() as file:
        file.seek(70_000)
        assert file.read(10) == data[70_000:70_010]


def test_absent(place):
    absent = place / "nothing"
    assert not absent.exists()
    assert absent.list() == absent.walk() == ()
    absent.delete()
    for read in (absent.read_bytes, absent.read_json, absent.open):
        with pytest.raises(StorageError, match=r"cannot read .*run/nothing.*; check the path") as e:
            read()
        assert e.value.errno == errno.ENOENT


def test_list_tells_files_from_folders(place):
    before = time.time()
    for name in ["b/deep/1", "a", "b/2"]:
        (place / name).write_bytes(name.encode())
    assert [(e.name, e.size, e.is_folder) for e in place.list()] == [
        ("a", 1, False),
        ("b", 0, True),
    ]
    assert [(e.path, e.name, e.size) for e in place.walk()] == [
        ("a", "a", 1),
        ("b/2", "2", 3),
        ("b/deep/1", "1", 8),
    ]
    assert all(abs(e.mtime_ns / 1e9 - before) < 100 for e in place.walk())
    assert (place / "b").exists()
    assert [(e.path, e.size) for e in (place / "b/2").walk()] == [("", 3)]


def test_folder_keys_are_not_files(s3):
    place = Location.parse(s3) / "run"
    place.filesystem.create_dir(place.path)
    place.filesystem.create_dir((place / "sub").path)
    (place / "sub/x").write_bytes(b"1")
    assert [(e.name, e.is_folder) for e in place.list()] == [("sub", True)]
    assert [e.path for e in place.walk()] == ["sub/x"]


def test_delete(place):
    for name in ["a", "b/1", "b/c/2", "bb"]:
        (place / name).write_bytes(b"x")
    (place / "a").delete()
    (place / "b").delete()
    assert not (place / "a").exists()
    assert not (place / "b").exists()
    assert [entry.path for entry in place.walk()] == ["bb"]
    place.delete()
    assert place.walk() == ()


def test_a_location_works_in_another_process(place):
    code = """
    import pickle, sys
    location = pickle.loads(bytes.fromhex(sys.argv[1]))
    (location / "x").write_bytes(b"from a worker")
    """
    assert run_python(code, pickle.dumps(place).hex()).wait() == 0
    assert (place / "x").read_bytes() == b"from a worker"


def test_upload_and_download(place, tmp_path):
    tree = {"a.bin": noise(MB), "deep/er/b.bin": noise(CHUNK + 1), "deep/empty": b""}
    for name, data in tree.items():
        (Location.parse(tmp_path / "source") / name).write_bytes(data)
    (place / "copy").upload(tmp_path / "source")
    assert {e.path: e.size for e in (place / "copy").walk()} == {n: len(d) for n, d in tree.items()}
    (place / "copy").download(tmp_path / "back")
    for name, data in tree.items():
        assert (tmp_path / "back" / name).read_bytes() == data
    assert all_files(tmp_path / "back") == sorted(tree)

    (place / "one").upload(tmp_path / "source/a.bin")
    (place / "one").download(tmp_path / "one.bin")
    assert (tmp_path / "one.bin").read_bytes() == tree["a.bin"]
    with pytest.raises(StorageError, match="nothing"):
        (place / "nothing").download(tmp_path / "x")
    with pytest.raises(StorageError, match="nothing"):
        (place / "x").upload(tmp_path / "nothing")


# Nothing half-written


@pytest.mark.parametrize("written", [0, 100, CHUNK, 3 * CHUNK])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_failed_write_changes_nothing(place, written, before):
    def chunks():
        for start in range(0, written, CHUNK):
            yield bytes(min(CHUNK, written - start))
        raise KeyboardInterrupt

    file = place / "x"
    if before is not None:
        file.write_bytes(before)
    with pytest.raises(KeyboardInterrupt):
        file._write(chunks())
    assert file.exists() == (before is not None)
    assert before is None or file.read_bytes() == before
    if not place.is_s3:
        assert all_files(place.path) == ["x"][: file.exists()]


def test_a_failed_upload_stays_unfinished_when_its_process_ends(s3):
    code = """
    import sys
    from jobs.storage.location import Location
    def chunks():
        yield bytes(20 << 20)
        raise OSError("the source broke")
    try:
        Location.parse(sys.argv[1])._write(chunks())
    except OSError as error:
        print(error)
    """
    file = Location.parse(s3) / "x"
    file.write_bytes(b"old")
    process = run_python(code, file, stdout=subprocess.PIPE)
    output, _ = process.communicate()
    assert process.returncode == 0
    assert b"the source broke" in output
    assert file.read_bytes() == b"old"


def test_kill_in_the_middle_of_a_write(place, tmp_path):
    code = """
    import sys, time
    from jobs.storage.location import Location
    def chunks():
        for _ in range(3):
            yield bytes(8 << 20)
        print("half", flush=True)
        time.sleep(600)
    Location.parse(sys.argv[1])._write(chunks())
    """
    file = place / "x"
    file.write_bytes(b"old")
    process = run_python(code, file, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert file.read_bytes() == b"old"
    assert [entry.name for entry in place.list()] == ["x"]
    assert [entry.path for entry in place.walk()] == ["x"]
    file.write_bytes(b"new")
    assert file.read_bytes() == b"new"
    place.delete()
    assert not place.exists()


def test_readers_see_old_or_new(place):
    file = place / "pointer"
    contents = {bytes([n]) * 50_000 for n in range(20)}
    file.write_bytes(bytes(50_000))
    stop = threading.Event()
    seen = set()

    def read():
        while not stop.is_set():
            seen.add(file.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for content in sorted(contents):
        file.write_bytes(content)
    stop.set()
    reader.join()
    assert seen
    assert seen <= contents


@contextmanager
def mounted(path, options):
    path.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)],
        capture_output=True,
        check=False,
    )
    if mount.returncode != 0:
        pytest.skip(f"needs the right to mount a file system: {mount.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "small", "size=1m") as path:
        yield path


def test_full_disk(small_disk):
    file = Location.parse(small_disk) / "run/last.json"
    file.write_bytes(b"old")
    with pytest.raises(StorageError, match=r"run/last.json: No space left.*; free some") as caught:
        file.write_bytes(noise(2 * MB))
    assert caught.value.errno == errno.ENOSPC
    assert pickle.loads(pickle.dumps(caught.value)).errno == errno.ENOSPC
    assert file.read_bytes() == b"old"
    assert all_files(small_disk) == ["run/last.json"]


def test_full_cache(small_disk, web):
    web.files["/x"] = noise(2 * MB)
    with pytest.raises(StorageError, match="No space left") as caught:
        fetch(web.url("/x"), sha256=web.sha256("/x"), cache=small_disk)
    assert caught.value.errno == errno.ENOSPC
    assert len(web.requests) == 1


# Places that refuse


def test_check_writable(place):
    check_writable(place)
    assert place.walk() == ()
    (place / "file").write_bytes(b"")


def test_check_writable_read_only(tmp_path):
    with (
        mounted(tmp_path / "disk", "ro") as path,
        pytest.raises(StorageError, match=r"disk.*Read-only.*; check owner") as caught,
    ):
        check_writable(Location.parse(path))
    assert caught.value.errno == errno.EROFS


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_check_writable_permissions(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match=r"Permission denied; check owner"):
        check_writable(Location.parse(tmp_path))
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_check_writable_file_in_the_way(tmp_path, below):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="a file is where a folder is needed"):
        check_writable(Location.parse(tmp_path / "file") / below)


def test_check_writable_missing_bucket(s3):
    with pytest.raises(StorageError, match=r"s3://no-such/x/.*NO_SUCH_BUCKET.*; create the bucket"):
        check_writable(Location.parse("s3://no-such/x"))


def test_check_writable_without_credentials(s3, monkeypatch, tmp_path):
    (Location.parse(s3) / "x").write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match=r"ACCESS_DENIED.*; set AWS_ACCESS_KEY_ID"):
        check_writable(Location.parse(s3))


def test_check_writable_wrong_credentials(s3, s3_server):
    def authorise_after(actions):
        request = urllib.request.Request(
            f"{s3_server}/moto-api/reset-auth",
            data=actions.encode(),
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.urlopen(request).close()

    authorise_after("0")
    try:
        with pytest.raises(StorageError, match=r"INVALID_ACCESS_KEY_ID.*; set AWS_ACCESS_KEY_ID"):
            check_writable(Location.parse(s3))
    finally:
        authorise_after("inf")


def test_no_server(s3, monkeypatch):
    (Location.parse(s3) / "x").write_bytes(b"")  # a connection to another server must not be used
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"NETWORK_CONNECTION.*; check AWS_ENDPOINT_URL"):
        (Location.parse(s3) / "x").read_bytes()


# Once a node


def test_once(tmp_path):
    calls = []

    def make(part):
        calls.append(part)
        part.mkdir()
        (part / "x").write_text("made")

    target = tmp_path / "a/b"
    assert once(target, make) == once(target, make) == target
    assert (target / "x").read_text() == "made"
    assert len(calls) == 1
    assert all_files(tmp_path) == ["a/b/x"]


def test_once_after_a_failure_and_after_a_kill(tmp_path):
    def fail(part):
        part.write_text("half")
        raise ValueError("no luck")

    target = tmp_path / "x"
    with pytest.raises(ValueError, match="no luck"):
        once(target, fail)
    assert all_files(tmp_path) == []

    code = """
    import os, signal, sys
    from pathlib import Path
    from jobs.storage.cache import once
    def make(part):
        part.mkdir()
        (part / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    once(Path(sys.argv[1]), make)
    """
    assert run_python(code, target).wait() == -signal.SIGKILL
    assert not target.exists()
    assert once(target, lambda part: part.write_text("whole") and None).read_text() == "whole"
    assert all_files(tmp_path) == ["x"]


# Fetching over HTTP


class Web:
    """A web server with a few bad habits."""

    def __init__(self):
        self.files = {}
        self.requests = []  # (path, value of Range)
        self.ranges = True
        self.truncate = []  # bytes after which each of the next responses breaks off
        self.status = []  # of the next responses, in place of a file
        handler = type("Handler", (_Handler,), {"web": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def url(self, path):
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def sha256(self, path):
        return hashlib.sha256(self.files[path]).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        web, wanted = self.web, self.headers.get("Range")
        web.requests.append((self.path, wanted))
        data = web.files.get(self.path)
        if web.status or data is None:
            self.send_error(web.status.pop(0) if web.status else 404)
            return
        start = int(wanted[len("bytes=") : -1]) if wanted and web.ranges else 0
        if start >= len(data) > 0:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: web.truncate.pop(0) if web.truncate else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def web():
    web = Web()
    thread = threading.Thread(target=web.server.serve_forever, args=(0.01,))
    thread.start()
    yield web
    web.server.shutdown()
    web.server.server_close()
    thread.join()


def test_fetch(web, cache):
    web.files["/data/set.tar"] = noise(MB)
    url, sha256 = web.url("/data/set.tar?token=1"), web.sha256("/data/set.tar")
    web.files["/data/set.tar?token=1"] = web.files["/data/set.tar"]
    path = fetch(url, sha256=sha256)
    assert path.name == "set.tar"
    assert path.is_relative_to(cache)
    assert path.read_bytes() == web.files["/data/set.tar"]
    assert fetch(url, sha256=sha256.upper()) == path
    assert len(web.requests) == 1
    assert all_files(cache) == [str(path.relative_to(cache))]


@pytest.mark.parametrize("ranges", [True, False])
def test_fetch_goes_on_after_a_break(web, cache, ranges):
    web.files["/x"] = noise(MB)
    web.ranges = ranges
    web.truncate = [300_000, 200_000]
    path = fetch(web.url("/x"), sha256=web.sha256("/x"))
    assert path.read_bytes() == web.files["/x"]
    resumed = "bytes=500000-" if ranges else "bytes=200000-"
    assert [wanted for _, wanted in web.requests] == [None, "bytes=300000-", resumed]


def test_fetch_goes_on_in_another_process(web, cache):
    web.files["/x"] = noise(MB)
    web.truncate = [100_000] * 4
    for _ in range(2):
        with pytest.raises(StorageError, match=r"of 1048576 bytes arrived; run again"):
            fetch(web.url("/x"), sha256=web.sha256("/x"))
        assert not list(cache.rglob("x"))
        web.truncate = [100_000] * 4
    web.truncate = []
    assert fetch(web.url("/x"), sha256=web.sha256("/x")).read_bytes() == web.files["/x"]
    assert web.requests[-1] == ("/x", "bytes=800000-")


def test_fetch_when_all_had_arrived(web, cache):
    web.files["/x"] = noise(1000)
    web.truncate = [999, 0, 0, 0]
    with pytest.raises(StorageError, match="999 of 1000"):
        fetch(web.url("/x"), sha256=web.sha256("/x"))
    (unfinished,) = cache.rglob("*.download")
    unfinished.write_bytes(web.files["/x"])
    assert fetch(web.url("/x"), sha256=web.sha256("/x")).read_bytes() == web.files["/x"]


def test_fetch_wrong_checksum(web, cache):
    web.files["/x"] = b"something else"
    found, wanted = web.sha256("/x"), "0" * 64
    with pytest.raises(StorageError, match=f"/x is not .* is {found}, not {wanted}"):
        fetch(web.url("/x"), sha256=wanted)
    assert all_files(cache) == []


def test_fetch_not_there(web, cache):
    with pytest.raises(StorageError, match=r"http://.*/x: the server says 404 .*; check the URL"):
        fetch(web.url("/x"), sha256="0" * 64)
    assert len(web.requests) == 1
    assert all_files(cache) == []


def test_fetch_from_a_busy_server(web):
    web.files["/x"] = b"data"
    web.status = [503, 429]
    assert fetch(web.url("/x"), sha256=web.sha256("/x")).read_bytes() == b"data"


def test_fetch_without_a_server():
    with pytest.raises(StorageError, match=r"http://127.0.0.1:9/x: .*Connection refused"):
        fetch("http://127.0.0.1:9/x", sha256="0" * 64)


def test_fetch_of_a_file(place, cache):
    data = noise(1000)
    (place / "w.pt").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    assert fetch(str(place / "w.pt"), sha256=sha256).read_bytes() == data
    with pytest.raises(StorageError, match="nothing"):
        fetch(str(place / "nothing"), sha256="0" * 64)


def test_processes_that_ask_at_once_download_once(web, cache):
    code = """
    import sys
    from jobs.storage.cache import fetch
    print("ready", flush=True)
    sys.stdin.readline()
    print(fetch(sys.argv[1], sha256=sys.argv[2]))
    """
    web.files["/x"] = noise(4 * MB)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [run_python(code, web.url("/x"), web.sha256("/x"), **pipes) for _ in range(4)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    (path,) = {child.communicate()[0].strip() for child in children}
    assert len(web.requests) == 1
    assert Path(path).read_bytes() == web.files["/x"]


def test_progress_in_a_log(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(fetching.time, "monotonic", lambda: next(clock))
    with fetching._progress("x", 100 * 10**6) as advance:
        for _ in range(10):
            advance(10 * 10**6)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fetching x: 30 of 100 MB (30%)"
    assert 2 <= len(lines) < 10


# Mirrors


def test_a_name_that_is_no_text_is_said(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(b"")
    with pytest.raises(StorageError, match=r"a name that is not UTF-8: b'.*caf\\xe9.png'; rename"):
        Location.parse(tmp_path).walk()


def test_localize_leaves_local_paths_alone(tmp_path):
    assert localize(Location.parse(tmp_path)) == tmp_path


def test_localize_mirrors_once(s3, cache):
    folder = Location.parse(s3) / "data/set"
    tree = {"train/a.png": b"1", "train/b c.png": noise(MB), "labels.json": b"{}"}
    for name, data in tree.items():
        (folder / name).write_bytes(data)
    mirror = localize(folder)
    assert mirror.name == "set"
    assert all_files(mirror) == sorted(tree)
    assert all((mirror / name).read_bytes() == data for name, data in tree.items())
    (mirror / "train/a.png").write_bytes(b"a mark")
    assert localize(folder) == mirror
    assert (mirror / "train/a.png").read_bytes() == b"a mark"

    (folder / "train/a.png").write_bytes(b"22")
    changed = localize(folder)
    assert changed != mirror
    assert (changed / "train/a.png").read_bytes() == b"22"
    assert (mirror / "train/a.png").read_bytes() == b"a mark"

    file = localize(folder / "labels.json")
    assert file.name == "labels.json"
    assert file.read_bytes() == b"{}"


def test_a_mirror_in_a_folder_of_the_callers_is_its_own(s3, cache, tmp_path):
    folder = Location.parse(s3) / "clips"
    (folder / "a b.mp4").write_bytes(noise(MB))
    (folder / "frames/0.png").write_bytes(b"0")
    file = localize_in(tmp_path / "one", folder / "a b.mp4")
    assert (file, file.read_bytes()) == (tmp_path / "one/a b.mp4", noise(MB))
    assert (localize_in(tmp_path / "two", folder / "frames") / "0.png").read_bytes() == b"0"
    assert localize_in(tmp_path / "three", Location.parse(tmp_path)) == tmp_path
    with pytest.raises(StorageError, match="nothing"):
        localize_in(tmp_path / "four", folder / "nothing")
    assert all_files(cache) == []


def test_localize_of_nothing(s3, cache):
    for text in [f"{s3}/nothing", "s3://no-such-bucket/x"]:
        with pytest.raises(StorageError, match=text):
            localize(Location.parse(text))
    assert all_files(cache) == []


def test_localize_while_it_changes(s3, cache, monkeypatch):
    folder = Location.parse(s3) / "set"
    (folder / "a").write_bytes(b"1")
    copy = fetching.copy_all

    def copy_and_change(*args, **kwargs):
        copy(*args, **kwargs)
        (folder / "b").write_bytes(b"2")

    monkeypatch.setattr(fetching, "copy_all", copy_and_change)
    with pytest.raises(StorageError, match=r"s3://.*/set changed while it was copied"):
        localize(folder)
    assert all_files(cache) == []


def test_a_key_cannot_leave_the_mirror(s3, cache, monkeypatch):
    entry = Entry("../../escaped", 1, 0)
    monkeypatch.setattr(Location, "walk", lambda self: (entry,))
    with pytest.raises(StorageError, match="escaped"):
        localize(Location.parse(s3) / "set")
    assert json.dumps(all_files(cache)) == "[]"


def test_s3_that_refuses_and_cuts_off(s3_server, s3):
    """503s are repeated by pyarrow, answers that break off by us, from where they stopped."""
    content = os.urandom(300_000)
    with flaky(s3_server) as (address, seen):
        folder = Location.parse(f"{s3}/run?endpoint_override={address}&scheme=http")
        for number in range(8):
            (folder / f"{number}.bin").write_bytes(content)
            assert (folder / f"{number}.bin").read_bytes() == content
            assert len(folder.list()) == number + 1
        with pytest.raises(StorageError) as caught:
            (folder / "none").read_bytes()
        assert caught.value.errno == errno.ENOENT
    assert seen["cut"] > 1
    assert seen["refused"] > 1
