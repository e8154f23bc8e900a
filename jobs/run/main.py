"""The main function of every job: settings from flags, the job, its exit code.

0 done; 1 failed; 2 bad input, nothing was started. After a signal a job returns 128 and its number
by itself, from `jobs.run.signals.Stop`.
"""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from jobs.run.config import ConfigError, parse
from jobs.storage.location import StorageError

C = TypeVar("C")


class InputError(Exception):
    """Base of errors in the input of a job, which then exits with 2."""


class JobError(RuntimeError):
    """Base of errors after a job has started; it then exits with 1."""


@contextmanager
def working() -> Iterator[None]:
    """Turn StorageError of its block into JobError: work has begun, so the job exits with 1."""
    try:
        yield
    except StorageError as error:
        raise JobError(str(error)) from error


def run_job(
    job: Callable[[C], int | None],
    cls: type[C],
    argv: Sequence[str] | None,
    prog: str,
    description: str,
    bad_input: tuple[type[Exception], ...] = (),
) -> int:
    """Parse the settings of a job and run it; returns its exit code.

    Args:
        job: takes the settings; returns an exit code, or None for 0.
        cls: the dataclass of its settings.
        argv: the flags; None: those of this process.
        prog: the name of the job, which begins its messages.
        description: text about the job for `--help`.
        bad_input: more errors that mean bad input, such as those of `vit` and `masking`.

    Raises:
        SystemExit: 0 after `--help`, 2 on bad settings, which were then printed.
    """
    flags = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: job(parse(cls, flags, prog, description)), prog, bad_input)


def exit_code(
    job: Callable[[], int | None], prog: str, bad_input: tuple[type[Exception], ...] = ()
) -> int:
    """Run `job` and return its exit code; print the error that ended it, as `run_job` does."""
    errors: tuple[type[Exception], ...] = (ConfigError, StorageError, InputError, *bad_input)
    try:
        return job() or 0
    except errors as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 2
    except JobError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 1
    except KeyboardInterrupt:  # before there was anything to stop, or for the second time
        sys.stderr.write(f"{prog}: interrupted\n")
        return 128 + signal.SIGINT
