"""The arrows of the architecture, read from the imports; and that every setting says what it is."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "jobs": [
        ["jobs"],
        ["jobs/converting"],
        ["jobs/page", "jobs/sweep"],
        ["jobs/objects", "jobs/segmenter"],
        ["jobs/masks", "jobs/classifier"],
        ["jobs/training", "jobs/weights"],
        ["jobs/cluster"],
        ["jobs/run"],
        ["jobs/storage"],
    ],
    "masking": [
        ["masking"],
        ["masking/outputs/annotations"],
        ["masking/outputs"],
        ["masking/tracking"],
        ["masking/manifest/formats", "masking/sam2"],
        ["masking/imports"],
        ["masking/training", "masking/manifest"],
        ["masking/segmenter", "masking/video"],
        ["masking/images"],
    ],
    "vit": [
        ["vit"],
        ["vit/augment", "vit/data"],
        ["vit/config.py", "vit/packing.py", "vit/rng.py"],
    ],
    "docs": [["docs"]],
}
"""The rooms of each package, from the top floor to the ground: a file imports from its own room and
from floors below it. A new folder of code needs a line here."""
MAY_IMPORT = {
    "jobs": {"jobs", "vit", "masking"},
    "vit": {"vit"},
    "masking": {"masking"},
    "docs": {"docs", "jobs", "vit", "masking"},
}
ONLY_IN = {"ray": "jobs/", "tyro": "jobs/run/config.py"}
MODULES = sorted(p for package in FLOORS for p in (ROOT / package).rglob("*.py"))
FLOOR = {
    room: (package, number)
    for package, floors in FLOORS.items()
    for number, rooms in enumerate(floors)
    for room in rooms
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(relative: str) -> str:
    """The folder that a file lies in, or the file itself where the table names it."""
    return relative if relative in FLOOR else relative.rpartition("/")[0]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, by its full name; of `from a import b`, also `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def file_of(module: str) -> str | None:
    """The file of one of our modules; a package's is its `__init__.py`."""
    path = ROOT / module.replace(".", "/")
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return name_of(file)
    return None


def violations(relative: str, names: set[str]) -> list[str]:
    """What of `names` the file must not import, or that it lies in no room."""
    if room_of(relative) not in FLOOR:
        return [f"{relative} lies in no room"]
    package, floor = FLOOR[room_of(relative)]
    found = [
        f"{relative} imports {name}"
        for name in names
        for top in [name.partition(".")[0]]
        if top in FLOORS.keys() - MAY_IMPORT[package]
        or (top in ONLY_IN and not relative.startswith(ONLY_IN[top]))
    ]
    for name in names:
        file = file_of(name)
        if file is None or file.endswith("__init__.py"):
            continue
        room = room_of(file)
        above = FLOOR.get(room, (package, -1))
        if room != room_of(relative) and above[0] == package and above[1] <= floor:
            found.append(f"{relative} imports {name}, which is not on a floor below")
    return sorted(found)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arrows(path):
    assert violations(name_of(path), imported(path)) == []


def test_arrows_are_noticed():
    assert violations("vit/model.py", {"torch", "jobs"}) == ["vit/model.py imports jobs"]
    assert violations("vit/model.py", {"ray"}) == ["vit/model.py imports ray"]
    assert violations("jobs/train.py", {"tyro"}) == ["jobs/train.py imports tyro"]
    assert violations("jobs/train.py", {"ray", "vit"}) == []
    assert violations("jobs/common/x.py", set()) == ["jobs/common/x.py lies in no room"]
    upward = "jobs/storage/cache.py imports jobs.train, which is not on a floor below"
    assert violations("jobs/storage/cache.py", {"jobs.train"}) == [upward]
    assert violations("jobs/train.py", {"jobs.mask"}) == []


def test_no_drawers():
    names = {part for p in MODULES for part in p.with_suffix("").parts}
    assert not names & {"common", "utils", "helpers", "misc"}


def settings(path: Path):
    """Yield (class, field, has docstring) of every dataclass whose name ends in Config."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.ClassDef) and node.name.endswith("Config")):
            continue
        for item, following in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(item, ast.AnnAssign):
                documented = isinstance(following, ast.Expr) and isinstance(
                    following.value, ast.Constant
                )
                group = isinstance(item.annotation, ast.Name) and item.annotation.id.endswith(
                    "Config"
                )
                yield node.name, item.target.id, documented or group


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_setting_has_a_docstring(path):
    missing = [f"{cls}.{name}" for cls, name, documented in settings(path) if not documented]
    assert missing == []


def test_no_work_at_import():
    """Entry points only define: a test or a tuner can import them."""
    allowed = (
        ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
        ast.Expr, ast.If, ast.AsyncFunctionDef,
    )  # fmt: skip
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            assert isinstance(node, allowed), f"{path}:{node.lineno}"
            if isinstance(node, ast.Expr):
                assert isinstance(node.value, ast.Constant), f"{path}:{node.lineno}"
    assert sys.version_info >= (3, 11)
