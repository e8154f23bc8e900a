"""The cache of a node: fetched once, checked, whole, whatever breaks off or is killed."""

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from jobs.storage import cache as fetching
from jobs.storage.cache import fetch, localize, localize_in, once
from jobs.storage.location import Entry, Location, StorageError
from tests.jobs.storage.files import MB, all_files, noise, run_python


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


def test_a_name_that_is_no_text_is_said(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(b"")
    with pytest.raises(StorageError, match=r"is not UTF-8: b'.*caf\\xe9.png'; rename"):
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
