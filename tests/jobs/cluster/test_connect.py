"""Starting and joining Ray, and waiting for its nodes: refusals, and one Ray from start to end."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from jobs.cluster import connect
from jobs.cluster.connect import ClusterError
from jobs.run.config import ConfigError
from jobs.run.submitted import check_present, refuse_relative
from jobs.weights.segmenter import locate
from masking.segmenter.sam import SegmenterWeightsError
from tests.conftest import ROOT


@pytest.fixture
def outside(monkeypatch):
    """Remove the environment variables that a cluster sets in its processes."""
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
    with pytest.raises(ConfigError) as local:
        check_present("--data", [str(tmp_path / "gone")])
    assert "ray job submit" not in str(local.value)
    outside.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"neither git nor \.rayignore ignores"):
        check_present("--data", [str(tmp_path / "gone")])
    with pytest.raises(SegmenterWeightsError, match=r"neither git nor \.rayignore ignores"):
        locate(str(tmp_path / "gone.pth"))


def python(code, folder, **environment):
    """Run code in a Python process that imports this checkout; return exit code and output."""
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
    """Return the last line of a script's output, parsed as JSON."""
    code, text = output
    assert code == 0, text
    return json.loads(text.splitlines()[-1])


@pytest.fixture
def short_folder():
    """Create a folder whose path is short enough for Ray's sockets."""
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
    """Start, imports, fitting, waiting, links and the end, all on one Ray to save time."""
    code = """
    import json, os, signal, threading, time
    import psutil, ray
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
        # As systemd and Slurm do, and `timeout` to the process group: a signal to every process.
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        def end_all():
            for process in family:
                process.send_signal(signal.SIGTERM)
        facts["beyond loopback"] = [
            (process.name(), str(each.laddr)) for process in family
            for each in process.net_connections("inet")
            if each.status == "LISTEN" and not each.laddr.ip.endswith("127.0.0.1")]
        threading.Timer(4, end_all).start()
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
    time.sleep(1)
    facts["left"] = [each.name() for each in family[1:] if each.is_running()
                     and each.status() != psutil.STATUS_ZOMBIE]
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
        "beyond loopback": [],
        "left": [],
    }


@pytest.fixture
def autoscaling(short_folder):
    """Yield the address of a CPU-less head with Ray's fake autoscaler: up to 2 nodes of 4 CPUs.

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
