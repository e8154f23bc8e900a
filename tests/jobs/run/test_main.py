from dataclasses import dataclass

import pytest

from jobs.cluster.connect import ClusterError
from jobs.cluster.workers import LaunchError
from jobs.run.config import ConfigError
from jobs.run.main import run_job, working
from jobs.storage.location import StorageError


@dataclass(frozen=True, kw_only=True)
class NumberConfig:
    number: int = 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("odd"), 2),
        (StorageError("odd"), 2),
        (ClusterError("odd"), 2),
        (KeyError("odd"), 2),  # which the job itself declares
        (LaunchError("odd"), 1),
    ],
)
def test_an_error_ends_a_job_with_its_exit_code(error, code, capsys):
    def job(config: NumberConfig) -> int:
        raise error

    assert run_job(job, NumberConfig, [], "jobs.some", "", (KeyError,)) == code
    assert capsys.readouterr().err == f"jobs.some: {error}\n"


def test_a_job_decides_what_else_its_exit_code_is():
    assert run_job(lambda config: config.number, NumberConfig, ["--number", "143"], "", "") == 143
    assert run_job(lambda config: None, NumberConfig, [], "", "") == 0


def test_an_error_that_nobody_expects_keeps_its_traceback():
    def job(config: NumberConfig) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_job(job, NumberConfig, [], "", "")


def test_storage_that_fails_late_is_no_bad_input(capsys):
    def job(config: NumberConfig) -> int:
        with working():
            raise StorageError("cannot write out.png: No space left on device")

    assert run_job(job, NumberConfig, [], "jobs.some", "") == 1
    assert capsys.readouterr().err == "jobs.some: cannot write out.png: No space left on device\n"


def test_ctrl_c_before_there_is_anything_to_stop(capsys):
    def job(config: NumberConfig) -> int:
        raise KeyboardInterrupt

    assert run_job(job, NumberConfig, [], "jobs.some", "") == 130
    assert capsys.readouterr().err == "jobs.some: interrupted\n"
