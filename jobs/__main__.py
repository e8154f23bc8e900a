"""The command `patchray`: `patchray train ...` is `python -m jobs.train ...`."""

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


def commands() -> dict[str, str]:
    """Return the name of each job with the first line of its docstring."""
    paths = sorted(Path(__file__).parent.glob("[!_]*.py"))
    docs = {path.stem: ast.get_docstring(ast.parse(path.read_text("utf-8"))) for path in paths}
    return {name: (doc or "").partition("\n")[0] for name, doc in docs.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job that the first word names, with the other words; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    known = commands()
    if not argv or argv[0] in ("--help", "-h", "help"):
        lines = [f"  {name:<10}{line}" for name, line in known.items()]
        print("usage: patchray COMMAND [--help] ...", "", *lines, sep="\n")
        return 0
    if argv[0] not in known:
        near = difflib.get_close_matches(argv[0], known, n=1)
        hint = f"; perhaps you meant {near[0]}" if near else ""
        sys.stderr.write(
            f"patchray: {argv[0]} is not a command{hint}; commands: {', '.join(known)}\n"
        )
        return 2
    return int(importlib.import_module(f"jobs.{argv[0]}").main(argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
