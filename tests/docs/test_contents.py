"""What the pages say of files, columns and codes, against what the code writes."""

import ast
import csv
import re
from pathlib import Path
from typing import get_args

from jobs.masks.exports import KINDS, Kind
from jobs.masks.video import CODES
from jobs.run import contents
from masking.tracking.state import STATES, State
from tests.conftest import ROOT

OLD = ROOT / "tests" / "data" / "old_runs"


def unknown(names, table):
    """What of `names` the table does not have; an upper-case word in a key stands for any text."""
    patterns = [
        re.sub(r"[A-Z_]{2,}|\bN\b|(?<=_)N", ".+", re.escape(key)).replace(r"\*", ".*")
        for key in table
    ]
    return [name for name in names if not any(re.fullmatch(p, name) for p in patterns)]


def test_columns_of_metrics():
    rows = [*OLD.glob("*/metrics.csv"), *(ROOT / "masking/weights/metrics").iterdir()]
    for path in rows:
        header = next(csv.reader(path.open()))
        assert not unknown(header, contents.METRICS), path


def test_files_of_runs():
    found = {
        "train_finished": contents.TRAINING_FILES,
        "finetune": contents.TRAINING_FILES,
        "sweep": contents.SWEEP_FILES,
        "mask": contents.MASKING_FILES,
    }
    for folder, table in found.items():
        tops = {key.partition("/")[0].removesuffix("/") for key in table}
        assert not unknown((path.name for path in (OLD / folder).iterdir()), tops), folder


def test_states_and_formats_are_all_described():
    assert set(STATES) == set(get_args(State))
    assert set(KINDS) == set(get_args(Kind))


def codes_of(path: Path):
    """Yield the codes that a module gives to errors of videos."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "VideoError":
            yield ast.literal_eval(node.args[0])
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if getattr(key, "value", None) == "code" and isinstance(value, ast.Constant):
                    yield value.value


def test_codes_of_videos_are_all_described():
    files = [*(ROOT / "masking/video").glob("*.py"), *(ROOT / "jobs/masks").glob("*.py")]
    found = {code for path in files for code in codes_of(path)} - {None}
    assert found > {"storage", "not_a_video", "unexpected"}
    assert not found - CODES.keys()
