"""What a training step costs a GPU's host: waits, launches and copies, counted on the stand-in."""

import itertools

import pytest
import torch

from jobs.classifier.task import VitTask, load
from jobs.training.ranks import Ranks
from jobs.training.snapshot import snapshot
from tests.tasks import small_config
from vit.config import AugmentConfig, ModelConfig, OptimConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEPTH = 12
"""Blocks of the seed's model, of which launches depend; its width does not matter here."""


@pytest.fixture
def probes(monkeypatch):
    """Have probes find what a test says."""

    def find(*, cudnn, graphs):
        attention, launches = [1.0, 2.0 if cudnn else 1.0], [1.0, 0.5 if graphs else 1.0]
        for module, found in (("jobs.run.device", attention), ("vit.graphs", launches)):
            left = itertools.cycle(found)

            def seconds(work, left=left):
                work()
                return next(left)

            monkeypatch.setattr(f"{module}.seconds", seconds)

    yield find
    torch.backends.cuda.enable_cudnn_sdp(True)


def trained(folder, **optim):
    """The seed's model, but narrow and with fewer tokens, with every kind of augmentation."""
    config = small_config(
        folder,
        precision="bfloat16",
        batch_size=8,
        model=ModelConfig(
            image_size=8, patch_size=4, embed_dim=48, depth=DEPTH, num_heads=6, drop_path_rate=0.1
        ),
        augment=AugmentConfig(
            crop_padding=1, policy="autoaugment-cifar10", erasing=0.25, mixup=0.8, cutmix=1.0
        ),
        optim=OptimConfig(warmup_epochs=0, ema_half_life=500, **optim),
    )
    task = VitTask(config, load(config), torch.device("cuda"), Ranks(0, 1))
    model = task.build()
    optimizer, average = task.optimizer(model), task.average(model)
    task.apply(model, task.decide(model, config.batch_size))
    return task, model, optimizer, average


def settled_step(stand_in, task, model, optimizer, average):
    """The log of a step after the first ones, which fill caches of constants on the device."""
    for step in range(4):
        with stand_in.measured() as log:
            task.gradients(model, 0, step, step)
            task.update(model, optimizer, average, step)
    return log


@pytest.mark.parametrize(
    ("name", "graphs", "launches"),
    [
        ("adamw", False, 1000),
        ("muon", False, 1150),
        ("adamw", True, 250),
        ("muon", True, 350),
    ],
)
def test_a_step_of_the_seeds_model(stand_in, tmp_path, probes, name, graphs, launches):
    probes(cudnn=True, graphs=graphs)
    made = trained(tmp_path, optimizer=name)
    assert (" CUDA graphs: 2.00 times" in made[0].describe()) == graphs
    log = settled_step(stand_in, *made)
    assert not log.waits
    assert log.launches <= launches
    assert log.copies["pinned"] == 1  # what was drawn
    assert log.copies["pageable"] == 1  # the numbers of the samples
    assert not log.copies["staged"]


def test_graphs_give_the_same_losses_and_are_left_for_another_batch(tmp_path, probes):
    losses = {}
    for graphs in (False, True):
        probes(cudnn=False, graphs=graphs)
        task, model, optimizer, average = trained(tmp_path)
        losses[graphs] = []
        for step in range(3):
            losses[graphs].append(task.gradients(model, 0, step, step).cpu())
            task.update(model, optimizer, average, step)
        task.evaluate(model, "val")
    assert torch.equal(torch.stack(losses[True]), torch.stack(losses[False]))
    images = torch.zeros(3, 3, 8, 8, device="cuda")  # of another size than was captured
    assert model(images, torch.ones(2 * DEPTH, 3, device="cuda")).shape == (3, 10)


def test_a_graph_with_other_gradients_is_not_used(tmp_path, probes, monkeypatch):
    def wrong(model, given):
        plain = model.forward
        model.forward = lambda *args: 2 * plain(*args)

    def impossible(model, given):
        raise RuntimeError("operation not permitted when stream is capturing")

    probes(cudnn=False, graphs=True)
    for make, why in ((wrong, "their gradients differ"), (impossible, "they failed: operation")):
        monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
        task, model, *_ = trained(tmp_path)
        assert f"no CUDA graphs, as {why}" in task.describe()
        assert "forward" not in vars(model)


@pytest.mark.parametrize("faster", [True, False])
def test_cudnns_attention_is_used_where_it_is_faster(stand_in, tmp_path, probes, faster):
    probes(cudnn=faster, graphs=False)
    log = settled_step(stand_in, *trained(tmp_path))
    assert log.attention == {"cudnn" if faster else "flash": DEPTH}


def test_a_save_pins_memory_once_and_does_not_wait(stand_in, tmp_path):
    task, model, optimizer, average = trained(tmp_path)
    settled_step(stand_in, task, model, optimizer, average)
    with stand_in.measured() as log:
        saved = snapshot(model, optimizer, average, 1, {})
    assert (log.pins, log.waits.total()) == (1, 0)
    before = {name: value.cpu() for name, value in model.state_dict().items()}
    task.gradients(model, 0, 4, 4)
    task.update(model, optimizer, average, 4)
    saved.wait()
    assert all(torch.equal(saved.weights[name], value) for name, value in before.items())
