"""Kill a training again and again, and compare its final weights with an uninterrupted run's.

    python -m benchmarks.training.soak_train --workers 2 --kills 10
    python -m benchmarks.training.soak_train --job finetune --kills 10

Half of the kills are a `kill -9` of one worker (Ray Train starts the ranks again), half of the
whole job, which is then started again with the same command. They come after random steps.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from tests.squares import SIDE, write_squares

FLAGS = {
    "train": [
        *("--config", "digits.yaml", "--epochs", "40", "--batch-size", "64"),
        *("--model.drop-path-rate", "0.2"),
    ],
    "finetune": [
        *("--init-weights", "scratch", "--epochs", "40", "--batch-size", "4", "--device", "cpu"),
        *("--precision", "float32", "--val-fraction", "0.1", "--val-images", "1"),
        *("--ema-half-life", "100", "--compose.size", str(SIDE), "--compose.objects", "2"),
    ],
}
STEPS = {"train": 40 * 20, "finetune": 40 * 5}


def command_of(job: str, folder: Path, workers: int) -> list[str]:
    """Return the command of a job without --out; writes data of `jobs.finetune` to `folder`."""
    flags = [*FLAGS[job], "--save-minutes", "0.01", "--cpus-per-worker", "0.5"]
    if job == "finetune":
        flags += ["--data", str(write_squares(folder / "squares.parquet"))]
    return [sys.executable, "-m", f"jobs.{job}", "--workers", str(workers), *flags]


def start(command: list[str], out: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start or resume the job."""
    with log.open("ab") as output:
        return subprocess.Popen([*command, "--out", str(out)], stdout=output, stderr=output)


def step(out: Path) -> int:
    """Return the step of the last checkpoint."""
    try:
        return int(json.loads((out / "checkpoints/last.json").read_text())["step"])
    except (OSError, ValueError):
        return 0


def family(job: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the processes of the job, including its own Ray."""
    process = psutil.Process(job.pid)
    return [process, *process.children(recursive=True)]


def worker_of(job: subprocess.Popen[bytes]) -> psutil.Process | None:
    """Return one of the job's training workers, or None."""
    found = [p for p in family(job) if "RayTrainWorker" in " ".join(p.cmdline())]
    return random.choice(found) if found else None


def soak(
    command: list[str], out: Path, after_steps: list[int], log: Path
) -> list[dict[str, object]]:
    """Run to the end with a kill after each of these steps; returns what was killed when."""
    record: list[dict[str, object]] = []
    job = start(command, out, log)
    for number, after_step in enumerate(after_steps):
        while step(out) < after_step and job.poll() is None:
            time.sleep(0.02)
        if job.poll() is not None:
            break
        time.sleep(random.uniform(0, 0.3))
        if number % 2 == 0:
            while (victim := worker_of(job)) is None and job.poll() is None:
                time.sleep(0.1)  # Ray is still starting the ranks again after the last kill
            if victim is None:
                break
            victim.kill()
            record.append({"killed": "worker", "after_step": after_step})
        else:
            for process in family(job):
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            job.wait()
            record.append({"killed": "job", "after_step": after_step})
            job = start(command, out, log)
    assert job.wait() == 0, f"the job failed: {log.read_text()[-3000:]}"
    return record


def final(out: Path) -> dict[str, torch.Tensor]:
    """Return weights and optimizer state of the last checkpoint."""
    name = json.loads((out / "checkpoints/last.json").read_text())["checkpoint"]
    folder = out / "checkpoints" / name
    weights, optimizer = (load_file(folder / f"{n}.safetensors") for n in ("weights", "optimizer"))
    return weights | optimizer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak; returns 0 if weights and optimizer are equal bit for bit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", choices=list(FLAGS), default="train")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="seed of the steps to kill after")
    parser.add_argument("--json", type=Path, help="file for the result")
    options = parser.parse_args(argv)
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        log = root / "log"
        command = command_of(options.job, root, options.workers)
        whole = start(command, root / "whole", log)
        assert whole.wait() == 0, log.read_text()[-3000:]
        steps = STEPS[options.job]
        after_steps = sorted(random.sample(range(steps // 20, steps * 9 // 10), options.kills))
        record = soak(command, root / "killed", after_steps, log)
        tensors = [final(root / name) for name in ("whole", "killed")]
        summary = json.loads((root / "killed/summary.json").read_text())
    different = [k for k in tensors[0] if not torch.equal(tensors[0][k], tensors[1][k])]
    result = {
        "job": options.job,
        "workers": options.workers,
        "kills": record,
        "resumed": summary["resumed"],
        "tensors": len(tensors[0]),
        "different": len(different),
        "versions": summary["versions"],
        "hardware": summary["hardware"],
    }
    print(json.dumps(result, indent=2))
    if len(record) < options.kills:
        print(f"only {len(record)} of {options.kills} kills hit before the run was over")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
