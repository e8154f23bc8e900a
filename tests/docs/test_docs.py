"""README and docs against the code: tables, commands, flags, files, links, snippets that run."""

import ast
import os
import pkgutil
import re
import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from docs import tables
from docs.demo import DemoConfig
from docs.strip import StripConfig
from jobs.run.config import RECIPES
from masking.video.writer import Film
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "masking" / "weights" / "README.md"]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
OF_OTHERS = {
    "--address",
    "--working-dir",
    "--generate",
    "--runtime-env-json",
    "--requirement",
    "--ipc",
}
"""Flags of ray, pip, pytest, torchrun and docker that the pages name."""
FLAGS = {
    job: {row[0].strip("`") for row in tables.settings(cls)} | {"--help"}
    for job, cls in (tables.FLAGS | {"docs.demo": DemoConfig, "docs.strip": StripConfig}).items()
}
FLAGS["jobs.train"].add("--evaluate")
FLAGS["jobs.finetune"].add("--evaluate")
GROUPS = {f"{flag.partition('.')[0]}.*" for flag in set().union(*FLAGS.values())}


@pytest.fixture(params=PAGES, ids=NAMES)
def page(request):
    return request.param.read_text()


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """Yield (module, words after it) of every `python -m` command of a page."""
    shells = "\n".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`((?:pip|python|patchray|[A-Z_]+=)[^`\n]*)`", text)
    for line in [*shells, *inline]:
        line = line.partition(" #")[0]
        if found := re.search(
            r"(?:python|pytest)? -m ((?:jobs|benchmarks|docs|tests)\.[\w.]+)(.*)", line
        ):
            yield found[1], shlex.split(found[2].partition(" && ")[0])


def known(flag, flags):
    negated = re.sub(r"^--((?:\w+\.)*)no-", r"--\1", flag)
    return {flag, negated} & flags or (flag.endswith(".*") and flag in GROUPS)


def test_tables_are_those_of_the_code(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_table_is_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    (tmp_path / "a.md").write_text("<!-- table: states -->\n| lost |\n<!-- end -->\n")
    assert tables.main(["--check"]) == 1
    assert "docs/a.md: tables differ from the code" in capsys.readouterr().out
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0
    assert "| `lost` | the mask is empty" in (tmp_path / "a.md").read_text()


def test_every_table_is_on_one_page():
    found = re.findall(r"<!-- table: (.+?) -->", "".join(page.read_text() for page in PAGES))
    assert sorted(found) == sorted(tables.TABLES)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8192


def test_commands_exist_with_their_flags(page):
    for module, words in commands(page):
        path = ROOT / (module.replace(".", "/") + ".py")
        assert path.is_file(), module
        flags = {word.partition("=")[0] for word in words if re.match(r"--\w", word)}
        job = f"{module} --evaluate" if "--evaluate" in flags else module
        if job in FLAGS:
            unknown = [f for f in flags - {"--evaluate"} if not known(f, FLAGS[job])]
        else:
            source = path.read_text()
            passed_on = FLAGS["jobs.train"] if "parse_known_args" in source else set()
            unknown = [f for f in flags if f'"{f}"' not in source and not known(f, passed_on)]
        assert not unknown, (job, unknown)


def test_flags_in_the_text_exist(page):
    everything = set().union(*FLAGS.values()) | OF_OTHERS
    sources = "".join(p.read_text() for p in (ROOT / "benchmarks").rglob("*.py"))
    named = re.findall(r"`(--[a-z][\w.*-]*)", re.sub(r"```.*?```", "", page, flags=re.DOTALL))
    unknown = {
        f
        for f in named
        if not known(f, everything) and f'"{f}"' not in sources and f != "--track.*"
    }
    assert not unknown


def test_recipes_exist(page):
    ours = {path.name for path in [*RECIPES.glob("*.yaml"), *(ROOT / "masking").rglob("*.yaml")]}
    ours |= {path.name for path in (ROOT / "benchmarks").rglob("*.yaml")}
    written = {"cluster.yaml", "config.yaml", "best.yaml", "CONFIG.yaml", "data.yaml"}
    assert not set(re.findall(r"\b([\w-]+\.yaml)\b", page)) - ours - written


def test_files_and_modules_exist(page):
    for path in re.findall(r"`((?:jobs|vit|masking|tests|benchmarks|docs)/[\w./-]*)`", page):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`((?:jobs|vit|masking|benchmarks|docs)(?:\.\w+)+)", page):
        pkgutil.resolve_name(name)


def _anchors(path):
    heads = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target), link


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A short clip, a photograph and a table of clicks, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("snippets")
    picture = np.full((120, 160, 3), 40, np.uint8)
    with Film(folder / "clip.mp4", "overlay", (120, 160)) as film:
        for number in range(6):
            frame = picture.copy()
            cv2.circle(frame, (60 + 4 * number, 60), 25, (200, 180, 40), -1)
            film.write(frame, number / 10)
    Image.fromarray(frame).resize((640, 480)).save(folder / "photo.jpg")
    (folder / "clicks.csv").write_text("uri,object_id,frame,x,y\nclip.mp4,1,0,60,60\n")
    return folder


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_snippets_run(path, folder):
    """The blocks of a page run one after the other, in one process."""
    code = "\n".join(blocks(path.read_text(), "python"))
    if not code:
        pytest.skip("no Python on this page")
    ast.parse(code)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
