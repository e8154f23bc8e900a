from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.training import timm_train, train
from jobs.classifier.task import TrainConfig
from vit import model
from vit.config import AugmentConfig, ModelConfig, OptimConfig

SHAPE = ModelConfig(image_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2)


def files(folder, part):
    return sorted(path.relative_to(folder / part) for path in (folder / part).rglob("*.png"))


def test_the_drawn_images_are_as_many_as_asked_and_none_is_in_both_sets(tmp_path):
    train.write_images(TrainConfig(out="unused"), tmp_path, count=200)
    drawn, val = files(tmp_path, "train"), files(tmp_path, "val")
    assert len(drawn) == 200
    assert not set(drawn) & set(val)
    assert {path.parent for path in val} == {Path(str(digit)) for digit in range(10)}


def test_more_steps_than_there_are_images_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="images for 10 steps at most"):
        train.write_images(TrainConfig(out="unused"), tmp_path, count=5000)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_timms_model_has_the_weights_and_the_results_of_ours(stem):
    shape = replace(SHAPE, stem=stem, global_pool="avg", init_values=0.1)
    ours, theirs = model.build(shape, 10, seed=0), timm_train.build(shape, 10)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(theirs.eval()(images), ours.eval()(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("augment", "optim"),
    [
        (AugmentConfig(policy="autoaugment-cifar10"), OptimConfig(optimizer="muon")),
        (AugmentConfig(crop="resized", policy="randaugment", erasing=0.5), OptimConfig()),
        (AugmentConfig(mixup=0.8, cutmix=1.0), OptimConfig(schedule="wsd", ema_half_life=1000)),
    ],
)
def test_every_part_of_timm_that_a_recipe_asks_for_runs(tmp_path, augment, optim):
    config = TrainConfig(
        out="unused",
        model=SHAPE,
        augment=augment,
        optim=optim,
        batch_size=16,
        precision="float32",
    )
    train.write_images(config, tmp_path, count=32)
    read = replace(config, data=(str(tmp_path),))
    batches = timm_train.loader(read, world=1, loader_workers=0)
    training = timm_train.Training(config, 10, 2, torch.contiguous_format)
    before = [parameter.clone() for parameter in training.bare.parameters()]
    for number, (images, labels) in enumerate(batches):
        assert images.shape == (16, 3, 16, 16)
        training.step(number, images, labels)
    after = list(training.bare.parameters())
    assert number == 1
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_ratios_are_taken_run_by_run():
    table = train.table({"job": [100.0, 300.0, 110.0], "timm": [50.0, 150.0, 100.0]})
    assert "| timm | 100 (50 to 150) | 2.000 (1.100 to 2.000) | 3 |" in table
