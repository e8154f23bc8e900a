"""Runs of version 0.1.0 resume: tests/data/old_runs/README.md says what they are.

Nothing depends on the processor here: steps, states, counts and keys are compared with the old
ones, and masks by their overlap.
"""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from jobs import finetune, mask, predict, tune
from jobs import train as train_job
from jobs.classifier.parts import File, plan
from jobs.classifier.predictor import PredictConfig, Predictor, fingerprint, open_classifier
from jobs.classifier.task import TrainConfig
from jobs.masks import batch as mask_batch
from jobs.masks import plan as mask_plan
from jobs.masks.config import MaskConfig
from jobs.masks.folder import read_markers
from jobs.masks.ledger import review_csv, review_of
from jobs.masks.video import Masker
from jobs.page.store import Store
from jobs.run import folder, machine
from jobs.run.config import parse
from jobs.run.signals import Stop
from jobs.segmenter.config import FinetuneConfig
from jobs.segmenter.data import load as load_pairs
from jobs.segmenter.task import SegmentTask
from jobs.storage.location import Location
from jobs.sweep.config import TuneConfig
from jobs.sweep.processes import train_trial
from jobs.sweep.state import Sweep
from jobs.training.loop import run
from jobs.training.ranks import Ranks
from jobs.weights import segmenter as segmenters
from jobs.weights.classifier import load_weights
from masking.outputs.rows import frames_of
from masking.tracking.snapshot import MaskingState
from tests.tasks import RecordingHooks, train_small

CPU = torch.device("cpu")
OLD = Path(__file__).parent / "data/old_runs"
TIME = 1_700_000_000_000_000_000
"""When the files of the old runs were changed last, in nanoseconds: keys depend on it."""


