"""What is known of running clusters: whether they take no token, and which are elsewhere."""

import os
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from jobs.cluster import connect, running
from jobs.cluster.connect import ClusterError


class Head(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    """The head of a cluster, with or without tokens."""

    def __init__(self, token):
        self.token = token

    def CheckAlive(self, request, context):  # noqa: N802
        if self.token:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return gcs_service_pb2.CheckAliveReply()


@pytest.fixture(params=[False, True], ids=["no token", "token"])
def head(request):
    """The address of a head, and whether it asks for a token."""
    server = grpc.server(ThreadPoolExecutor(1))
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(Head(request.param), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", request.param
    server.stop(None)


def test_a_job_with_a_token_does_not_join_a_cluster_without(head, monkeypatch):
    address, token = head
    assert running.takes_no_token(address) == (not token)
    monkeypatch.setattr(connect, "_init", lambda **_: None)
    monkeypatch.setattr(connect, "is_token_auth_enabled", lambda: True)
    monkeypatch.setattr(
        connect.ray, "get_runtime_context", lambda: namedtuple("C", "gcs_address")(address)
    )
    if token:
        assert connect._join(address) == f"joined the Ray cluster at {address}"
    else:
        with pytest.raises(ClusterError, match="started without tokens, but this job uses one"):
            connect._join(address)
    monkeypatch.setattr(connect, "is_token_auth_enabled", lambda: False)
    assert connect._join(address) == f"joined the Ray cluster at {address}"


def test_what_does_not_answer_is_not_judged():
    assert not running.takes_no_token("127.0.0.1:1")


def test_clusters_with_another_temporary_folder_are_found(tmp_path, monkeypatch):
    """Those that this user started by `ray start`; a job's own Ray writes no address."""
    for name, address in [("theirs", "10.0.0.1:6379"), ("usual", "10.0.0.2:6379")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "ray_current_cluster").write_text(address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").symlink_to(tmp_path / "usual")
    mine, process = namedtuple("U", "real")(os.getuid()), namedtuple("P", "info")

    def raylet(folder, user=mine, name="raylet"):
        return process({"name": name, "uids": user, "cmdline": ["raylet", f"--temp_dir={folder}"]})

    processes = [
        raylet(tmp_path / "theirs"), raylet(tmp_path / "ray"), raylet(tmp_path / "own-of-a-job"),
        raylet(tmp_path / "theirs", name="python"), process({"name": "x", "uids": None}),
    ]  # fmt: skip
    monkeypatch.setattr(psutil, "process_iter", lambda _: iter(processes))
    assert list(running.started_elsewhere()) == ["10.0.0.1:6379"]
    processes[0] = raylet(tmp_path / "theirs", user=namedtuple("U", "real")(os.getuid() + 1))
    assert list(running.started_elsewhere()) == []
