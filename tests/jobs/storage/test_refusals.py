"""Storage that is full, forbids, is not there or breaks off."""

import errno
import os
import pickle
import subprocess
import urllib.request
from contextlib import contextmanager

import pytest

from jobs.storage.cache import fetch
from jobs.storage.location import Location, StorageError, check_writable
from tests.flaky_s3 import flaky
from tests.jobs.storage.files import MB, all_files, noise


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
