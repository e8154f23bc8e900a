"""Ray's start, whether workers fit, signals, and the way between driver and workers."""

import contextlib
import itertools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest

from jobs.cluster import capacity, connect, nodes
from jobs.cluster.capacity import Demand, Fit, Node, Nodes, NodeType
from jobs.cluster.connect import ClusterError
from jobs.run.config import ConfigError
from jobs.run.signals import Stop, background
from jobs.run.submitted import check_present, refuse_relative
from jobs.weights.segmenter import locate
from masking.segmenter.sam import SegmenterWeightsError
from tests.conftest import ROOT


def packed(ask, cpus, gpus):
    """How many workers fit on a node, placed one by one: the plain way to `workers_per_node`."""
    cpu, gpu = Fraction(str(ask.cpus)), Fraction(str(ask.gpus))
    left, cards, placed = Fraction(str(cpus)), [Fraction(1)] * int(gpus), 0
    while placed < ask.workers and left >= cpu:
        if gpu >= 1:
            whole = [card for card in cards if card == 1]
            if len(whole) < gpu:
                break
            for _ in range(int(gpu)):
                cards.remove(1)
        elif gpu:
            fits = [i for i, card in enumerate(cards) if card >= gpu]
            if not fits:
                break
            cards[fits[0]] -= gpu
        left -= cpu
        placed += 1
    return placed


@pytest.mark.parametrize("gpus", [0, 0.3, 0.5, 0.6, 1, 2, 4])
@pytest.mark.parametrize("cpus", [0, 0.33, 0.66, 0.6667, 1, 1.5, 3])
def test_slots_equal_placing_one_by_one(cpus, gpus):
    if not cpus and not gpus:
        return
    for has_cpus, has_gpus in itertools.product((0, 1, 2, 3.5, 8), (0, 1, 2, 4, 8)):
        expected = packed(Demand(50, cpus, gpus), has_cpus, has_gpus)
        assert (
            min(50, capacity.workers_per_node(Demand(50, cpus, gpus), has_cpus, has_gpus))
            == expected
        )


def grown(ask, nodes):
    """Most workers over all ways to add nodes within the limits: the plain way to `fit`."""
    now = sum(packed(ask, node.cpus, node.gpus) for node in nodes.present)
    workers = [node for node in nodes.present if not node.head]
    best = now
    for adds in itertools.product(*(range(kind.limit + 1) for kind in nodes.types)):
        counts = zip(adds, nodes.types, strict=True)
        within = all(
            add + sum(node.type == kind.name for node in workers) <= kind.limit
            for add, kind in counts
            if add
        )
        if within and (not sum(adds) or sum(adds) + len(workers) <= nodes.limit):
            more = zip(adds, nodes.types, strict=True)
            best = max(
                best, now + sum(add * packed(ask, kind.cpus, kind.gpus) for add, kind in more)
            )
    return Fit(now, best)


HEAD = Node(0, head=True)
SMALL, LARGE = Node(4, 1, "small"), Node(8, 4, "large")
TYPES = (NodeType("head", 0, 0, 0), NodeType("small", 4, 1, 3), NodeType("large", 8, 4, 2))


@pytest.mark.parametrize(
    "ask", [Demand(50, 1), Demand(50, 1, 1), Demand(50, 5), Demand(50, 0.5, 0.5)]
)
@pytest.mark.parametrize("limit", [0, 1, 3, 9])
def test_room_equals_trying_all_ways_to_grow(ask, limit):
    for small, large in itertools.product(range(4), range(3)):
        nodes = Nodes((HEAD, *[SMALL] * small, *[LARGE] * large), TYPES, limit)
        assert capacity.fit(ask, nodes) == grown(ask, nodes)


def test_a_bundle_must_fit_on_one_node_whatever_the_totals():
    four_small = Nodes((SMALL,) * 4)
    assert capacity.fit(Demand(1, 5), four_small) == Fit(0, 0)
    assert capacity.fit(Demand(2, 3), four_small) == Fit(4, 4)


def test_node_types_out_of_sight_are_waited_for():
    assert capacity.fit(Demand(3, 4), Nodes((HEAD,), None)) == Fit(0, math.inf)


