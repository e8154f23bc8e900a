"""What can be known of running Ray clusters before a job works on one of them."""

import os
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import psutil
from ray._private.utils import read_ray_address
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

_PROBE_SECONDS = 5.0


def answers(address: str, seconds: float) -> bool:
    """Return whether something accepts connections at `address` (host:port) in so many seconds."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds):
            return True
    except (OSError, ValueError):
        return False


def takes_no_token(address: str) -> bool:
    """Return whether the cluster at `address` (host:port) answers a request without a token.

    Returns False also if this cannot be known, as from a cluster that uses TLS.
    """
    request: Any = gcs_service_pb2
    stubs: Any = gcs_service_pb2_grpc
    with grpc.insecure_channel(address) as channel:
        service = stubs.NodeInfoGcsServiceStub(channel)
        try:
            service.CheckAlive(request.CheckAliveRequest(), timeout=_PROBE_SECONDS)
        except grpc.RpcError:
            return False
    return True


def started_elsewhere() -> Iterator[str]:
    """Yield the addresses of clusters that this user started by `ray start --temp-dir` here.

    Ray writes the address of a cluster into its folder of temporary files, and looks for it in the
    usual one only.
    """
    usual, folders = read_ray_address(), set()
    for process in psutil.process_iter(["name", "uids", "cmdline"]):
        facts = process.info
        if facts["name"] == "raylet" and facts["uids"] and facts["uids"].real == os.getuid():
            words = (word.partition("=") for word in facts["cmdline"] or ())
            folders |= {value for flag, _, value in words if flag == "--temp_dir"}
    found = {read_ray_address(folder) for folder in sorted(folders)}
    yield from sorted(address for address in found if address and address != usual)
