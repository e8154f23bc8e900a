"""Signals become requests; what runs in the background leaves the main thread to them."""

import signal
import threading

import pytest

from jobs.run.signals import Stop, background


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_becomes_a_request_on_another_thread(number, code):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
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
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_interrupt_aborts_at_once():
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.exit_code == 130


def test_background_keeps_the_main_thread_free():
    def install():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what TorchTrainer.fit would do

    assert background(lambda: 3).result(10) == 3
    with pytest.raises(ValueError, match="main thread"):
        background(install).result(10)
