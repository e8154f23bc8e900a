"""The epoch loop on one, two and three ranks, without Ray."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from jobs.storage.location import Location, StorageError
from jobs.training.ranks import Ranks
from jobs.training.steps import shard
from tests.ranks import on_ranks
from tests.tasks import RecordingTask, small_config, train_small


def last_weights(out):
    name = json.loads((out / "checkpoints/last.json").read_text())["checkpoint"]
    return load_file(out / "checkpoints" / name / "weights.safetensors")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("world", [1, 2, 3])
def test_resumed_equals_uninterrupted_bit_for_bit(world, tmp_path):
    """Stops in mid-epoch and at its end; three ranks, because DDP rebuilds its buckets there."""
    whole = small_config(tmp_path / "whole", epochs=2)
    (reference, losses, _), *_ = on_ranks(world, train_small, whole, folder=tmp_path)
    parts = small_config(tmp_path / "parts", epochs=2)
    seen = {}
    for stop_before in (7, 20, 33):
        (result, some, _), *_ = on_ranks(world, train_small, parts, stop_before, folder=tmp_path)
        assert result.ended == "stopped"
        seen |= {k: v for k, v in some.items() if k < result.state.step}
    (result, some, hooks), *_ = on_ranks(world, train_small, parts, folder=tmp_path)
    assert hooks.said[0].startswith("resuming from step 33")
    assert result.ended == reference.ended == "epochs"
    assert result.resumed == 3
    assert_equal(last_weights(tmp_path / "parts"), last_weights(tmp_path / "whole"))
    assert {k: v for k, v in (seen | some).items() if k} == {k: v for k, v in losses.items() if k}
    for row, expected in zip(result.state.history, reference.state.history, strict=True):
        for name in ("train_accuracy", "val_loss", "val_accuracy", "samples_seen", "lr"):
            assert row[name] == expected[name]
        assert math.isclose(row["train_loss"], expected["train_loss"], rel_tol=1e-12)


def test_other_number_of_ranks_same_losses(tmp_path):
    """The first 100 steps of the same global batches agree to 1e-4 in float32."""
    runs = {}
    for world in (1, 3):
        config = small_config(tmp_path / f"world-{world}", epochs=5)
        (_, losses, _), *_ = on_ranks(world, train_small, config, folder=tmp_path)
        runs[world] = losses
    assert runs[1].keys() == runs[3].keys()
    for step in runs[1]:
        assert runs[1][step][2] == runs[3][step][2] == 64
        assert abs(runs[1][step][0] - runs[3][step][0]) / 64 < 1e-4


def test_goes_on_with_another_number_of_ranks(tmp_path):
    config = small_config(tmp_path / "run")
    (result, before, _), *_ = on_ranks(3, train_small, config, 30, folder=tmp_path)
    (after, losses, _), *_ = on_ranks(2, train_small, config, folder=tmp_path)
    assert result.state.step == 30
    assert min(step for step in losses if step) == 30
    (_, reference, _), *_ = on_ranks(
        1, train_small, small_config(tmp_path / "one"), folder=tmp_path
    )
    for step, sums in ({k: v for k, v in before.items() if k < 30} | losses).items():
        if step:
            assert abs(sums[0] - reference[step][0]) / 64 < 1e-3
    assert after.ended == "epochs"


class BadOnOneRank(RecordingTask):
    """Only the last rank computes a loss that is not finite, at step 25."""

    bad = False

    def build(self):
        model = super().build()
        model.head.register_forward_hook(lambda *args: args[2] * math.nan if self.bad else None)
        return model

    def gradients(self, model, epoch, index, step):
        self.bad = step == 25 and self.ranks.rank == self.ranks.world - 1
        return super().gradients(model, epoch, index, step)


def test_non_finite_stops_all_ranks_before_a_save(tmp_path):
    config = small_config(tmp_path / "run")
    results = on_ranks(2, train_small, config, None, BadOnOneRank, folder=tmp_path)
    for result, _, _ in results:
        assert result.ended == "non-finite"
        assert "step 25 (epoch 2, batch 6 of 20)" in result.error
    last = json.loads((tmp_path / "run/checkpoints/last.json").read_text())
    assert last["step"] == 20
    assert all(torch.isfinite(t).all() for t in last_weights(tmp_path / "run").values())


def test_patience(tmp_path):
    config = small_config(tmp_path / "run", epochs=40, patience=2)
    (result, _, _), *_ = on_ranks(1, train_small, config, folder=tmp_path)
    accuracies = [row["val_accuracy"] for row in result.state.history]
    assert result.ended == "patience"
    scores = [(row["val_accuracy"], -row["val_loss"]) for row in result.state.history]
    assert result.state.best[0] == max(accuracies)
    assert result.state.best_epoch == scores.index(max(scores)) + 1 == len(scores) - 2


def evaluated(n):
    """Count right answers over n samples on this rank's shard, summed over ranks."""
    from vit import rng
    from vit.config import DatasetConfig
    from vit.model import build
    from vit.steps import evaluate

    config = small_config("unused").model
    images = (rng.uniform(torch.arange(n), 3 * 64, "images") * 255).byte().view(n, 3, 8, 8)
    labels = (rng.uniform(torch.arange(n), 1, "labels")[:, 0] * 10).long()
    ranks = Ranks.here()
    rows = shard(torch.arange(n), ranks.rank, ranks.world)
    sums = evaluate(
        build(config, 10, 0),
        lambda samples: (images[samples], labels[samples]),
        rows,
        config.image_size,
        DatasetConfig(),
        "float32",
        torch.device("cpu"),
        batch_size=512,
    )
    return ranks.add(sums)


def test_evaluation_is_exact_on_any_number_of_ranks(tmp_path):
    counts = {}
    for world in (1, 2, 3):
        sums = on_ranks(world, evaluated, 10_007, folder=tmp_path)
        assert len({tuple(s) for s in sums}) == 1
        counts[world] = sums[0][1:]
        assert sums[0][2] == 10_007
    assert counts[1] == counts[2] == counts[3]
    assert 500 < counts[1][0] < 1500


def test_failed_save_is_said_and_training_goes_on(tmp_path, monkeypatch):
    config = small_config(tmp_path / "run")
    real = Location.write_bytes

    def full(self, data):
        if "step-40-" in str(self):
            raise StorageError(f"cannot write {self}: No space left on device", 28)
        real(self, data)

    monkeypatch.setattr(Location, "write_bytes", full)
    result, _, hooks = train_small(config)
    assert result.ended == "epochs"
    assert result.save_error is None
    assert any("No space left" in line and "training continues" in line for line in hooks.said)
    assert json.loads((tmp_path / "run/checkpoints/last.json").read_text())["step"] == 60


def test_kept_are_best_last_and_the_one_before(tmp_path):
    result, _, _ = train_small(small_config(tmp_path / "run", epochs=5))
    folders = {p.name for p in (tmp_path / "run/checkpoints").glob("step-*")}
    named = {
        json.loads((tmp_path / f"run/checkpoints/{p}.json").read_text())["checkpoint"]
        for p in ("best", "last")
    }
    steps = sorted({int(name.split("-")[1]) for name in folders})
    assert named <= folders
    assert set(steps) == {int(name.split("-")[1]) for name in named} | {steps[-2]}
    assert len(folders) in (2, 3)
    assert result.state.epoch == 5
