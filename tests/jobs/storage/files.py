"""Files to store, and processes that store them."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

from tests.conftest import ROOT

MB = 1 << 20


def noise(size, seed=0):
    return np.random.default_rng(seed).bytes(size)


def all_files(folder):
    """Every file, hidden ones too, but for locks."""
    return sorted(
        str(path.relative_to(folder))
        for path in Path(folder).rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    )


def run_python(code, *args, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)], cwd=ROOT, **kwargs
    )
