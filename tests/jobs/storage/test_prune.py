"""Old things are deleted from the cache, and from Ray's folder of temporary files."""

import os
import shutil
import time
from collections import namedtuple

import pytest
from filelock import FileLock

from jobs import prune
from jobs.cluster import own
from jobs.storage import cache
from jobs.storage import prune as pruning

DAY = 86_400


def age(path, days):
    for each in [*path.rglob("*"), path]:
        os.utime(each, (time.time() - days * DAY,) * 2)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A cache with an old and a young thing of each kind."""
    monkeypatch.setenv("PATCHRAY_CACHE", str(tmp_path / "cache"))
    for kind, name in [
        ("mirrors", "state/video.mp4"), ("files", "sha/weights.pth"), ("masked", "a.parquet"),
        (".", "digits-17/pixels.npy"), (".", ".patchray-left.download"),
    ]:  # fmt: skip
        for days, prefix in [(10, "old-"), (1, "new-")]:
            path = tmp_path / "cache" / kind / (prefix + name if kind != "." else name)
            if kind == "." and days == 1:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 1000)
            whole = path.parent if "/" in name else path
            age(whole, days)
    (tmp_path / "cache/digits-17.lock").touch()
    age(tmp_path / "cache/digits-17.lock", 100)
    return tmp_path / "cache"


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


YOUNG = {
    "mirrors/new-state/video.mp4", "files/new-sha/weights.pth", "masked/new-a.parquet",
    "digits-17.lock",
}  # fmt: skip


def test_the_cache_keeps_what_was_used(store, capsys):
    used = store / "digits-17/pixels.npy"
    os.utime(used, (time.time(), used.stat().st_mtime))  # it was read: the disk notes that
    assert prune.main(["--check"]) == 0
    assert "old-state" in capsys.readouterr().out
    assert len(files(store)) == 9
    assert prune.main([]) == 0
    assert files(store) == YOUNG | {"digits-17/pixels.npy"}
    assert prune.main(["--days", "0"]) == 0
    assert files(store) == {"digits-17.lock"}


def test_a_disk_that_is_nearly_full_gets_room_before_something_is_made(
    store, tmp_path, monkeypatch, capsys
):
    made = cache.once(store / "files/a/b", lambda path: path.write_bytes(b"b"))
    assert len(files(store)) == 11  # there is room: the new one and its lock are added
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 95, 5))
    cache.once(store / "files/c/d", lambda path: path.write_bytes(b"d"))
    assert made.exists()
    assert {name for name in files(store) if ".lock" not in name} == {
        "files/a/b", "files/c/d", *(YOUNG - {"digits-17.lock"}),
    }  # fmt: skip
    assert "is nearly full: deleted 5 things from the cache" in capsys.readouterr().out


def test_rays_files_of_jobs_that_have_ended(store, tmp_path, monkeypatch):
    """Not those of living jobs, of young ones, or of Rays that nobody of us started."""
    monkeypatch.setattr(own, "get_default_ray_temp_dir", lambda: str(tmp_path / "ray"))
    for name in ("session_dead", "session_young", "session_alive", "session_foreign"):
        folder = tmp_path / "ray" / name
        (folder / "logs").mkdir(parents=True)
        (folder / "logs/gcs_server.out").write_bytes(b"x" * 1000)
        if name != "session_foreign":
            (folder / ".patchray").touch()
        age(folder, 1 if name == "session_young" else 10)
    with FileLock(tmp_path / "ray/session_alive/.patchray"):
        assert prune.main([]) == 0
    left = sorted(path.name for path in (tmp_path / "ray").iterdir())
    assert left == ["session_alive", "session_foreign", "session_young"]


def test_an_absent_cache_is_empty(tmp_path):
    assert pruning.prune_cache(tmp_path / "none", 0) == {}
