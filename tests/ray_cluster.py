"""The session's one Ray cluster, and what tests do with the jobs that they start on it."""

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

ROOT = Path(__file__).parent.parent
OUTPUT = {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
"""Wide lines, each at once, whatever kills the job."""


def _free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class RayCluster:
    """Two nodes of `ray start` on this machine, each with 2 CPUs and a GPU that is not there.

    Each has a folder and a port for its agent of its own, as machines have. In one folder a node
    unpacks the files of a submitted job over those that the others stand in; at one port the last
    agent fails, and if it is the head's, no job can be submitted.
    """

    def __init__(self, folder):
        self.gcs, self.dashboard, client = _free_ports(3)
        self.address = f"127.0.0.1:{self.gcs}"
        self.http = f"http://127.0.0.1:{self.dashboard}"
        self.folder, self._homes = folder, []
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_open_telemetry": "0",
            "RAY_health_check_period_ms": "500",  # of Ray's 3 s: five refusals, and a node is lost
        }
        ports = ["--port", str(self.gcs), "--dashboard-port", str(self.dashboard)]
        ports += ["--ray-client-server-port", str(client)]  # two heads at 10001: the second ends
        self.nodes = [self._node("--head", *ports)]
        self._wait("GCS", self.gcs)
        self._wait("dashboard", self.dashboard)
        self.nodes.append(self._node("--address", self.address))
        self._wait_for_nodes(2)

    def _wait_for_nodes(self, count):
        """Wait until so many nodes are there: a job counts those that it finds."""
        deadline, alive = time.monotonic() + 90, -1
        while alive < count and time.monotonic() < deadline:
            time.sleep(0.2)
            with contextlib.suppress(OSError), urlopen(f"{self.http}/api/v0/nodes") as answer:
                nodes = json.load(answer)["data"]["result"]["result"]
                alive = sum(node["state"] == "ALIVE" for node in nodes)
        assert alive >= count, f"{alive} of {count} nodes are there after 90 s"

    def add(self, *flags):
        """Add a node like the others, or as `flags` say; `lose` it before the test ends."""
        self.nodes.append(self._node("--address", self.address, *flags))
        return self.nodes[-1]

    def lose(self, node):
        """Kill a node: `ray start`, the raylet, its agents and all its workers."""
        for process in [*psutil.Process(node.pid).children(recursive=True), node]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait(timeout=20)
        self.nodes.remove(node)

    def processes(self, title):
        """Return the processes of all nodes that have `title` in their command line."""
        found = []
        for node in self.nodes:
            for process in psutil.Process(node.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it may end meanwhile
                    if title in " ".join(process.cmdline()):
                        found.append(process)
        return found

    def _node(self, *flags):
        ray = Path(sys.executable).parent / "ray"
        self._homes.append(tempfile.mkdtemp(prefix="ray"))  # short: sockets lie in it
        flags = [*flags, "--temp-dir", self._homes[-1]]
        flags += ["--dashboard-agent-listen-port", str(*_free_ports(1))]
        size = ["--num-cpus", "2", "--num-gpus", "1", "--object-store-memory", str(128 << 20)]
        with (self.folder / "ray.log").open("ab") as log:
            return subprocess.Popen(
                [ray, "start", *size, *flags, "--block"],
                env=self.environment, cwd=self.folder, stdout=log, stderr=log,
            )  # fmt: skip

    def _wait(self, what, port):
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.2)
        pytest.fail(
            f"Ray's {what} does not answer:\n{(self.folder / 'ray.log').read_text()[-2000:]}"
        )

    def job(self, *argv, module="jobs.train", **changes):
        """Start `python -m jobs.train` on this cluster; its output is one stream."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *map(str, argv)],
            env=self.environment | {"RAY_ADDRESS": self.address} | OUTPUT | changes,
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def stop(self):
        """Kill all nodes: nothing here needs an orderly end."""
        for node in reversed(self.nodes.copy()):
            self.lose(node)
        for home in self._homes:
            shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory, s3_server, cache):
    """The session's one Ray cluster; its workers know the S3 server."""
    cluster = RayCluster(tmp_path_factory.mktemp("ray"))
    yield cluster
    cluster.stop()


@pytest.fixture
def run_here(ray_cluster, monkeypatch, capsys):
    """Run a job's main() in this process, on the cluster; returns what it printed.

    For starts that are refused or find nothing left to do: a process of their own would take 5 to
    8 seconds to import torch and Ray.
    """

    def run(main, *argv, code=0):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            for name, value in ray_cluster.environment.items():
                patch.setenv(name, value)
            patch.setenv("RAY_ADDRESS", ray_cluster.address)
            ended = main([*map(str, argv)])
        printed = "".join(capsys.readouterr())
        assert ended == code, printed
        return printed

    return run


def submit(client, module, *argv):
    """`ray job submit`, once the cluster has started all that takes jobs, which comes last."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return client.submit_job(
                entrypoint=shlex.join([sys.executable, "-m", module, *argv]),
                runtime_env={"working_dir": str(ROOT), "excludes": ["/runs", "/.venv", "/tests"]},
            )
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)


def finish(job, code=0):
    """Wait until a job has ended, with that exit code; returns what it printed."""
    output = job.communicate(timeout=400)[0]
    assert job.returncode == code, output
    return output


def wait_for(condition, job=None, seconds=240):
    """Wait until a condition holds; fails if `job` ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert job is None or job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
