"""`jobs.tune` without a cluster: bad input."""

import pytest

from jobs.tune import main
from tests.sweeps import SMALL


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--space", "model.dept", "1..3"), "perhaps you meant model.depth"),
        (("--space", "model.depth", "3..1"), "is empty"),
        (("--max-budget", "10"), "one epoch takes"),
        (("--data", "/nowhere"), "--data: no such file or folder: /nowhere"),
    ],
)
def test_bad_input(flags, words, tmp_path, capsys):
    """Bad input is refused before Ray starts, and nothing is written."""
    assert main([*SMALL, "--out", str(tmp_path / "sweep"), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()
