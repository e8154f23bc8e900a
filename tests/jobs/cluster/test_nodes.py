"""How long nodes may be missing, and how jobs end then, without Ray."""

import threading

import pytest

from jobs.cluster import actors, nodes, workers
from jobs.cluster.capacity import Demand, Node, Nodes, NodeType
from jobs.cluster.workers import CHECK_SECONDS, LaunchError, LostNodes, Resources
from jobs.run.config import ConfigError, JobConfig
from jobs.storage.location import Location
from jobs.training import launch

ONE, TWO = Nodes((Node(2),)), Nodes((Node(2), Node(2)))
GROWING = Nodes((Node(2),), (NodeType("more", 2, 0, 4),), 4)


def test_workers_that_fail_in_the_same_way_before_a_step_end_the_job():
    """A fault of the job is the same after a restart; a fault of a machine does not count."""
    lost = {"say": "lost rank 0 (no memory)", "fault": "no memory"}
    died = {"say": "lost rank 0 (the actor died)", "fault": None}
    step = {"epoch": 0, "index": 3, "steps": 9, "images_per_s": 1.0}
    faults = launch._RepeatedFailures()
    for messages in ([lost], [died], [lost], [step], [lost], [lost], [{"say": "loading"}]):
        faults.count(messages)
    with pytest.raises(LaunchError, match="failed 3 times in the same way: no memory"):
        faults.count([lost])


def test_a_folder_that_a_node_does_not_share_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(launch.ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setattr(launch, "SHARED_SECONDS", 0.0)
    out = Location.parse(tmp_path)
    assert "--out" in launch._other_folder(out, "abc")  # nothing is there
    (out / launch.MARK).write_bytes(b"abd")
    assert "on node 10.0.0.7 is not the folder" in launch._other_folder(out, "abc")
    (out / launch.MARK).write_bytes(b"abc")
    assert launch._other_folder(out, "abc") is None
    monkeypatch.setattr(launch, "SHARED_SECONDS", 60.0)
    threading.Timer(0.5, (out / launch.MARK).write_bytes, [b"late"]).start()
    assert launch._other_folder(out, "late") is None  # a network file system takes its time
    assert launch._other_folder(Location.parse("s3://bucket/run"), "abc") is None


@pytest.fixture
def clock(monkeypatch):
    """Replace time by a clock that tests advance."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    found = Clock()
    for module in (nodes, workers, actors):
        monkeypatch.setattr(module, "time", found)
    return found


def test_missing_nodes_are_waited_for_as_long_as_the_flag_says(clock):
    missing = nodes.MissingNodes(Demand(2, 2), wait=60)
    assert not missing.too_long(ONE)
    clock.now += 59
    assert not missing.too_long(ONE)
    assert not missing.too_long(GROWING)  # also if an autoscaler may add some
    assert not missing.too_long(TWO)  # found again: the time starts from 0
    assert missing.seconds == 0
    assert not missing.too_long(ONE)
    clock.now += 60
    assert missing.too_long(GROWING)
    assert missing.message(ONE) == (
        "2 workers need 2 CPUs each; this machine has 2 CPUs, after 60 s of waiting for nodes:"
        " use --workers 1, or a longer --wait-for-nodes"
    )


def test_without_the_flag_only_an_autoscaler_is_waited_for(clock):
    missing = nodes.MissingNodes(Demand(2, 2), wait=None)
    assert not missing.too_long(ONE)  # it may show again
    clock.now += nodes.SETTLE_SECONDS
    assert missing.too_long(ONE)
    clock.now += 10_000
    assert not missing.too_long(GROWING)
    assert not missing.too_long(Nodes((Node(2),), None))


def test_a_training_whose_nodes_do_not_return_ends(clock, monkeypatch):
    present = [TWO]
    monkeypatch.setattr(nodes, "current_nodes", lambda: present[0])
    lost, said = LostNodes(Resources(2, 2, 0, cuda=False), wait=30), []
    lost.check(said.append)
    present[0] = ONE
    for _ in range(6):
        clock.now += CHECK_SECONDS
        lost.check(said.append)
    assert len(said) == 1
    assert said[0].startswith("a node is lost; waiting for nodes, 1 of 2 fit")
    clock.now += CHECK_SECONDS
    with pytest.raises(LaunchError, match=r"use --workers 1, or.*resumes from the last"):
        lost.check(said.append)


def test_rows_are_stuck_when_no_actor_is_busy_and_nodes_are_missing(clock, monkeypatch):
    monkeypatch.setattr(nodes, "current_nodes", lambda: ONE)
    shown = []
    actors.Activity.reset()
    stuck = actors._StuckRows(Demand(2, 2), 60, lambda: shown.append(1))
    for _ in range(14):
        stuck.check()
        clock.now += actors.CHECK_SECONDS
        actors.Activity.last_busy = clock.now  # the other one still works
    stuck.check()
    assert not actors.Activity.was_aborted()
    clock.now += actors.IDLE_SECONDS + 1
    stuck.check()
    assert actors.Activity.was_aborted()
    with pytest.raises(actors.AbortedError):
        actors.Activity().on_execution_step(None)
    assert len(shown) == 16
    actors.Activity.reset()
    assert not actors.Activity.was_aborted()


def test_the_flag_is_checked():
    with pytest.raises(ConfigError, match="--wait-for-nodes is -1"):
        JobConfig(out="x", wait_for_nodes=-1)
