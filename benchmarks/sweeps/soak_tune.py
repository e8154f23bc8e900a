"""Run sweeps under kill -9, with failing trials and with several processes; time the overhead.

    python -m benchmarks.sweeps.soak_tune --json benchmarks/results/sweeps/soak_tune.json

kills: the driver is killed at ten random times; every rerun resumes.
faults: a trial runs out of memory, one has a loss that is not finite, a worker is killed.
nested: ten trials of two processes, most of them stopped; CPUs that are still reserved afterwards.
overhead: eight trials of two minutes; the time of the sweep over that of its trials.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.training.soak_train import family
from jobs.run.machine import hardware, versions
from jobs.storage.location import Location
from jobs.training.checkpoints import Checkpoints

SMALL = (
    *("--config", "digits_sweep.yaml", "--device", "cpu", "--epochs", "12"),
    *("--optim.warmup-epochs", "0.5", "--model.embed-dim", "48"),
)
Job = subprocess.Popen[bytes]


def start(out: Path, *flags: str) -> Job:
    """Start a sweep with a Ray of its own; its output goes to a file beside `out`."""
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.tune", *SMALL, "--out", str(out), *flags],
            env=os.environ | {"RAY_ADDRESS": "local"}, stdout=log, stderr=log,
        )  # fmt: skip


def records(out: Path) -> dict[str, Any]:
    """Return the record of every trial, by the name of its folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("trials/*/*.json")}


def epochs(out: Path) -> int:
    """Return the number of epochs on record, of all trials together."""
    return sum(len(trial["rows"]) for trial in records(out).values())


def kill(job: Job) -> None:
    """Kill the driver and all processes that it started, with SIGKILL."""
    for process in family(job):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    job.wait()


def kills(root: Path, times: int) -> dict[str, Any]:
    """Kill the sweep at random times; compare the record before and after each kill."""
    out, flags = root / "kills", ("--trials", "16")
    kills: list[dict[str, int]] = []
    over: dict[str, Any] = {}
    job = start(out, *flags)
    while len(kills) < times:
        begun = epochs(out)
        while epochs(out) == begun and job.poll() is None:  # until it trains
            time.sleep(0.1)
        time.sleep(random.uniform(0, 8))
        if job.poll() is not None:
            break
        kill(job)
        trials = records(out)
        over |= {name: trial for name, trial in trials.items() if trial["fate"]}
        repeats = [to_repeat(out, t) for t in trials.values() if not t["fate"]]
        kills.append({"over": len(over), "to_repeat": max(repeats, default=0)})
        job = start(out, *flags)
    assert job.wait() == 0, out.with_suffix(".log").read_text()[-3000:]
    trials = records(out)
    return {
        "kills": kills,
        "trials": len(trials),
        "fates": sorted(trial["fate"] for trial in trials.values()),
        "over_and_changed_later": sum(trials[name] != trial for name, trial in over.items()),
        "epochs_out_of_order": sum(
            [row["epoch"] for row in trial["rows"]] != list(range(1, len(trial["rows"]) + 1))
            for trial in trials.values()
        ),
    }


def to_repeat(out: Path, trial: dict[str, Any]) -> int:
    """Return the number of epochs of a trial that are on record, but not in its last checkpoint."""
    place = Location.parse(str(out / f"trials/{trial['number']:04}/checkpoints"))
    checkpoints = Checkpoints(place, "")
    name = checkpoints.latest()
    saved = 0 if name is None else checkpoints.state(name)["epoch"]
    return max(0, len(trial["rows"]) - saved)


def faults(root: Path) -> dict[str, Any]:
    """Run a trial out of memory, and one with a loss that is not finite, and kill a worker."""
    out = root / "faults"
    job = start(
        out, "--budget", "epochs", "--max-budget", "12", "--searcher", "grid", "--scheduler",
        "none", "--space", "model.mlp_ratio", "2, 1e9", "optim.lr", "3e-3, 1e30",
    )  # fmt: skip
    killed = 0
    while job.poll() is None:
        running = [t for t in records(out).values() if not t["fate"] and len(t["rows"]) > 1]
        if running and not killed:
            for process in family(job):
                if "run_trial" in " ".join(process.cmdline()) or "ImplicitFunc" in process.name():
                    process.kill()
                    killed = 1
        time.sleep(0.2)
    summary = json.loads((out / "summary.json").read_text())
    fates = {name: (t["fate"], t["reason"][:80]) for name, t in records(out).items()}
    return {"code": job.wait(), "workers_killed": killed, "fates": fates, "best": summary["best"]}


def nested(root: Path) -> dict[str, Any]:
    """Run ten trials of two processes; return the CPUs that are reserved at the end."""
    out, port = root / "nested", 6399
    ray = Path(sys.executable).parent / "ray"
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", "--port", str(port), "--num-cpus", "4"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    held_cpus = (
        "import ray; ray.init(logging_level='ERROR');"
        "print(ray.cluster_resources()['CPU'] - ray.available_resources().get('CPU', 0))"
    )
    time.sleep(20)
    flags = ("--trials", "10", "--searcher", "random", "--workers-per-trial", "2")
    try:
        code = subprocess.run(
            [sys.executable, "-m", "jobs.tune", *SMALL, "--out", str(out), *flags],
            env=address, stdout=subprocess.DEVNULL, check=False,
        ).returncode  # fmt: skip
        time.sleep(5)
        held = subprocess.check_output([sys.executable, "-c", held_cpus], env=address, text=True)
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            process.kill()
    summary = json.loads((out / "summary.json").read_text())
    return {
        "code": code,
        "stopped": summary["stopped"],
        "finished": summary["finished"],
        "cpus_still_reserved": float(held.strip().splitlines()[-1]),
    }


def overhead(root: Path, minutes: float) -> dict[str, Any]:
    """Return the time of a sweep, and its ratio to the time of its trials alone on two slots."""
    out = root / "overhead"
    job = start(
        out, "--trials", "8", "--searcher", "random", "--scheduler", "none", "--budget", "seconds",
        "--max-budget", str(60 * minutes), "--optim.schedule", "constant", "--epochs", "100000",
        "--optim.ema-half-life", "1500", "--space", "model.depth", "1..4", "optim.lr",
        "1e-3..1e-2 log", "--concurrent", "2",
    )  # fmt: skip
    while not records(out) and job.poll() is None:
        time.sleep(0.05)
    began = time.monotonic()
    while any(not t["fate"] for t in records(out).values()) or len(records(out)) < 8:
        if job.poll() is not None:
            break
        time.sleep(0.2)
    took = time.monotonic() - began
    assert job.wait() == 0, out.with_suffix(".log").read_text()[-3000:]
    trials = sum(trial["rows"][-1]["seconds"] for trial in records(out).values())
    return {"seconds": took, "sum_over_slots": trials / 2, "ratio": took / (trials / 2)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that --parts names, by default all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["kills", "faults", "nested", "overhead"])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument(
        "--minutes", type=float, default=2.0, help="duration of a trial, for overhead"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the times of kills")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args(argv)
    random.seed(options.seed)
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "kills": lambda root: kills(root, options.kills),
        "faults": faults,
        "nested": nested,
        "overhead": lambda root: overhead(root, options.minutes),
    }
    result: dict[str, Any] = {}
    if options.json and options.json.exists():
        result = json.loads(options.json.read_text())
    for name in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            result[name] = parts[name](Path(folder))
        print(name, json.dumps(result[name]), flush=True)
        result |= {"versions": versions(), "hardware": hardware()}
        if options.json:
            options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
