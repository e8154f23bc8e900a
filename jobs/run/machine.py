"""The machine that a job runs on: versions of packages, and hardware."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

from jobs.run.device import uses_tf32

PACKAGES = ("patchray", "ray", "torch", "torchvision", "numpy", "pandas", "pyarrow", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # Patchray in a checkout has no metadata
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return facts of this machine and process: CPU, cores, memory in GiB, GPUs, threads of torch,
    and whether float32 is rounded to TF32."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        "tf32": uses_tf32(),
        "torch_threads": torch.get_num_threads(),
        "instructions": _instructions(),
    }


def _instructions() -> str:
    """Return the CPU instructions that torch uses: vectors, bfloat16 and AMX tiles."""
    more = {"BF16": torch.cpu._is_avx512_bf16_supported, "AMX": torch.cpu._is_amx_tile_supported}
    found = [name for name, is_supported in more.items() if is_supported()]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *found])


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