@pytest.fixture
def old(tmp_path):
    """A copy of the old runs, as if they had been made here."""
    root = tmp_path / "old"
    shutil.copytree(OLD, root, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for path in root.rglob("*"):
        if path.suffix in (".yaml", ".json"):
            path.write_text(path.read_text().replace("@ROOT@", str(root)))
        if path.is_file():
            os.utime(path, ns=(TIME, TIME))
    return root


def again(kind, out, began="checkpoints"):
    """The config of an old run as the same command has it, which must be allowed to resume."""
    config = parse(kind, ["--config", f"{out}/config.yaml"], "test", "")
    assert config.out == str(out)
    folder.check_same(Location.parse(out), config, began)
    return config


def history(out):
    """Rows of the epochs that the last checkpoint knows."""
    folder = out / "checkpoints"
    name = json.loads((folder / "last.json").read_text())["checkpoint"]
    return json.loads((folder / name / "state.json").read_text())["history"]


# Training


def test_a_training_goes_on_from_its_step(old):
    out = old / "train_interrupted"
    before, table = history(out), (out / "metrics.csv").read_text()
    assert len(before) == 1
    result, losses, hooks = train_small(again(TrainConfig, out))
    assert hooks.said[0] == "resuming from step 30: epoch 2, 10 of 20 batches done"
    assert sorted(losses) == list(range(30, 60))
    assert (result.ended, result.state.step, result.resumed) == ("epochs", 60, 1)
    assert result.state.history[:1] == before
    assert [row["step"] for row in result.state.history] == [20, 40, 60]
    assert result.state.history[2].keys() == before[0].keys()
    folder.write_metrics(Location.parse(out), result.state.history)
    assert (out / "metrics.csv").read_text().startswith(table)


def test_a_training_that_is_over_is_not_trained_again(old, capsys):
    out = old / "train_finished"
    again(TrainConfig, out)
    assert train_job.main(["--config", f"{out}/config.yaml"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("done: test accuracy 91.92%, validation 90.28% (epoch 21 of 25)")
    assert "Ray" not in said


def test_more_patience_lets_a_training_that_is_over_load_its_checkpoint(old):
    result, losses, hooks = train_small(again(TrainConfig, old / "train_finished"))
    assert hooks.said[0].startswith("resuming from step 500")
    assert not losses
    assert result.test["test_accuracy"] > 0.85


# Sweeps


class TrialHooks(RecordingHooks):
    """Hooks of a trial, which the sweep hears, and which it stops."""

    def __init__(self, sweep, number):
        super().__init__()
        self.sweep, self.number, self.goes_on = sweep, number, True

    def report(self, row):
        self.goes_on = self.sweep.report(self.number, row)

    def stop_requested(self):
        return not self.goes_on


def trials(out):
    """What is on record of the trials."""
    return [json.loads(path.read_text()) for path in sorted(out.glob("trials/*/trial.json"))]


def test_a_sweep_keeps_its_trials_and_goes_on_with_the_one_that_was_left(old, capsys):
    out = old / "sweep"
    before, config = trials(out), again(TuneConfig, out, "trials")
    assert [bool(one["fate"]) for one in before] == [True, True, False]
    assert len(before[2]["rows"]) == 1
    place = Location.parse(out)
    costs, dimensions = tune.check(config, place)
    tune.check_data(costs, place)
    sweep = Sweep(costs, place, costs.searcher(dimensions).next)
    heard = {}
    while (found := sweep.next_trial()) is not None:
        hooks = heard[found.number] = TrialHooks(sweep, found.number)
        result = train_trial(sweep.settings(found), CPU, hooks, test=False)
        if hooks.goes_on:
            sweep.end(found.number, "finished", facts=result.as_facts())
        else:
            sweep.release(found.number)
    assert list(heard) == [2, 3]
    assert heard[2].said[0] == "resuming from step 30: epoch 2, 10 of 20 batches done"
    assert not any("resuming" in line for line in heard[3].said)
    after = trials(out)
    assert after[:2] == before[:2]
    assert after[2]["sample"] == before[2]["sample"]
    assert after[2]["rows"][:1] == before[2]["rows"]
    assert after[3].keys() == before[0].keys()
    assert all(one["fate"] in ("finished", "stopped") for one in after)

    assert tune.main(["--config", f"{out}/config.yaml"]) == 0  # nothing is left to train
    assert "done: 4 trials" in capsys.readouterr().out
    assert trials(out) == after
    assert (out / "best.yaml").exists()


def test_the_best_of_a_sweep_is_trained_by_its_yaml(old):
    flags = ["--config", str(old / "best.yaml"), "--out", str(old / "best"), "--epochs", "2"]
    config = parse(TrainConfig, flags, "test", "")
    assert (config.model.depth, config.optim.schedule) == (1, "wsd")
    assert config.optim.lr == pytest.approx(1.328e-3, rel=1e-3)
    assert train_small(config)[0].ended == "epochs"


# Predictions


def test_predictions_are_made_where_parts_are_missing(old, monkeypatch, capsys):
    """Names of parts depend on the paths as they were listed, so these are relative."""
    monkeypatch.chdir(old)
    out = Location.parse("predict")
    config = again(PredictConfig, old / "predict", "predictions")
    weights = load_weights(config.weights)
    _, about = open_classifier(weights, CPU)
    wanted = fingerprint(weights, about, config.format)
    names = ["photos/digits.parquet", *(f"photos/{number}.png" for number in range(8))]
    parts = plan([File(name, (1000, TIME)) for name in names], wanted)
    before = {path.stem: path.read_bytes() for path in Path("predict/predictions").iterdir()}
    assert [part.name in before for part in parts] == [True, False, True, False]

    predictor = Predictor(config, wanted, 1, CPU)
    made = [part for part in parts if part.name not in before]
    for part in made:
        predictor({"part": json.dumps(vars(part))})
    there = {f"{name}.parquet" for name in before}
    predict.conclude(config, out, parts, there, sum(map(len, made)), 1.0)
    assert "done: 24 images, 0 of them without a class" in capsys.readouterr().out
    summary = (out / "summary.json").read_json()
    assert (summary["n"], summary["made"], len(summary["parts"])) == (24, 10, 4)
    tables = [pq.read_table(f"predict/predictions/{name}") for name in summary["parts"]]
    assert all(table.schema == tables[0].schema for table in tables)
    found = [name for table in tables for name in table["class"].to_pylist()]
    expected = json.loads((old / "predict_expected.json").read_text())
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 22
    for name, content in before.items():
        assert Path(f"predict/predictions/{name}.parquet").read_bytes() == content


# Fitting a segmenter


def test_a_segmenter_goes_on_from_its_step_without_the_weights_it_began_with(old):
    out = old / "finetune"
    (old / "sam.safetensors").unlink()
    config, before, hooks = again(FinetuneConfig, out), history(out), RecordingHooks()
    assert len(before) == 1
    task = SegmentTask(config, load_pairs(config), CPU, Ranks.here())
    place = Location.parse(out)
    result = run(task, config, place / "checkpoints", hooks)
    assert hooks.said[0] == "resuming from step 7: epoch 2, 2 of 5 batches done"
    assert (result.ended, result.state.step, result.resumed) == ("epochs", 10, 1)
    assert result.state.history[:1] == before
    assert result.state.history[1].keys() == before[0].keys()
    result = replace(result, hardware=machine.hardware())
    assert finetune.conclude(config, place, result, Stop()) == 0
    assert segmenters.load_segmenter(str(out), CPU).network.side == 64


# Masks


def test_a_run_whose_tables_meant_something_else_is_masked_again(old, capsys):
    """Score and quality of masks were other figures then; the settings that it has are accepted."""
    out, flags = old / "mask", ["--config", str(old / "mask/config.yaml")]
    assert mask.main([*flags, "--check"]) == 0
    said = capsys.readouterr()
    assert "2 videos, 4 objects, 0 videos done, 0 with faults" in said.out
    assert "track.points has no effect any more; leave it out" in said.err

    config, place = again(MaskConfig, out, "commits"), Location.parse(out)
    assert (config.track.similarity, config.track.exclusive) == (0.4, False)
    wanted = mask_plan.settings_of(
        segmenters.locate(config.weights), config.precision, config.track
    )
    work = mask_plan.plan_batch(config.manifest, config.root, wanted).work
    marker = read_markers(place)["a"]
    assert work[0].key != marker["key"]
    worker = Masker(
        str(out), "token", config.weights, wanted, config.precision, config.track, 1, CPU, 600.0,
        node=lambda: "here", alive=lambda name: True,
    )  # fmt: skip
    for video, frames in zip(work, (7, 5), strict=True):
        record = json.loads(worker({"work": video.to_json()})["record"])
        assert (record["status"], record["frames"]) == ("ok", frames)
        assert record.keys() == marker.keys() | {"masks_bytes", "expected"}
        mask_batch.publish(record, place, place / ".parts/token")

    assert mask.main(flags) == 0  # no worker is started: nothing is missing
    assert "2 videos, 4 objects, 2 videos done, 0 with faults" in capsys.readouterr().out
    ledger = pq.read_table(out / "videos.parquet").to_pylist()
    assert [(row["video_id"], row["frames"]) for row in ledger] == [("a", 7), ("b", 5)]


def test_old_masks_are_read_and_what_was_accepted_is_not_asked_again(old):
    table = pq.read_table(old / "mask/masks/a.parquet")
    frames = list(frames_of(table))
    assert [index for index, _ in frames] == list(range(7))
    assert [row["state"] for row in frames[0][1]] == ["prompted", "uncertain"]
    found = json.loads((old / "mask/commits/a.json").read_text())
    accepted = mask_plan.plan_batch([str(old / "clips/clicks.csv")], None, "").accepted
    lines = list(csv.DictReader(review_csv(review_of([found], accepted)).splitlines()))
    spans = {(line["object_id"], line["first_frame"]) for line in lines}
    assert spans == {("2", "6"), ("2", "2"), ("2", "0")}


def overlap(one, other):
    """IoU; of two empty masks 1."""
    union = (one | other).sum()
    return (one & other).sum() / union if union else 1.0


def test_a_saved_state_of_another_version_is_refused(old):
    with pytest.raises(ValueError, match="is not the saved state of a masked video"):
        MaskingState.load(old / "state/mini/state")


# Clicks


def test_a_journal_that_is_ahead_is_made_up_for_and_undone(old):
    """The old process was killed after its last click was in the journal, before the manifest."""
    path = old / "prompt/clicks.csv"
    assert path.read_text().count("a.mp4") == 3

    def places(store):
        return [int(row["x"]) for row in store.rows("a")]

    store = Store(path)
    assert path.read_text().count("a.mp4") == 4
    assert (places(store), store.undo_counts("a")) == ([10, 20, 30, 50], (4, 0))
    for _ in range(2):
        store.undo("a", store.revision("a"))
    assert (places(store), store.undo_counts("a")) == ([10, 20], (2, 2))
    store.close()
    store = Store(path)
    store.undo("a", store.revision("a"), redo=True)
    assert (places(store), store.undo_counts("a")) == ([10, 20, 30], (3, 1))
    store.close()
