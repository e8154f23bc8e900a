"""Delete what jobs left on this machine's disk and nobody used lately: the cache, Ray's old files.

    python -m jobs.prune --check        # only lists
    python -m jobs.prune --days 30

Run folders (--out) are never touched. Jobs do the same by themselves: Ray's files of jobs that have
ended are deleted after 7 days, and things in the cache after 2 days without use if the disk is
nearly full. A job that needs one of them again makes it again.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.cluster.own import prune_sessions
from jobs.run.config import ConfigError
from jobs.run.main import run_job
from jobs.storage.cache import cache_folder
from jobs.storage.prune import KEPT_DAYS, prune_cache


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Settings of `jobs.prune`."""

    days: float = KEPT_DAYS
    """Days without use after which a thing is deleted."""
    check: bool = False
    """Only list what would be deleted."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.days < 1e6:
            raise ConfigError(f"--days is {self.days:g}; 0 or more is needed")


def prune(config: PruneConfig) -> None:
    """The stages of the job, in order."""
    cache, delete = cache_folder(), not config.check
    total = 0
    for pruned in (
        prune_cache(cache, config.days, delete),
        prune_sessions(config.days, delete),
    ):
        for path, size in pruned.items():
            total += size
            print(f"{size / 1e6:10,.1f} MB  {path}")
    print(
        f"{'would delete' if config.check else 'deleted'} {total / 1e9:,.2f} GB that nobody used"
        f" for {config.days:g} days (cache: {cache})"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    return run_job(prune, PruneConfig, argv, "jobs.prune", __doc__)


if __name__ == "__main__":
    sys.exit(main())
