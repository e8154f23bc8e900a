"""Files that killed processes left are deleted by the next start; those being written are not."""

import os
import subprocess
import sys
import time

import pytest

from jobs.storage import publish
from jobs.storage.lease import exclusive
from jobs.storage.location import Location

WRITER = """
import sys, time
from pathlib import Path
from jobs.storage.publish import replace_file

def chunks():
    yield b"half"
    print("writing", flush=True)
    time.sleep(60)

replace_file(Path(sys.argv[1]), chunks(), sync=False)
"""


def start(path):
    """Start a process that is in the middle of a write."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "writing\n"
    return writer


def left(folder):
    return sorted(p.name for p in folder.rglob(".patchray-*"))


def test_the_next_start_deletes_what_a_killed_process_left(tmp_path):
    killed, alive = start(tmp_path / "masks/day/a"), start(tmp_path / "masks/b")
    try:
        assert len(left(tmp_path)) == 2
        killed.kill()  # not waited for: a process that has ended and still has its number
        while len(left(tmp_path)) == 2:
            with exclusive(Location.parse(tmp_path), "jobs.mask"):
                pass
        assert left(tmp_path) == left(tmp_path / "masks")
    finally:
        for each in (killed, alive):
            each.kill()
            each.wait()
    with exclusive(Location.parse(tmp_path), "jobs.mask"):
        assert left(tmp_path) == []
    assert not (tmp_path / "masks/b").exists()


@pytest.mark.parametrize("name", [".patchray-" + "0" * 16, ".patchray-00000000-1-" + "0" * 16])
def test_files_of_other_machines_and_versions_must_be_old(tmp_path, name):
    (tmp_path / name).write_bytes(b"half")
    publish.sweep(tmp_path)
    assert left(tmp_path) == [name]
    long_ago = time.time() - publish.LONG_AGO - 60
    os.utime(tmp_path / name, (long_ago, long_ago))
    publish.sweep(tmp_path)
    assert left(tmp_path) == []


def test_other_files_are_never_deleted(tmp_path):
    names = [".patchray-notes.txt", ".patchray-x.lock", "patchray-" + "0" * 16, ".lock"]
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
        os.utime(tmp_path / name, (1, 1))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / (".patchray-" + "0" * 16)).write_bytes(b"old")
    os.utime(elsewhere / (".patchray-" + "0" * 16), (1, 1))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/link").symlink_to(elsewhere)
    publish.sweep(tmp_path / "run")
    publish.sweep(tmp_path, deep=False)
    assert len(left(tmp_path)) == 3
    publish.sweep(tmp_path)
    assert left(tmp_path) == [".patchray-notes.txt", ".patchray-x.lock"]


def test_a_number_that_another_process_has_now_says_nothing(tmp_path):
    name = publish.temporary_name()
    (tmp_path / name).write_bytes(b"half")
    publish.sweep(tmp_path)
    assert left(tmp_path) == [name]
    os.utime(tmp_path / name, (1_000_000_000, 1_000_000_000))  # before this process began
    publish.sweep(tmp_path)
    assert left(tmp_path) == []
