"""Write the lock files from pyproject.toml; wants `uv` on the path.

    python .ci/lock.py                  # after a change of pyproject.toml; other versions stay
    python .ci/lock.py --upgrade        # the newest versions that pyproject.toml allows

Each file has the version of every package, and the SHA-256 of each of its files, for `pip install
--require-hashes --no-deps`:

    requirements.lock        what runs the project, except
    requirements-torch.lock  torch, and what it brings for CUDA: builds for CPUs have other hashes
    requirements-dev.lock    what only tests, checks and benchmarks need
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = r"torch|torchvision|triton|nvidia-.*|cuda-.*"
FILES = {
    "requirements.lock": "Runs the project, with requirements-torch.lock. Written by .ci/lock.py.",
    "requirements-torch.lock": "torch, and what it brings for CUDA. Written by .ci/lock.py.",
    "requirements-dev.lock": "Tests, checks and benchmarks it. Written by .ci/lock.py.",
}


def main() -> None:
    """Resolve with and without the development's packages, and write each into its file."""
    flags = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        locked = Path(folder) / "locked.txt"
        locked.write_text("".join((ROOT / name).read_text() for name in FILES))
        whole = resolve(locked, "--extra", "dev", *flags)
        needed = resolve(locked)
    parts = {name: [f"# {about}\n"] for name, about in FILES.items()}
    for name, entry in sorted(whole.items()):
        if re.fullmatch(TORCH, name):
            parts["requirements-torch.lock"].append(entry)
        else:
            parts["requirements.lock" if name in needed else "requirements-dev.lock"].append(entry)
    for name, entries in parts.items():
        (ROOT / name).write_text("".join(entries))


def resolve(locked: Path, *flags: str) -> dict[str, str]:
    """Return the entry of every package by its name; versions in `locked` stay, or become these."""
    form = ("--universal", "--generate-hashes", "--no-annotate", "--no-header", "--quiet")
    command = ["uv", "pip", "compile", "pyproject.toml", "--python-version", "3.11", *form]
    subprocess.run([*command, *flags, "--output-file", locked], cwd=ROOT, check=True)
    entries = re.split(r"^(?=[a-zA-Z0-9])", locked.read_text(), flags=re.MULTILINE)
    return {match[0]: each for each in entries if (match := re.match(r"[a-zA-Z0-9._-]+", each))}


if __name__ == "__main__":
    main()
