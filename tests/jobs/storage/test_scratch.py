"""Temporary folders are deleted at the end, and after a process that was killed."""

import os
import signal
import subprocess
import sys

import pytest

from jobs.storage import scratch


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_a_folder_is_gone_at_the_end_whatever_ended_it(tmp_path):
    def work():
        with scratch.folder() as folder:
            (folder / "video").write_bytes(b"frames")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        work()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_what_lives_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "_YOUNG", 0.0)
    code = (
        "import time\n"
        "from jobs.storage import scratch\n"
        "with scratch.folder() as folder:\n"
        "    (folder / 'video').write_bytes(b'frames')\n"
        "    print(folder, flush=True)\n"
        "    time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    left = owner.stdout.readline().strip()
    with scratch.folder() as mine:
        assert {str(path) for path in tmp_path.iterdir()} == {left, str(mine)}
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        owner.stdout.close()
        scratch.sweep()
        assert list(tmp_path.iterdir()) == [mine]
