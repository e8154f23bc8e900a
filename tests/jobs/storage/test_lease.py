"""One job at a time in a folder: locally by a lock, in S3 by a lease; both survive kill -9."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs.storage import lease
from jobs.storage.lease import HeldError, exclusive
from jobs.storage.location import Location, StorageError
from tests.conftest import ROOT

HOLD = (
    "import sys, time\n"
    "from jobs.storage.lease import exclusive\n"
    "from jobs.storage.location import Location\n"
    "with exclusive(Location.parse(sys.argv[1]), 'jobs.train'):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(600)\n"
)


@pytest.fixture(params=["local", "no locks", "s3"])
def folder(request, tmp_path, monkeypatch):
    """A run folder on each kind of storage."""
    if request.param == "s3":
        return Location.parse(f"{request.getfixturevalue('s3')}/runs/one")
    if request.param == "no locks":
        monkeypatch.setattr(lease, "_lock", lambda *_: False)
    return Location.parse(tmp_path / "runs/one")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.2)


def elsewhere(monkeypatch):
    """From now on this process is on another machine, which cannot see whether others live."""
    monkeypatch.setattr(lease, "machine", lambda: "another machine")


def test_a_second_job_is_refused_and_told_by_whom(folder):
    with (
        exclusive(folder, "jobs.train"),
        pytest.raises(HeldError) as refused,
        exclusive(folder, "jobs.tune"),
    ):
        pass
    said = str(refused.value)
    assert f"--out {folder} is in use by jobs.train (process {os.getpid()} on " in said
    assert " UTC); wait for it, stop it, or give another --out" in said
    with exclusive(folder, "jobs.tune"):  # it is over
        pass


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_killed_job_holds_nothing(where, request, tmp_path, capsys):
    """kill -9; the next start on the same machine begins at once, also with a lease in S3."""
    folder = f"{request.getfixturevalue('s3')}/run" if where == "s3" else str(tmp_path / "run")
    argv = [sys.executable, "-c", HOLD, folder]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match=rf"process {holder.pid} on"):
            exclusive(Location.parse(folder), "jobs.train").__enter__()
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with exclusive(Location.parse(folder), "jobs.train"):
            pass
    assert "waiting" not in capsys.readouterr().out


def test_a_lease_that_is_renewed_is_respected_from_another_machine(quick, s3, monkeypatch, capsys):
    folder = Location.parse(f"{s3}/run")
    monkeypatch.setattr(lease, "LEASE_SECONDS", 60.0)
    with exclusive(folder, "jobs.train"):
        elsewhere(monkeypatch)
        begun = time.monotonic()
        with pytest.raises(HeldError), exclusive(folder, "jobs.train"):
            pass
        assert time.monotonic() - begun < 30
    assert "waiting for at most 60 s to see whether that job has ended" in capsys.readouterr().out


def test_a_lease_that_nobody_renews_ends(quick, s3, monkeypatch):
    folder = Location.parse(f"{s3}/run")
    (folder / ".lease/dead").write_json({**lease._about("jobs.train"), "held": True})
    elsewhere(monkeypatch)
    begun = time.monotonic()
    with exclusive(folder, "jobs.train"):
        assert time.monotonic() - begun >= 2
        assert not (folder / ".lease/dead").exists()
    assert not [entry for entry in (folder / ".lease").list() if not entry.is_folder]


def test_old_and_unreadable_leases(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_lock", lambda *_: False)
    folder = Location.parse(tmp_path)
    elsewhere(monkeypatch)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 600.0)
    (folder / ".lease/old").write_json({"held": True})
    os.utime(tmp_path / ".lease/old", (time.time() - 2 * lease.LONG_AGO,) * 2)
    with exclusive(folder, "jobs.train"):  # from long ago: there is no wait
        pass
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    (folder / ".lease/cut").write_text('{"held": tr')
    with exclusive(folder, "jobs.train"):
        pass


def test_of_many_that_start_at_once_never_two_hold(quick, s3):
    folder, holding, faults = Location.parse(f"{s3}/run"), [], []
    got, refused = [], []

    def start():
        try:
            with exclusive(folder, "jobs.train"):
                holding.append(1)
                faults.extend([1] * (len(holding) > 1))
                time.sleep(0.5)
                holding.pop()
            got.append(1)
        except HeldError:
            refused.append(1)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert got
    assert len(got) + len(refused) == 4


def test_who_lost_its_lease_stops(quick, tmp_path, monkeypatch, capsys):
    """Suspended for longer than a lease lasts, with another job in the folder since."""
    monkeypatch.setattr(lease, "_lock", lambda *_: False)
    sent = threading.Event()
    monkeypatch.setattr(lease.os, "kill", lambda process, number: sent.set())
    folder = Location.parse(tmp_path)
    with exclusive(folder, "jobs.train"):
        other = {**lease._about("jobs.tune"), "held": True}
        (folder / ".lease/other").write_json(other)
        now = time.time
        monkeypatch.setattr(lease.time, "time", lambda: now() + 100)
        assert sent.wait(10)
    assert "is in use by jobs.tune" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match="cannot write"),
        exclusive(Location.parse(tmp_path / "file/run"), "jobs.train"),
    ):
        pass


def test_a_file_system_without_locks_gets_a_lease(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(lease.errno.ENOLCK, "no locks available")

    monkeypatch.setattr("filelock._unix.lock_fd_nonblocking", no_locks)
    with exclusive(Location.parse(tmp_path), "jobs.train"):
        (entry,) = Path(tmp_path / ".lease").iterdir()
        assert json.loads(entry.read_text())["held"]
