"""Signals become requests; what runs in the background leaves the main thread to them."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from jobs.run import signals
from jobs.run.signals import Stop, background
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_becomes_a_request_on_another_thread(number, code):
    before = [signal.getsignal(number) for number in (1, 2, 15)]
    threads = []
    with Stop() as stop:
        stop.then(lambda: threads.append(threading.current_thread()))
        assert stop.exit_code == 0
        signal.raise_signal(number)
        assert stop.requested.wait(10)
        late = threading.Event()
        stop.then(late.set)
        assert late.is_set()
        signal.raise_signal(signal.SIGTERM)  # again: asked once, by the first
    assert stop.exit_code == code
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
    assert [signal.getsignal(number) for number in (1, 2, 15)] == before


def test_a_second_interrupt_aborts_at_once(monkeypatch):
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # `timeout -s INT` sends two: that is no second request
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(signals, "AGAIN_SECONDS", 0.0)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.exit_code == 130


def test_background_keeps_the_main_thread_free():
    def install():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what TorchTrainer.fit would do

    assert background(lambda: 3).result(10) == 3
    with pytest.raises(ValueError, match="main thread"):
        background(install).result(10)


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested.wait(0.2)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


PRINTS = """
import os, sys, time
from jobs.run.signals import Stop
with Stop() as stop:
    print("begun", flush=True)
    stop.requested.wait()
    for _ in range(5):
        time.sleep(0.2)
        print("a line for nobody", flush=True)
    open(sys.argv[1], "w").write("saved")
sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize("kind", ["terminal", "pipe to a program that ends later"])
def test_a_closed_terminal_does_not_end_a_save(kind, tmp_path):
    """What is printed after the terminal is gone goes nowhere; it is no error."""
    argv = [sys.executable, "-c", PRINTS, str(tmp_path / "out")]
    if kind == "terminal":
        process, end = os.forkpty()
        if not process:
            os.chdir(ROOT)
            os.execv(argv[0], argv)
        assert os.read(end, 5) == b"begun"
        os.close(end)  # the kernel sends SIGHUP
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    else:
        end, theirs = os.pipe()
        with subprocess.Popen(argv, cwd=ROOT, stdout=theirs, stderr=theirs) as job:
            os.close(theirs)
            assert os.read(end, 5) == b"begun"
            job.send_signal(signal.SIGHUP)
            threading.Timer(0.5, os.close, [end]).start()
            code = job.wait()
    assert code == 129
    assert (tmp_path / "out").read_text() == "saved"
