import subprocess
from pathlib import Path

import torch

from jobs.run.device import settle, uses_tf32
from jobs.run.machine import hardware

ROOT = Path(__file__).parents[3]


def test_float32_is_float32_whatever_ran_before():
    torch.backends.cudnn.allow_tf32 = True
    assert hardware()["tf32"] is True
    settle(torch.device("cpu"))
    assert not uses_tf32()
    assert hardware()["tf32"] is False
    torch.backends.cudnn.allow_tf32 = True


def test_tf32_is_set_in_one_place():
    found = subprocess.run(
        ["grep", "-rlE", "allow_tf32 =|fp32_precision|set_float32_", "jobs", "vit", "masking"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    files = [line for line in found.stdout.split() if line.endswith(".py")]
    assert files == ["jobs/run/device.py"]