@pytest.mark.parametrize(
    ("ask", "nodes", "said"),
    [
        (
            Demand(3, 1),
            Nodes((Node(2, head=True),)),
            "3 workers need 1 CPU each; this machine has 2 CPUs: "
            "use --workers 2, or --cpus-per-worker 0.66",
        ),
        (
            Demand(2, 1, 1),
            Nodes((Node(2, head=True),)),
            "2 workers need 1 CPU and 1 GPU each; this machine has 2 CPUs and no GPU: "
            "use --gpus-per-worker 0",
        ),
        (
            Demand(1, 4),
            Nodes((Node(2, head=True),)),
            "1 worker needs 4 CPUs; this machine has 2 CPUs: use --cpus-per-worker 2",
        ),
        (
            Demand(4, 8, 1),
            Nodes((HEAD, SMALL), TYPES, 4),
            "4 workers need 8 CPUs and 1 GPU each; the cluster has 1 head (0 CPUs and no GPU), "
            "1 small (4 CPUs and 1 GPU) and may grow to 3 small (4 CPUs and 1 GPU), "
            "2 large (8 CPUs and 4 GPUs), at most 4 beside the head: "
            "use --workers 2, or --cpus-per-worker 4",
        ),
    ],
)
def test_a_refusal_names_both_values_and_flags_that_would_fit(ask, nodes, said):
    assert capacity.fit(ask, nodes).ever < ask.workers
    assert capacity.refusal_message(ask, nodes) == said


def test_advised_flags_fit_and_a_hundredth_more_does_not():
    for workers, cpus, size in itertools.product((2, 3, 5, 7), (1, 2.5, 4), (1, 2, 3, 6)):
        ask, nodes = Demand(workers, cpus), Nodes((Node(size), Node(size + 1)))
        if capacity.fit(ask, nodes).ever < workers:
            advice = capacity._fewer_cpus(ask, nodes)
            assert capacity.fit(Demand(workers, advice), nodes).ever >= workers
            assert capacity.fit(Demand(workers, advice + 0.01), nodes).ever < workers


def test_what_is_waited_for_is_said_by_node_and_type():
    nodes = Nodes((HEAD, SMALL), TYPES, 9)
    grow = capacity.waiting_message(Demand(3, 2, 1), nodes)
    assert grow.startswith("waiting for nodes, 1 of 3 fit: 3 workers need 2 CPUs and 1 GPU each")
    assert "1 small (4 CPUs and 1 GPU) and may grow to 3 small" in grow
    assert "other jobs" in capacity.waiting_message(Demand(1, 2, 1), nodes)


def test_node_types_have_rays_defaults():
    worker = {"resources": {"CPU": 4, "GPU": 1}, "node_config": {}}
    config = {
        "head_node_type": "head",
        "available_node_types": {"head": {"resources": {}}, "gpu": worker},
    }
    assert nodes.node_types(config) == (
        (NodeType("head", 0, 0, 0), NodeType("gpu", 4, 1, 2)),
        2,
    )
    assert nodes.node_types({}) == ((), 2)
    assert nodes.node_types(None)[0] is None


@pytest.fixture
def outside(monkeypatch):
    """A process that no cluster started."""
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_cluster_that_was_killed_is_not_joined(outside):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        outside.setattr(connect, "read_ray_address", lambda: address)
        assert connect._address() is None
    assert connect._address() == "local"
    outside.setattr(connect, "read_ray_address", lambda: None)
    assert connect._address() == "local"
    outside.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert connect._address() == "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://10.0.0.1:10001", "ray job submit"),
        ("http://127.0.0.1:8265", "ray job submit"),
        ("127.0.0.1:1", "nothing answers at RAY_ADDRESS 127.0.0.1:1"),
        ("nonsense", "nothing answers at RAY_ADDRESS nonsense"),
    ],
)
def test_an_address_that_cannot_be_joined_is_refused_at_once(address, said):
    with pytest.raises(ClusterError, match=said):
        connect._join(address)


def test_a_relative_out_is_refused_in_a_submitted_job(outside):
    refuse_relative("runs/digits")
    outside.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    refuse_relative("s3://bucket/run")
    refuse_relative("/mnt/run")
    with pytest.raises(ConfigError, match="--out runs/digits is relative"):
        refuse_relative("runs/digits")


