"""What `ray job submit` changes for a job: its folder is a temporary copy on one node."""

import os
from pathlib import Path

from jobs.run.config import ConfigError


def submitted() -> bool:
    """Whether `ray job submit` started this process: its folder is then a temporary copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def why_not_here() -> str:
    """Return what a message about a missing file adds for a person who submitted the job."""
    if not submitted():
        return ""
    return (
        "; with `ray job submit` go the files that neither git nor .rayignore ignores: put others"
        " where all nodes see them, or in s3://"
    )


def refuse_relative(path: str) -> None:
    """Raise ConfigError for an --out that would be lost with a submitted job's folder."""
    if submitted() and "://" not in path and not Path(path).is_absolute():
        raise ConfigError(
            f"--out {path} is relative: under `ray job submit` it would lie in a temporary folder "
            "of one node; use s3://BUCKET/RUN, or the full path of a folder that all nodes share"
        )
