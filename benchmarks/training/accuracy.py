"""Test accuracy of a recipe over seeds: mean, standard deviation and time of whole trainings.

python -m benchmarks.training.accuracy --config digits.yaml --seeds 5 --workers 2
python -m benchmarks.training.accuracy --config cifar10_cpu.yaml --seeds 1 --workers 2 --data PATH
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("val_accuracy", "test_accuracy", "train_s", "images_per_s", "peak_rss_mb")


def train(config: str, seed: int, out: Path, more: Sequence[str]) -> dict[str, Any]:
    """Run or resume the job; returns its summary."""
    flags = ["--config", config, "--seed", str(seed), "--out", str(out), *more]
    subprocess.run([sys.executable, "-m", "jobs.train", *flags], check=True)
    return json.loads((out / "summary.json").read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """Train with each seed and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="digits.yaml")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--json", type=Path, help="file for the result")
    options, more = parser.parse_known_args(argv)
    name = Path(options.config).stem
    summaries = [
        train(options.config, seed, options.out / f"{name}-{seed}", more)
        for seed in range(options.seeds)
    ]
    print(f"\n| seed | {' | '.join(COLUMNS)} |\n| --- |{' --- |' * len(COLUMNS)}")
    for seed, summary in enumerate(summaries):
        print(f"| {seed} | {' | '.join(f'{summary[c]:.4g}' for c in COLUMNS)} |")
    tests = [summary["test_accuracy"] for summary in summaries]
    deviation = statistics.stdev(tests) if len(tests) > 1 else 0.0
    print(f"\nmean test accuracy {statistics.mean(tests):.4f}, s {deviation:.4f}, n {len(tests)}")
    print(f"{json.dumps(summaries[0]['hardware'])}\n{json.dumps(summaries[0]['versions'])}")
    if options.json:
        options.json.write_text(json.dumps(summaries, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
