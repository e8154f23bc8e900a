"""Training the part of `mini` that follows objects, on a rank without Ray, and bad input."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.finetune import main, summarize
from jobs.run.config import parse
from jobs.run.machine import hardware
from jobs.segmenter.clips import ClipTask, load_films
from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.data import load
from jobs.segmenter.export import card, export
from jobs.segmenter.network import exported_names, starting_network
from jobs.storage.location import Location
from jobs.training.loop import run
from jobs.training.ranks import Ranks
from masking.segmenter.mini import Mini
from masking.segmenter.sam import load as load_segmenter
from masking.training.clips import ClipConfig
from tests.masking.training.test_clips import film
from tests.squares import small, write_squares
from tests.tasks import RecordingHooks
from tests.trained import final


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_squares(root / "a.parquet", images=10)
    for name in ("one", "two", "three"):
        film(root / "clips", name, frames=3)
    torch.manual_seed(3)
    save_file(Mini().state_dict(), root / "start.safetensors", {"architecture": "mini"})
    return root


def config(folder, out, **changes):
    given = {
        "epochs": 1, "batch_size": 2, "init_weights": str(folder / "start.safetensors"),
        "clips": (str(folder / "clips"),), "held_clips": ("two",),
        "clip": ClipConfig(frames=2, size=64),
    }  # fmt: skip
    return small(out, folder / "a.parquet", **(given | changes))


def task(given, ranks):
    return ClipTask(given, load(given), load_films(given), torch.device("cpu"), ranks)


def test_only_the_part_for_clips_is_trained_and_it_is_exported(folder, tmp_path):
    given = config(folder, tmp_path / "run")
    out = Location.parse(given.out)
    result = run(task(given, Ranks.here()), given, out / "checkpoints", RecordingHooks())
    start = load_file(folder / "start.safetensors")
    after = exported_names(final(tmp_path / "run", "weights"))
    assert {name for name in after if name not in start} == {n for n in after if "memory." in n}
    assert all(torch.equal(start[name], after[name]) for name in start)
    row = result.state.history[-1]
    assert 0 <= row["val_iou"] <= 1
    summary = summarize(given, replace(result, hardware=hardware()))
    assert summary["iou"] == pytest.approx(row["ema_iou"])
    export(given, out, summary)
    assert load_segmenter(tmp_path / "run", torch.device("cpu")).remembers
    assert "through videos" in card(given, "mini", after, summary)
    # The next training of the other parts makes its inputs different: it is left out then.
    again = config(folder, tmp_path / "next", clips=(), held_clips=())
    weights = str(tmp_path / "run")
    assert starting_network(small(again.out, again.data[0], init_weights=weights)).memory is None
    frozen = small(again.out, again.data[0], init_weights=weights, encoder_lr=0.0)
    assert starting_network(frozen).memory is not None


def test_ranks_share_the_clips_of_one(folder, tmp_path):
    given = config(folder, tmp_path / "run", batch_size=3)
    whole = task(given, Ranks(0, 1))._compose(1, 0)
    parts = [task(given, Ranks(rank, 2))._compose(1, 0) for rank in range(2)]
    for one, some in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(some))


def test_videos_are_held_back_by_name_or_by_share(folder, tmp_path):
    named = load_films(config(folder, tmp_path / "run"))
    assert [one.name for one in named.val] == ["two"]
    assert [one.name for one in named.train] == ["one", "three"]
    drawn = load_films(config(folder, tmp_path / "run", held_clips=()))
    assert (len(drawn.val), len(drawn.train)) == (1, 2)


def test_the_recipe_takes_its_first_step(folder, tmp_path):
    flags = ["--config", "mini_memory.yaml", "--data", folder / "a.parquet", "--clips"]
    flags += [folder / "clips", "--held-clips", "two", "--out", "unused", "--batch-size", 2]
    flags += ["--clip.size", 64, "--clip.frames", 2]
    given = parse(FinetuneConfig, list(map(str, flags)), "test", "")
    first = task(given, Ranks(0, 1))
    model = first.build()
    optimizer, average = first.optimizer(model), first.average(model)
    first.apply(model, first.decide(model, 2))
    assert torch.isfinite(first.gradients(model, 0, 0, 0)).all()
    assert first.update(model, optimizer, average, 0) > 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["--clips", "missing"], "missing"),
        (["--held-clips", "four"], "four: no such video in --clips; it has one, three, two"),
        (["--held-clips", "one", "two", "three"], "all of them held back"),
        (["--init-weights", "vit_b"], "--clips trains a part of mini"),
        (["--clip.size", "70"], "expected at least 2 frames"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(changes, reason, folder, tmp_path, capsys):
    flags = ["--data", folder / "a.parquet", "--clips", folder / "clips", "--out", tmp_path / "run"]
    flags += ["--init-weights", folder / "start.safetensors", "--compose.size", 64]
    try:
        code = main([*map(str, flags), "--batch-size", "2", *changes])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert reason in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("inside", ["Annotations", "frames"])
def test_clips_without_videos_are_refused(folder, tmp_path, capsys, inside):
    (tmp_path / "empty" / inside).mkdir(parents=True)
    flags = ["--data", folder / "a.parquet", "--clips", tmp_path / "empty", "--out", tmp_path / "r"]
    assert main([*map(str, flags), "--batch-size", "2"]) == 2
    assert "has no videos; expected a folder with JPEGImages" in capsys.readouterr().err
