"""Write the tables of the pages in `docs/` from the code: flags, columns, states, files, recipes.

    python -m docs.tables            # writes them
    python -m docs.tables --check    # names the pages whose tables are outdated, and exits with 1

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jobs.classifier.evaluate import EvaluateConfig
from jobs.classifier.predictor import PredictConfig
from jobs.classifier.task import TrainConfig
from jobs.click import ClickConfig
from jobs.convert import ConvertConfig
from jobs.masks.config import MaskConfig
from jobs.masks.exports import KINDS
from jobs.masks.ledger import LEDGER_COLUMNS, SPAN_COLUMNS
from jobs.masks.video import CODES, RETRIED
from jobs.prompt import PromptConfig
from jobs.prune import PruneConfig
from jobs.run.config import RECIPES
from jobs.run.contents import (
    EXIT_CODES,
    MASKING_FILES,
    METRICS,
    OBJECT_PREDICTIONS,
    PREDICTIONS,
    SWEEP_FILES,
    TRACKS,
    TRAINING_FILES,
    TRIALS,
)
from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.evaluate import ScoreConfig
from jobs.sweep.config import TuneConfig
from masking.manifest.rows import COLUMNS as MANIFEST_COLUMNS
from masking.manifest.rows import ROLES
from masking.outputs.review import REASONS
from masking.outputs.rows import COLUMNS as MASK_COLUMNS
from masking.tracking.state import STATES

DOCS = Path(__file__).parent
Rows = Sequence[tuple[str, ...]]
_SHARED = {"model", "dataset", "augment", "optim"}
"""Groups of settings that only the table of `jobs.train` lists; the others refer to it."""


def docstrings(cls: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, inherited fields included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for item, after in pairwise(body):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(item, ast.AnnAssign) and documented:
                found[ast.unparse(item.target)] = " ".join(ast.literal_eval(after.value).split())
    return found


def kind_of(annotation: Any) -> str:
    """Return the type of a setting in words: its choices, or what it holds."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if get_origin(annotation) is tuple:
        inner = [kind_of(each) for each in arguments if each is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in arguments else " ".join(inner)
    if get_origin(annotation) is dict:
        return "table"
    if type(None) in arguments:
        return " or ".join(kind_of(each) for each in arguments if each is not type(None))
    return {bool: "switch", int: "whole number", float: "number", str: "text"}[annotation]


def default_of(item: Any) -> str:
    """Return the default of a field as it is written on a command line; required ones have none."""
    value = item.default if item.default_factory is MISSING else item.default_factory()
    if value is MISSING:
        return "required"
    if isinstance(value, dict):
        value = [f"{k} {v}" for k, v in value.items()]
    if isinstance(value, tuple | list):
        value = " ".join(map(str, value))
    if value in (None, ""):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def settings(cls: type, prefix: str = "") -> Iterator[tuple[str, ...]]:
    """Yield (flag, kind, default, meaning) of each setting of a job, groups last."""
    hints, texts = get_type_hints(cls), docstrings(cls)
    groups = [item for item in fields(cls) if is_dataclass(hints[item.name])]
    for item in fields(cls):
        if item not in groups and item.init:
            flag = f"`--{prefix}{item.name}`".replace("_", "-")
            yield flag, kind_of(hints[item.name]), default_of(item), texts[item.name]
    for item in groups:
        if item.name in _SHARED and cls is not TrainConfig:
            link = "[flags of jobs.train](train.md#flags-of-jobstrain)"
            yield f"`--{item.name}.*`", "", "", f"as in the {link}"
        else:
            yield from settings(hints[item.name], f"{prefix}{item.name}.")


def recipes() -> Rows:
    """Return (file, command, purpose) of each recipe, from the comment at its head."""
    found = []
    for path in sorted(RECIPES.glob("*.yaml")):
        head = [line.removeprefix("#").strip() for line in path.read_text().splitlines()]
        purpose = " ".join(head[: head.index("")])
        job = re.search(r"python -m (jobs\.\w+)", path.read_text())
        found.append((f"`{path.name}`", f"`{job[1]}`" if job else "", purpose))
    return found


def plain(table: dict[Any, Any], extra: Callable[[Any], str] = lambda name: "") -> Rows:
    """Return the rows of a table of names: (name, meaning), or (name, type, meaning)."""
    return [
        (
            f"`{name}`",
            *((str(value[0]), value[1]) if isinstance(value, tuple) else (value + extra(name),)),
        )
        for name, value in table.items()
    ]


def retried(code: str) -> str:
    """Return what the table of codes adds for a failure that the next start tries again."""
    return "; the next start tries it again" if code in RETRIED else ""


FLAGS = {
    "jobs.train": TrainConfig,
    "jobs.train --evaluate": EvaluateConfig,
    "jobs.tune": TuneConfig,
    "jobs.predict": PredictConfig,
    "jobs.finetune": FinetuneConfig,
    "jobs.finetune --evaluate": ScoreConfig,
    "jobs.click": ClickConfig,
    "jobs.prompt": PromptConfig,
    "jobs.convert": ConvertConfig,
    "jobs.mask": MaskConfig,
    "jobs.prune": PruneConfig,
}
"""The settings of each command."""
TABLES: dict[str, tuple[tuple[str, ...], Callable[[], Iterable[tuple[str, ...]]]]] = {
    **{
        f"flags {job}": (("flag", "value", "default", "meaning"), partial(settings, cls))
        for job, cls in FLAGS.items()
    },
    "manifest columns": (("column", "meaning"), partial(plain, MANIFEST_COLUMNS)),
    "masks columns": (("column", "type", "meaning"), partial(plain, MASK_COLUMNS)),
    "ledger columns": (("column", "type", "meaning"), partial(plain, LEDGER_COLUMNS)),
    "review columns": (("column", "meaning"), partial(plain, SPAN_COLUMNS)),
    "review reasons": (("reason", "meaning"), partial(plain, REASONS)),
    "predictions columns": (("column", "meaning"), partial(plain, PREDICTIONS)),
    "objects columns": (("column", "meaning"), partial(plain, OBJECT_PREDICTIONS)),
    "tracks columns": (("column", "meaning"), partial(plain, TRACKS)),
    "trials columns": (("column", "meaning"), partial(plain, TRIALS)),
    "metrics columns": (("column", "meaning"), partial(plain, METRICS)),
    "states": (("state", "meaning"), partial(plain, STATES)),
    "roles": (("role", "meaning"), partial(plain, ROLES)),
    "exit codes": (("code", "meaning"), partial(plain, EXIT_CODES)),
    "files train": (("file", "content"), partial(plain, TRAINING_FILES)),
    "files sweep": (("file", "content"), partial(plain, SWEEP_FILES)),
    "files masks": (("file", "content"), partial(plain, MASKING_FILES)),
    "recipes": (("recipe", "command", "purpose"), recipes),
    "exports": (("format", "files below `export/`"), partial(plain, KINDS)),
    "error codes": (("code", "meaning"), partial(plain, CODES, retried)),
}
"""Each table by its name: its header, and what returns its rows."""


def render(name: str) -> str:
    """Return a table as Markdown."""
    header, rows = TABLES[name]
    lines = [header, ("---",) * len(header), *rows()]
    escaped = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
    return "".join(f"| {line} |\n" for line in escaped)


def fill(text: str) -> str:
    """Return the text of a page with its tables as the code has them."""
    place = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
    return place.sub(lambda found: found[1] + render(found[2]) + found[3], text)


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the tables of all pages; returns the exit code."""
    check = "--check" in (sys.argv[1:] if argv is None else argv)
    stale = [
        page for page in sorted(DOCS.glob("*.md")) if fill(page.read_text()) != page.read_text()
    ]
    for page in stale:
        if check:
            print(f"docs/{page.name}: tables differ from the code; run python -m docs.tables")
        else:
            page.write_text(fill(page.read_text()))
            print(f"docs/{page.name}: tables written")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