def test_what_a_submitted_job_does_not_find_is_explained(outside, tmp_path):
    outside.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    with pytest.raises(ConfigError) as alone:
        check_present("--data", [str(tmp_path / "gone")])
    assert "ray job submit" not in str(alone.value)
    outside.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"neither git nor \.rayignore ignores"):
        check_present("--data", [str(tmp_path / "gone")])
    with pytest.raises(SegmenterWeightsError, match=r"neither git nor \.rayignore ignores"):
        locate(str(tmp_path / "gone.pth"))


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


def python(code, folder, **environment):
    """Run code in a Python of its own, that imports this checkout; returns (exit code, text)."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{textwrap.dedent(code)}"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=keep | {"HOME": str(folder)} | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=500,
    )
    return done.returncode, done.stdout


def answer(output):
    """The last line of a script's output, as JSON."""
    code, text = output
    assert code == 0, text
    return json.loads(text.splitlines()[-1])


@pytest.fixture
def short_folder():
    """A folder with a path short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="pr"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_ray_that_cannot_start_says_what_it_needs(tmp_path):
    (tmp_path / "file").touch()
    code = """
    from jobs.cluster import connect as cluster
    from jobs.cluster.link import Link
    from jobs.run.signals import Stop, background
    try:
        with cluster.connect():
            print("started")
    except cluster.ClusterError as error:
        print(error)
    """
    code, text = python(code, tmp_path, RAY_TMPDIR=str(tmp_path / "file"), RAY_ADDRESS="local")
    assert code == 0
    assert "Ray did not start on this machine" in text
    assert "RAY_TMPDIR" in text
    assert "Traceback" not in text


def test_a_private_ray_from_start_to_end(tmp_path, short_folder):
    """One Ray for all that needs a real one: start, imports, fitting, waiting, links, the end."""
    code = """
    import json, os, signal, threading, time
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from jobs.cluster import connect as cluster
    from jobs.cluster.link import Link
    from jobs.run.signals import Stop, background

    def where():
        import jobs.cluster.connect
        return jobs.cluster.connect.__file__, os.getcwd()

    def worker(link, number):
        stop = link.watch()
        for step in range(5):
            link.push({"worker": number, "step": step})
        link.push({"worker": number, "stopped": stop.wait(60)})

    facts, said = {}, []
    with Stop() as stop, cluster.connect(said.append):
        facts["address of others"] = cluster._address()
        facts["where"] = ray.get(ray.remote(where).remote())
        facts["dedup"] = ray._private.ray_logging.RAY_DEDUP_LOGS
        cpus = ray.cluster_resources()["CPU"]
        facts["said"] = said[0] == f"started Ray on this machine: {cpus:g} CPU{'s' * (cpus != 1)}"
        facts["gpus"] = cluster.choose_device("auto", 1, 1, None, str)[0]
        third, more = int(cpus / 3 * 100) / 100, int(cpus / 3 * 10_000 + 1) / 10_000
        cluster.require(3, third, 0, stop, said.append)
        group = placement_group([{"CPU": more}] * 3)  # what we refuse, Ray does not place
        facts["Ray agrees"] = not group.wait(1)
        remove_placement_group(group)
        for name, ask in {"too many": (3, more, 0), "no gpu": (1, 1, 1)}.items():
            try:
                cluster.require(*ask, stop, said.append)
            except cluster.ClusterError as error:
                facts[name] = str(error)

        link = Link.open()
        stop.then(link.stop)
        tasks = [ray.remote(num_cpus=cpus / 2)(worker).remote(link, n) for n in range(2)]
        messages = []
        while len(messages) < 10:
            messages += link.drain()
        with cluster.connect(said.append):
            pass
        facts["still connected"] = ray.is_initialized()
        threading.Timer(4, os.kill, (os.getpid(), signal.SIGTERM)).start()
        try:
            cluster.require(1, cpus, 0, stop, said.append)
        except SystemExit as ended:
            facts["exit code"] = ended.code
        ray.get(tasks)
        messages += link.drain()
        facts["steps"] = [[m["step"] for m in messages if m.get("worker") == n and "step" in m]
                          for n in range(2)]
        facts["stopped"] = sum(m.get("stopped", False) for m in messages)
        facts["waited"] = said[-1]
        task = ray.remote(worker).remote(link := Link.open(), 0)
        while not link.drain():
            pass
        ray.kill(link.actor)
        ray.get(task)
        link.push({})
        link.stop()
        facts["of the dead"] = link.drain()
    facts["token"] = os.path.exists(os.path.expanduser("~/.ray/auth_token"))
    print(json.dumps(facts))
    """
    facts = answer(python(code, tmp_path, RAY_TMPDIR=str(short_folder)))
    file, folder = facts.pop("where")
    assert Path(file) == ROOT / "jobs" / "cluster" / "connect.py"
    assert Path(folder) == tmp_path
    assert "use --workers 2, or --cpus-per-worker" in facts.pop("too many")
    assert "no GPU" in facts.pop("no gpu")
    assert "but other jobs hold some of it" in facts.pop("waited")
    assert facts == {
        "address of others": "local",
        "dedup": False,
        "said": True,
        "gpus": False,
        "Ray agrees": True,
        "still connected": True,
        "exit code": 143,
        "steps": [[0, 1, 2, 3, 4]] * 2,
        "stopped": 2,
        "of the dead": [],
        "token": False,
    }


@pytest.fixture
def autoscaling(short_folder):
    """The address of a head without CPUs and Ray's own fake autoscaler: up to 2 nodes of 4 CPUs.

    Not `ray.cluster_utils.AutoscalingCluster`: it reads a file that the wheel lacks, and ends
    every Ray on the machine.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "fake": {"resources": {"CPU": 4, "GPU": 1}, "node_config": {}, "max_workers": 2},
    }
    config = {
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "launch_multiple": True,
            "gcs_address": address,
            "head_node_id": "f" * 51 + "00000",
        },
        "head_node_type": "ray.head.default",  # the one name that the fake provider knows
        "available_node_types": kinds,
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in ("initialization_commands", "cluster_synced_files")},
        **{f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")},
        **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
    }
    (short_folder / "autoscaler.json").write_text(json.dumps(config))
    head = subprocess.Popen(
        [
            *(Path(sys.executable).with_name("ray"), "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", f"--port={address.rpartition(':')[2]}"),
            *("--num-cpus=0", "--object-store-memory=100000000", "--include-dashboard=false"),
            *(f"--temp-dir={short_folder}", f"--autoscaling-config={short_folder}/autoscaler.json"),
        ],
        env=os.environ
        | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield address
    head.terminate()
    head.wait(60)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)  # the fake nodes outlive their head


