"""Jobs under `ray job submit`, whose working folder is a temporary copy on one node."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from jobs.run.config import ConfigError, OutConfig
from jobs.storage.location import Location

C = TypeVar("C", bound=OutConfig)


def submitted() -> bool:
    """Return whether `ray job submit` started this process."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def submission_hint() -> str:
    """Return the end of a message about a missing file: a hint if the job was submitted, or ""."""
    if not submitted():
        return ""
    return (
        "; `ray job submit` sends the files that neither git nor .rayignore ignores: put others"
        " where all nodes see them, or in s3://"
    )


def refuse_relative(path: str) -> None:
    """Raise ConfigError if an --out would be lost with the folder of a submitted job."""
    if submitted() and "://" not in path and not Path(path).is_absolute():
        raise ConfigError(
            f"--out {path} is relative: under `ray job submit` it would be in a temporary folder "
            "of one node; use s3://BUCKET/RUN, or the full path of a folder that all nodes share"
        )


def absolute(config: C, *names: str) -> C:
    """Return a config with absolute paths, which mean the same in the folder of a worker.

    Args:
        config: the settings of a job.
        names: its fields that hold a path, several paths or None.
    """

    def path(value: str | None) -> str | None:
        return None if value is None else str(Location.parse(value))

    values = {name: getattr(config, name) for name in names}
    changes: dict[str, Any] = {
        name: tuple(map(path, value)) if isinstance(value, tuple) else path(value)
        for name, value in values.items()
    }
    return replace(config, **changes)


def check_present(flags: str, paths: Iterable[str]) -> None:
    """Raise ConfigError with `flags` and all missing paths if a file or folder does not exist."""
    missing = [str(place) for place in map(Location.parse, paths) if not place.exists()]
    if missing:
        raise ConfigError(
            f"{flags}: no such file or folder: {', '.join(missing)}{submission_hint()}"
        )
