"""What all tests share: one thread, a cache of their own, and the fixtures of the plugins."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
pytest_plugins = ["tests.s3_server", "tests.ray_cluster", "tests.trained", "tests.browser"]


def pytest_collection_modifyitems(items):
    """Mark what runs on the session's Ray cluster: it wants the machine for itself."""
    for item in items:
        if "ray_cluster" in item.fixturenames:
            item.add_marker("ray")
            if item.path.parent != ROOT / "tests/jobs":
                raise pytest.UsageError(
                    f"{item.nodeid} runs on Ray, so it must lie in tests/jobs/test_*.py, where"
                    " `make test` finds it"
                )


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Decoded data sets and fetched files go to a folder of this session."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("PATCHRAY_CACHE")
    os.environ["PATCHRAY_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["PATCHRAY_CACHE"]
    else:
        os.environ["PATCHRAY_CACHE"] = before


@pytest.fixture
def stand_in(request):
    """The stand-in for a CUDA device, for tests that count what is done with it."""
    plugin = request.config.pluginmanager.get_plugin("tests.stand_in_cuda")
    if plugin is None:
        pytest.skip("counts what only the stand-in can: make gpu-stand-in")
    return plugin.DEVICE