@pytest.mark.slow
def test_what_the_autoscaler_can_add_is_waited_for(autoscaling, tmp_path):
    code = """
    import json, ray
    from jobs.cluster import connect as cluster
    from jobs.cluster import nodes
    from jobs.cluster.link import Link
    from jobs.run.signals import Stop, background

    facts, said = {}, []
    with cluster.connect(said.append):
        facts["gpus"] = cluster.choose_device("auto", 1, 1, None, str)[0]
        facts["before"] = len(ray.nodes())
        for name, ask in {"node": (1, 5, 0), "count": (3, 1, 1)}.items():
            try:
                cluster.require(*ask, say=said.append)
            except cluster.ClusterError as error:
                facts[name] = str(error)
        refused = len(said)
        cluster.require(2, 2, 0.5, say=said.append)
        facts["said"] = said[refused:]
        facts["after"] = sorted(node.type for node in nodes.current_nodes().present)
    print(json.dumps(facts))
    """
    host, port = autoscaling.split(":")
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                break
        time.sleep(0.1)
    facts = answer(python(code, tmp_path, RAY_ADDRESS=autoscaling, RAY_AUTH_MODE="disabled"))
    assert facts["gpus"]
    assert facts["before"] == 1
    assert "use --cpus-per-worker 4" in facts["node"]
    assert "may grow to 2 fake (4 CPUs and 1 GPU)" in facts["node"]
    assert "use --workers 2" in facts["count"]
    assert facts["said"][0].startswith("waiting for nodes, 0 of 2 fit: 2 workers need 2 CPUs")
    assert facts["after"] == ["", "fake"]
