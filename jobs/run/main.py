"""The main function of every job: settings from flags, the job, its exit code.

0 done; 1 failed; 2 bad input, nothing was started. After SIGINT or SIGTERM a job returns 130 or 143
by itself, from `jobs.run.signals.Stop`.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from jobs.run.config import ConfigError, parse
from jobs.storage.location import StorageError

C = TypeVar("C")


class InputError(Exception):
    """Base of errors in the input of a job, which then exits with 2."""


class JobError(RuntimeError):
    """Base of errors after a job has started; it then exits with 1."""


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
