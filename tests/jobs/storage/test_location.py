"""Locations on disk and in S3: names, reading, and writing that is whole or not at all."""

import errno
import pickle
import signal
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from jobs.storage.location import CHUNK, Location, StorageError
from jobs.storage.uri import OPTIONS
from tests.jobs.storage.files import MB, all_files, noise, run_python


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/abs/x", "/abs/x"),
        ("/abs/x/", "/abs/x"),
        ("file:///abs/a%20b", "/abs/a b"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b%20 c/", "s3://bucket/a/b%20 c"),
        ("s3://bucket/a?scheme=http", "s3://bucket/a?scheme=http"),
        ("s3://bucket?scheme=http", "s3://bucket?scheme=http"),
        ("s3://bucket/what?.mp4", "s3://bucket/what?.mp4"),
        ("s3://bucket/what?", "s3://bucket/what?"),
        ("s3://bucket/a?b/c?v=2&w=3", "s3://bucket/a?b/c?v=2&w=3"),
        ("s3://bucket/what?.mp4?region=x", "s3://bucket/what?.mp4?region=x"),
        ("s3://bucket/a?scheme=http?", "s3://bucket/a?scheme=http?"),
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
    "text",
    ["", "gs://bucket/x", "s3://", "s3:///x", "s3://key:secret@bucket/x", "s3:/bucket/x",
     "s3://bucket//a", "s3://bucket/a//b", "s3://key:secret@bucket/x?endpoint_overide=h", "a\0b",
     "s3://bucket/a\0b", "file:///a%00b", "\udcff", "s3://bucket?x=1/\udcff",
     "s3://bucket/a?endpoint_overide=h", "s3://bucket/a?Region=x&y=1"],
)  # fmt: skip
def test_what_is_no_location_is_refused(text):
    with pytest.raises(StorageError) as caught:
        Location.parse(text)
    assert "secret" not in str(caught.value)


def test_a_name_cannot_leave_its_folder():
    with pytest.raises(StorageError, match=r"\.\."):
        Location.parse("s3://bucket/a") / "../b"


@pytest.mark.parametrize(
    ("key", "query"),
    [("what?.mp4", ""), ("what?", ""), ("a?scheme=http", ""), ("a?scheme=http?", ""),
     ("a?region=x&b=2", "scheme=http"), ("what?", "scheme=http"), ("a?b=c", "")],
)  # fmt: skip
def test_any_key_is_read_back(key, query):
    location = Location(f"bucket/{key}", is_s3=True, query=query)
    assert Location.parse(str(location)) == location


def test_all_options_are_those_of_pyarrow():
    values = {"scheme": "http", "endpoint_override": "h", "region": "x"}
    for name in OPTIONS:
        fs.FileSystem.from_uri(f"s3://b?region=x&{name}={values.get(name, 'true')}")


def test_keys_with_question_marks(s3):
    folder = Location.parse(s3)
    for name in ("what?.mp4", "a?v=2", "a?scheme=http"):
        (folder / name).write_bytes(name.encode())
        assert (folder / name).read_bytes() == name.encode()
    assert Location.parse(f"{s3}/a?v=2").read_bytes() == b"a?v=2"
    assert [entry.name for entry in folder.list()] == ["a?scheme=http", "a?v=2", "what?.mp4"]


@pytest.mark.parametrize("key", ["/a", "b//a"])
def test_keys_that_pyarrow_does_not_read_are_named(s3, s3_server, key):
    url = f"{s3_server}/{s3.removeprefix('s3://')}/{key}"
    urllib.request.urlopen(urllib.request.Request(url, b"x", method="PUT"))
    with pytest.raises(StorageError, match="has an empty name between slashes"):
        Location.parse(s3).walk()


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


def test_list_distinguishes_files_and_folders(place):
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


def test_a_folder_with_links_to_itself_is_walked_once(tmp_path):
    inside = tmp_path / "top" / "a"
    inside.mkdir(parents=True)
    (inside / "x").write_bytes(b"1")
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "y").write_bytes(b"22")
    for name, target in (("l", tmp_path / "top"), ("m", tmp_path / "top"), ("n", "../beside")):
        (tmp_path / "top" / name).symlink_to(target)
    (tmp_path / "top" / "gone").symlink_to("nowhere")
    found = {entry.path: entry.size for entry in Location.parse(tmp_path / "top").walk()}
    assert {"a/x": 1, "n/y": 2}.items() <= found.items()
    assert set(found) <= {"a/x", "n/y", "gone"}
