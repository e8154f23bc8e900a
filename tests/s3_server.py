"""A real S3 server, moto's, in a process of its own."""

import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from pyarrow import fs

DEADLINE_S = 60
_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """The server's endpoint. The AWS variables are set from here on, for child processes too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("s3") / "server.log"
    with log.open("wb") as output, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            _wait(server, f"{endpoint}/moto-api/data.json", log)
            patch.setenv("AWS_ENDPOINT_URL", endpoint)
            patch.setenv("AWS_ACCESS_KEY_ID", "test")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
            patch.setenv("AWS_REGION", "us-east-1")
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            yield endpoint
        finally:
            server.kill()
            server.wait()


@pytest.fixture
def s3(s3_server):
    """The URI of a new, empty bucket."""
    bucket = f"bucket-{next(_numbers)}"
    fs.FileSystem.from_uri("s3://x?allow_bucket_creation=true")[0].create_dir(bucket)
    return f"s3://{bucket}"


def _wait(server, url, log):
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=DEADLINE_S):
                return
        except urllib.error.URLError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the S3 server does not answer:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
