"""All that should be known of a GPU, in ten minutes, for the first machine that has one.

    python -m benchmarks.gpu --json benchmarks/results/gpu.json
    python -m benchmarks.gpu --json gpu.json --minutes 4 --parts "vit seed" step

Each part runs in a process of its own, so that one that fails, or takes too long, costs only
itself; its figures are in the file as soon as it is over. The same command with the same file
measures what is not there yet, and what failed:

- `tests`: the tests that need a GPU;
- `vit seed`, `vit s16`: images/s of the seed's model at 32 px and of ViT-S/16 at 224 px in
  bfloat16, forward, backward and AdamW, beside timm's, with and without torch.compile and CUDA
  graphs;
- `step`: a whole training step, with its launches, copies and waits by torch's profiler;
- `encode ...`: frames/s of the encoders of mini, vit_b and vit_h (random weights), 480p and 1080p;
- `masks ...`: frames/s of `jobs.mask` with 1, 2 and 4 workers on the GPU;
- `cifar10`: `cifar10_vit.yaml` for the time that is left; it resumes.

`--device cpu` shows that the parts run; its figures say nothing.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts import PARTS, Setting, run_part
from jobs.run.machine import hardware, versions


def in_process(name: str, options: argparse.Namespace, until: float) -> dict[str, Any]:
    """Run a part in a process of its own; returns its figures, or why there are none."""
    limit = min(PARTS[name][0], until - time.time())
    part = options.json.with_suffix(".part")
    part.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--only", name, "--json", str(part)]
    command += ["--device", options.device, "--until", str(time.time() + limit)]
    command += ["--work", str(options.work), "--seconds", str(options.seconds)]
    command += ["--batch", str(options.batch)]
    started = time.time()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit + 30
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not over after {limit + 30:.0f} s"}
    if done.returncode or not part.exists():
        return {"failed": done.stderr.splitlines()[-5:]}
    found = json.loads(part.read_text())
    part.unlink()
    return {**found, "took_s": round(time.time() - started, 1)}


def measure_all(options: argparse.Namespace) -> int:
    """Run the parts that the file does not have yet, and write it after each."""
    until = time.time() + 60 * options.minutes
    found: dict[str, Any] = {"parts": {}}
    if options.json.exists():
        found = json.loads(options.json.read_text())
    found |= {"hardware": hardware(), "versions": versions(), "device": options.device}
    for name in options.parts:
        before = found["parts"].get(name, {"failed": "not run"})
        if "failed" not in before and name != "cifar10":
            continue
        if until - time.time() < 20:
            print(f"{name}: no time left; the same command resumes")
            continue
        found["parts"][name] = in_process(name, options, until)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {json.dumps(found['parts'][name])}", flush=True)
    return int(any("failed" in part for part in found["parts"].values()))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="file of the figures")
    parser.add_argument("--minutes", type=float, default=10, help="time for all parts")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"), help="folder that resumes")
    parser.add_argument("--seconds", type=float, default=2.0, help="time of a rate")
    parser.add_argument("--batch", type=int, default=256, help="images of a batch of a ViT")
    parser.add_argument("--only", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=float("inf"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not options.only:
        return measure_all(options)
    setting = Setting(
        torch.device(options.device),
        seconds=options.seconds,
        batch=options.batch,
        work=options.work,
        until=options.until,
    )
    options.json.write_text(json.dumps(run_part(options.only, setting)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
