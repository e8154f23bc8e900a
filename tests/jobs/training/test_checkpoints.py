"""Pointers, late writers, damage, full disks: what a resume may meet."""

import json
from dataclasses import replace

import pytest
import torch

from jobs.storage.location import Location, StorageError
from jobs.training.checkpoints import CheckpointError, Checkpoints
from jobs.training.ranks import AgreedError
from jobs.training.saver import Saver
from jobs.training.snapshot import Snapshot, lay_out, restore, snapshot
from jobs.training.steps import update
from tests.tasks import small_config, train_small
from vit.config import ModelConfig, OptimConfig
from vit.model import build
from vit.numerics import Numerics
from vit.optim import Optimizer


def snapshot_at(step):
    weights = {"w": torch.full((3,), float(step))}
    return Snapshot(step, weights, {"exp_avg/w": torch.zeros(3)}, {"epoch": step})


@pytest.fixture
def folder(tmp_path):
    return Location.parse(tmp_path / "checkpoints")


def test_written_and_read_back(folder):
    store = Checkpoints(folder, "a")
    assert store.latest() is None
    assert store.best() is None
    name = store.write(snapshot_at(7), ("best", "last"))
    assert store.latest() == store.best() == name == "step-7-a"
    again = Checkpoints(folder, "b").read(name)
    assert torch.equal(again.weights["w"], torch.full((3,), 7.0))
    assert (again.step, again.state) == (7, {"epoch": 7})


def test_only_best_last_and_the_one_before_are_kept(folder):
    store = Checkpoints(folder, "a")
    for step in range(1, 6):
        store.write(snapshot_at(step), ("best", "last") if step == 2 else ("last",))
    assert {e.name for e in folder.list() if e.is_folder} == {"step-2-a", "step-4-a", "step-5-a"}


def test_a_damaged_checkpoint_can_be_deleted_to_resume_from_the_one_before(folder):
    """As the message says, also where the last one is the best."""
    store = Checkpoints(folder, "a")
    for step in (1, 2, 3):
        store.write(snapshot_at(step), ("best", "last"))
    (folder / "step-3-a" / "weights.safetensors").write_bytes(
        bytes(len((folder / "step-3-a" / "weights.safetensors").read_bytes()))
    )
    with pytest.raises(CheckpointError, match=r"delete the folder .*step-3-a to resume"):
        store.read("step-3-a")
    (folder / "step-3-a").delete()
    assert Checkpoints(folder, "b").latest() == "step-2-a"


def test_a_late_writer_harms_nothing(folder):
    old = Checkpoints(folder, "old")
    old.write(snapshot_at(10), ("last",))
    new = Checkpoints(folder, "new")
    for step in (20, 30):
        new.write(snapshot_at(step), ("last",))  # the second drops step-10-old, which it found
    old.write(snapshot_at(11), ("last",))  # the killed run's worker wrote for a second more
    names = {e.name for e in folder.list() if e.is_folder}
    assert names == {"step-20-new", "step-30-new", "step-11-old"}
    assert Checkpoints(folder, "third").latest() == "step-11-old"
    (folder / "step-11-old" / "files.json").delete()
    assert Checkpoints(folder, "third").latest() == "step-30-new"


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_folder_without_all_its_files_is_not_taken(folder, file):
    store = Checkpoints(folder, "a")
    store.write(snapshot_at(1), ("best", "last"))
    name = store.write(snapshot_at(2), ("last",))
    path = folder / name / file
    path.write_bytes(path.read_bytes()[:-1])
    assert Checkpoints(folder, "b").latest() == "step-1-a"


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b"", b'{"format": 1, "files"', b"null", b"\xff", b"[" * 9000, b"{}\n"]
)
def test_a_list_or_pointer_that_is_damaged_is_passed_over(folder, content):
    store = Checkpoints(folder, "a")
    for step in (1, 2, 3):
        store.write(snapshot_at(step), ("best", "last"))
    for file in ("last.json", "best.json", "resumes.json"):
        (folder / file).write_bytes(content)
    again = Checkpoints(folder, "b")
    assert again.latest() == "step-3-a"
    assert again.passed_over("step-3-a") == (
        f"{folder / 'last.json'} is missing or damaged: step-3-a is taken instead"
    )
    assert again.resumes() == 0
    again.count_resume()
    assert again.resumes() == 1
    store.write(snapshot_at(4), ("best", "last"))
    assert again.passed_over(again.latest()) is None
    (folder / "step-4-a" / "files.json").write_bytes(content)
    assert again.latest() == "step-3-a"
    assert "step-4-a is missing or damaged: step-3-a" in again.passed_over("step-3-a")
    with pytest.raises(CheckpointError, match=r"step-4-a/files\.json is damaged"):
        again.read("step-4-a")
    (folder / "step-3-a" / "files.json").write_bytes(content)
    assert again.latest() is None
    line = again.passed_over(None)
    assert line.endswith("(step-3-a, step-4-a): the training starts again from the beginning")
    assert Checkpoints(folder / "new", "c").passed_over(None) is None


@pytest.mark.parametrize(
    "name", ["step-foo", "step-", "step-5", "step--1-a", f"step-{'9' * 5000}-a", "x"]
)
def test_strays_beside_the_checkpoints_harm_nothing(folder, name):
    store = Checkpoints(folder, "a")
    store.write(snapshot_at(1), ("best", "last"))
    (folder / name[:200] / "files.json").write_bytes(b"{}")
    (folder / "step-7-file").write_bytes(b"")
    for step in (2, 3, 4):
        store.write(snapshot_at(step), ("last",))
    assert Checkpoints(folder, "b").latest() == "step-4-a"
    names = {entry.name for entry in folder.list() if entry.is_folder}
    assert names == {"step-1-a", "step-3-a", "step-4-a", name[:200]}


