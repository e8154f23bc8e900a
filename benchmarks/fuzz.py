"""Gives random inputs to every reader of files and requests, and counts what is not refused.

    python -m benchmarks.fuzz --json FILE
    python -m benchmarks.fuzz --kind manifests --inputs 2000
    python -m benchmarks.fuzz --kind manifests --only 1234

Each module in `benchmarks/fuzzing/` is a kind: `attempt(random, folder)` makes an input in an empty
folder and gives it to the reader, and `REFUSALS` are the exceptions by which this reader says that
an input is bad. A fault is any other exception, a refusal without a message, more than `SECONDS` of
processor time or `HANGS` in all, more than `MEGABYTES` of additional memory, or the end of the
process. An input depends on kind,
seed and number alone, so `--only` repeats one with its traceback. Without `--kind` and `--inputs`
the run takes a night: 10,000 inputs of each kind, 1,000 videos.
"""

import argparse
import json
import multiprocessing
import pkgutil
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from benchmarks import fuzzing
from jobs.run.machine import hardware, versions

SECONDS = 10
"""Processor time that one input may take."""
HANGS = 60
"""Seconds after which an input is ended, however busy the machine is."""
MEGABYTES = 512
"""By how much one input may raise the largest memory of the process."""
INPUTS = {"videos": 1000}
"""Inputs of a kind in a full run, where these are not 10,000."""
AT_ONCE = 250
"""Inputs for each process: its largest memory never falls, so that a later input could hide."""
KINDS = sorted(module.name for module in pkgutil.iter_modules(fuzzing.__path__))


class TooLongError(BaseException):
    """An input took more than `HANGS`; no reader may take it for an error of its own."""


@dataclass(frozen=True)
class Result:
    """What became of one input; `ends` is `read`, `refused` or `fault`, and the seconds are of
    processor time."""

    number: int
    ends: str
    what: str
    seconds: float
    megabytes: float


def kind_of(name: str) -> ModuleType:
    """Return the module of a kind."""
    return import_module(f"{fuzzing.__name__}.{name}")


def attempt(kind: str, seed: int, number: int) -> Result:
    """Make one input, give it to its reader and say what became of it."""
    module, before, started = kind_of(kind), _largest(), time.process_time()
    ends, what = "read", ""
    try:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, _limit(HANGS):
            module.attempt(Random(f"{kind} {seed} {number}"), Path(folder))
    except module.REFUSALS as error:
        ends, what = ("refused", "") if str(error).strip() else ("fault", "an empty message")
    except (Exception, TooLongError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} in {Path(place.filename).name}: {str(error)[:200]}"
        ends = "fault"
    seconds, megabytes = time.process_time() - started, _largest() - before
    if ends != "fault" and seconds > SECONDS:
        ends, what = "fault", f"{seconds:.0f} s"
    if ends != "fault" and megabytes > MEGABYTES:
        ends, what = "fault", f"{megabytes:.0f} MB more memory"
    return Result(number, ends, what, seconds, megabytes)


def _largest() -> float:
    """Return the largest memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def end(*_: object) -> None:
        raise TooLongError(f"more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _work(kind: str, seed: int, numbers: range, out: Connection) -> None:
    attempt(kind, seed, -1)  # what is loaded once is not the first input's time and memory
    out.send(None)
    for number in numbers:
        out.send(attempt(kind, seed, number))


def run(kind: str, seed: int, numbers: range) -> Iterator[Result]:
    """Yield what became of each input, in their order; each chunk runs in a process of its own."""
    context = multiprocessing.get_context("spawn")
    while numbers:
        ours, theirs = context.Pipe(duplex=False)
        chunk, numbers = numbers[:AT_ONCE], numbers[AT_ONCE:]
        worker = context.Process(target=_work, args=(kind, seed, chunk, theirs), daemon=True)
        worker.start()
        theirs.close()
        done, starting = 0, True
        try:
            while done < len(chunk):
                # Code that does not let signals through is ended from here.
                if not ours.poll(10 * HANGS if starting else 2 * HANGS):
                    raise EOFError
                result = ours.recv()
                if starting:
                    starting = False
                    continue
                yield result
                done += 1
        except EOFError:
            worker.kill()
            worker.join()
            what = f"the process ended or hung (exit code {worker.exitcode})"
            yield Result(chunk[done], "fault", what, 0.0, 0.0)
            numbers = range(chunk[done] + 1, numbers.stop if numbers else chunk.stop)
        worker.join()
        worker.close()


def summary(kind: str, seed: int, numbers: range) -> dict[str, Any]:
    """Run the inputs of a kind; return counts, every fault, the slowest and the largest."""
    counts, faults = {"read": 0, "refused": 0, "fault": 0}, []
    slowest = largest = None
    for result in run(kind, seed, numbers):
        counts[result.ends] += 1
        if result.ends == "fault":
            faults.append({"number": result.number, "what": result.what})
            print(f"{kind} {result.number}: {result.what}", flush=True)
        slowest = max(slowest or result, result, key=lambda each: each.seconds)
        largest = max(largest or result, result, key=lambda each: each.megabytes)
    return {
        "inputs": len(numbers),
        **counts,
        "faults": faults,
        "slowest": slowest and asdict(slowest),
        "largest": largest and asdict(largest),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each kind; return 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--inputs", type=int, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one input, with its traceback")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args(argv)
    if options.only is not None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            for kind in options.kind:
                random = Random(f"{kind} {options.seed} {options.only}")
                print(kind_of(kind).attempt(random, Path(folder)))
        return 0
    found = {}
    for kind in options.kind:
        inputs = INPUTS.get(kind, 10_000) if options.inputs is None else options.inputs
        found[kind] = summary(kind, options.seed, range(inputs))
        line = {key: value for key, value in found[kind].items() if isinstance(value, int)}
        print(kind, json.dumps(line), flush=True)
        if options.json:
            result = {"seed": options.seed, "hardware": hardware(), "versions": versions()}
            options.json.write_text(json.dumps({**result, "kinds": found}, indent=1) + "\n")
    return 1 if any(kind["fault"] for kind in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
