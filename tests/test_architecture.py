"""The arrows of the architecture, read from the imports; and that every setting says what it is."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"jobs", "vit", "masking"}
MODULES = sorted(p for package in OURS for p in (ROOT / package).glob("*.py"))
MAY_IMPORT = {"jobs": {"jobs", "vit", "masking"}, "vit": {"vit"}, "masking": {"masking"}}
ONLY_IN = {"ray": "jobs/", "tyro": "jobs/config.py"}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").split(".")[0])
    return names


def violations(relative: str, names: set[str]) -> list[str]:
    package = relative.split("/")[0]
    found = [f"{relative} imports {n}" for n in (names & OURS) - MAY_IMPORT[package]]
    for name, place in ONLY_IN.items():
        if name in names and not relative.startswith(place):
            found.append(f"{relative} imports {name}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_arrows(path):
    assert violations(path.relative_to(ROOT).as_posix(), imported(path)) == []


def test_arrows_are_noticed():
    assert violations("vit/model.py", {"torch", "jobs"}) == ["vit/model.py imports jobs"]
    assert violations("vit/model.py", {"ray"}) == ["vit/model.py imports ray"]
    assert violations("jobs/train.py", {"tyro"}) == ["jobs/train.py imports tyro"]
    assert violations("jobs/train.py", {"ray", "vit"}) == []


def test_no_drawers():
    names = {p.stem for p in MODULES}
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


@pytest.mark.parametrize("path", MODULES, ids=lambda p: f"{p.parent.name}/{p.name}")
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