def test_the_best_is_found_and_kept_without_its_pointer(folder):
    store = Checkpoints(folder, "a")

    def at(step, epoch, best_epoch, index=0):
        state = {"epoch": epoch, "best_epoch": best_epoch, "index": index}
        return Snapshot(step, {"w": torch.zeros(1)}, {}, state)

    store.write(at(5, 0, 0, index=5), ("last",))
    store.write(at(10, 1, 1), ("best", "last"))
    (folder / "best.json").write_bytes(b"{}")
    for step, epoch in ((20, 2), (30, 3), (40, 4)):
        store.write(at(step, epoch, 1), ("last",))
    assert store.best() == "step-10-a"


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    """One whose lists agree with its contents, as a person may write them."""
    config = small_config(tmp_path)
    train_small(config)
    store = Checkpoints(Location.parse(config.out) / "checkpoints", "a")
    saved = store.read(store.latest())
    store.write(replace(saved, step=10**6, state={"unknown": 1}), ("last",))
    with pytest.raises(AgreedError, match="step-1000000-a does not fit this training"):
        train_small(config)


def test_damage_is_named(folder):
    store = Checkpoints(folder, "a")
    name = store.write(snapshot_at(1), ("last",))
    path = folder / name / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged"):
        store.read(name)


def test_storage_that_does_not_answer_is_not_an_empty_run(folder, monkeypatch):
    """Else a moment without network would start from nothing, and drop what was there."""
    store = Checkpoints(folder, "a")
    store.write(snapshot_at(1), ("best", "last"))

    def refuse(self):
        raise StorageError(f"cannot read {self}: connection reset")

    monkeypatch.setattr(Location, "exists", refuse)
    with pytest.raises(StorageError):
        store.latest()
    store._prune("step-9-a")
    monkeypatch.undo()
    assert store.latest() == "step-1-a"


def fail_for(monkeypatch, part):
    real = Location.write_bytes

    def full(self, data):
        if part in str(self):
            raise StorageError(f"cannot write {self}: No space left on device", 28)
        real(self, data)

    monkeypatch.setattr(Location, "write_bytes", full)


def test_a_failed_write_leaves_what_was_there(folder, monkeypatch):
    store = Checkpoints(folder, "a")
    store.write(snapshot_at(1), ("best", "last"))
    for part in ("weights", "optimizer", "state.json", "files.json"):
        fail_for(monkeypatch, f"step-2-a/{part}")
        with pytest.raises(StorageError):
            store.write(snapshot_at(2), ("best", "last"))
        monkeypatch.undo()
        assert store.latest() == store.best() == "step-1-a"
        assert {e.name for e in folder.list() if e.is_folder} == {"step-1-a"}


def test_best_is_pointed_to_before_last(folder, monkeypatch):
    """A kill between the two: the state that a resume reads must have its best."""
    store = Checkpoints(folder, "a")
    store.write(snapshot_at(1), ("best", "last"))
    fail_for(monkeypatch, "last.json")
    with pytest.raises(StorageError):
        store.write(snapshot_at(2), ("best", "last"))
    assert (store.best(), store.latest()) == ("step-2-a", "step-1-a")


def test_the_saver_reports_and_continues():
    said = []
    saver = Saver(said.append)

    def fail():
        raise StorageError("No space left on device")

    saver.submit(fail)
    saver.wait()
    assert "No space left" in saver.error
    assert "training continues" in said[0]
    saver.submit(lambda: None)
    saver.wait()
    assert saver.error is None


def test_a_lost_best_is_not_the_best(tmp_path, monkeypatch):
    """The save of the best epoch fails: accuracy and weights of the summary are those kept."""
    config = small_config(tmp_path / "run", epochs=4)
    whole, _, _ = train_small(small_config(tmp_path / "whole", epochs=4))
    lost = 20 * whole.state.best_epoch
    fail_for(monkeypatch, f"step-{lost}-")
    result, _, _ = train_small(config)
    assert result.state.best_epoch != whole.state.best_epoch
    best = json.loads((tmp_path / "run/checkpoints/best.json").read_text())
    assert best["step"] == 20 * result.state.best_epoch


def test_the_state_resumes_in_the_memory_layout_of_its_weights():
    """Fused AdamW pairs numbers by address: contiguous state would meet the wrong weights."""
    shape = ModelConfig(image_size=8, patch_size=4, embed_dim=32, depth=1, num_heads=2, stem="conv")
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def start():
        model = build(shape, 10, seed=0)
        return model, Optimizer(model, OptimConfig(lr=1e-2))

    def step(model, optimizer):
        model(images).square().sum().backward()
        update(model, optimizer, 1.0, 0)

    whole, optimizer = start()
    numerics = Numerics("float32", fused_attention=True, channels_last=True)
    numerics.prepare(whole)
    for _ in range(3):
        step(whole, optimizer)
    saved = snapshot(whole, optimizer, None, 3, {})
    resumed, again = start()
    restore(resumed, again, None, saved)
    numerics.prepare(resumed)
    lay_out(again)
    for _ in range(3):
        step(whole, optimizer)
        step(resumed, again)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
