"""Folders of checkpoints: damaged lists, pointers and tensors, and strays beside them."""

import json
import tempfile
from functools import cache
from pathlib import Path
from random import Random

import torch

from jobs.storage.location import Location
from jobs.training.checkpoints import CheckpointError, Checkpoints
from jobs.training.snapshot import Snapshot
from jobs.training.stages import finished
from jobs.training.state import State

REFUSALS = (CheckpointError,)

ODD = (
    *(b"", b"{}", b"[]", b"null", b"0", b'"x"', b"\xff\xfe", b"[" * 20_000, b'{"checkpoint": 3}'),
    *(b'{"checkpoint": "../../etc"}', b'{"checkpoint": "step-2"}', b'{"checkpoint": "step-9-z"}'),
    *(b'{"count": "x"}', b'{"count": null}', b'{"count": 1e999}', b'{"format": 1, "files": []}'),
    *(b'{"format": 1, "step": 1, "files": {}}', b'{"format": 2}', b'{"format": NaN}'),
    b'{"format": 1, "step": 1, "files": {"state.json": {"bytes": -1, "sha256": "x"}}}',
)
STRAYS = ("step-foo", "step-", "step-1", "step--3-a", "step-1e5-a", "step-07-a", "x", ".step-1-a")


def attempt(random: Random, folder: Path) -> object:
    """Damage a folder of three checkpoints, then resume from it and save once more."""
    place = Location.parse(folder / "checkpoints")
    for name, content in _whole().items():
        (folder / "checkpoints" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / name).write_bytes(content)
    (folder / "summary.json").write_bytes(random.choice(ODD))
    for _ in range(random.randint(1, 4)):
        _damage(random, folder / "checkpoints")
    finished(Location.parse(folder), patience=0)
    again = Checkpoints(place, "b")
    name = again.latest()
    again.passed_over(name)
    again.resumes()
    again.count_resume()
    read = None
    try:
        if name is not None:
            read = again.read(name)
            State(**read.state)
    finally:
        again.write(_snapshot(6), ("best", "last"))
        if again.latest() != "step-6-b" or again.best() != "step-6-b":
            raise AssertionError("what was saved last is not found")
    return read


@cache
def _whole() -> dict[str, bytes]:
    """Return the files of a run with three checkpoints, which are written and synced once."""
    with tempfile.TemporaryDirectory() as folder:
        store = Checkpoints(Location.parse(folder), "a")
        for step in (1, 2, 3):
            store.write(_snapshot(step), ("best", "last") if step < 3 else ("last",))
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _snapshot(step: int) -> Snapshot:
    state = {"epoch": step, "step": step, "best": [0.5], "best_epoch": min(step, 2)}
    return Snapshot(
        step, {"w": torch.full((3,), float(step))}, {"exp_avg/w": torch.zeros(3)}, state
    )


def _damage(random: Random, folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = random.choice(files)
    match random.randrange(7):
        case 0:
            path.write_bytes(random.choice(ODD))
        case 1:
            path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size + 1)])
        case 2:
            content = bytearray(path.read_bytes() or b"x")
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
            path.write_bytes(content)
        case 3:
            path.unlink()
        case 4:
            stray = folder / random.choice(STRAYS)
            if not stray.exists():
                stray.mkdir() if random.random() < 0.5 else stray.write_bytes(b"")
        case 5:
            target = folder / random.choice(("last.json", "best.json", "resumes.json"))
            if not target.is_dir():
                target.write_bytes(random.choice(ODD))
        case _:
            _edit(random, path)


def _edit(random: Random, path: Path) -> None:
    """Replace one value of a JSON file by an odd one."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return
    if isinstance(value, dict) and value:
        key = random.choice(list(value))
        value[key] = random.choice((None, [], {}, -1, 1e300, "x", True, 10**30, value[key]))
        path.write_text(json.dumps(value))
